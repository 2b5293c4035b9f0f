"""A flywheel with the worker that it starts itself: one process for all it trains and scores."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.flywheel import run_flywheel
from agent.planners.fixed import FixedPlanner
from agent.progress import Event
from tests.agent.bench import make_workspace, run_here, write_base, write_plan
from tests.git_project import isolate_git
from tools.child import child_environment
from tools.hardware import Hardware
from tools.lineage import LineageStore
from tools.workspace import Workspace

STRONG = {"learning_rate": 0.005, "lora_rank": 16, "lora_alpha": 32, "epochs": 6}
PROGRAM = """
import sys
from pathlib import Path
from agent.flywheel import run_flywheel
from agent.planners.fixed import FixedPlanner
from tools.workspace import Workspace
root, plan = map(Path, sys.argv[1:])
run_flywheel(Workspace(root), planner=FixedPlanner(plan), iterations=1)
"""


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    isolate_git(monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def until(holds: Callable[[], object], limit_s: float = 200.0) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "the awaited event did not come"
        time.sleep(0.05)


def loads(workspace: Workspace) -> int:
    """How often a worker has loaded the base."""
    logs = (workspace.state_dir / "worker").glob("*.log")
    return sum(log.read_text(encoding="utf-8").count(" INFO loaded ") for log in logs)


def test_a_killed_flywheel_leaves_nothing_running_and_the_next_loads_the_base_once(tmp_path: Path) -> None:
    root = tmp_path / "a workspace"
    root.mkdir()
    workspace = make_workspace(root, write_base(tmp_path / "base model"), seeds=[17])
    plan = write_plan(tmp_path / "plan.yaml", STRONG, {"learning_rate": 2e-4})
    flywheel = subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM, str(root), str(plan)], env=child_environment()
    )
    metrics = root / ".bakehouse/runs/i0001-c1-s17/runs-full/metrics.jsonl"
    until(lambda: flywheel.poll() is not None or (metrics.is_file() and metrics.stat().st_size))
    assert flywheel.poll() is None
    below = psutil.Process(flywheel.pid).children(recursive=True)
    assert any("--resident" in process.cmdline() for process in below)
    flywheel.send_signal(signal.SIGKILL)
    flywheel.wait()
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not alive
    assert loads(workspace) == 1

    steps: list[str] = []

    def note(event: Event) -> None:
        if event.kind == "done":
            steps.append(event.step)

    result = run_flywheel(workspace, planner=FixedPlanner(plan), iterations=1, notify=note)
    assert steps[0] == "train"
    assert loads(workspace) == 2
    assert [record.iteration_id for record in result.records] == ["i0001"]
    store = LineageStore(workspace.worktree_dir / "lineage", lower_is_better=False)
    names = ["i0001-c1-s17", "i0001-c2-s17", "i0001-incumbent-s17"]
    assert sorted(row.exp_id for row in store.all_trials()) == names
    children = psutil.Process().children(recursive=True)
    # An ended child of this process that nobody waited for has no command line any more.
    living = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    assert not [child for child in living if "--resident" in child.cmdline()]


class Holding:
    """A worker that takes up the machine's memory from its first specification on."""

    def __init__(self) -> None:
        self.holds = False
        self.step = ""
        self.released_in: list[str] = []

    def __call__(self, spec: Mapping[str, Any], *, spec_path: Path, log_path: Path) -> Mapping[str, Any]:
        self.holds = True
        return run_here(spec, spec_path=spec_path, log_path=log_path)

    def release(self) -> None:
        self.holds = False
        self.released_in.append(self.step)

    def note(self, event: Event) -> None:
        self.step = event.step

    def look_at_machine(self) -> Hardware:
        available = 0 if self.holds else 64 * 2**30
        return Hardware("cpu", "a small machine", 64 * 2**30, available, cores=1, bf16=False)


def test_the_base_is_let_go_where_its_memory_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "w"
    root.mkdir()
    workspace = make_workspace(root, write_base(tmp_path / "base model"), seeds=[17])
    (root / "data" / "probe.jsonl").write_text('{"qid": "q", "category": "c", "question": "say 1"}\n')
    worker = Holding()
    monkeypatch.setattr("tools.hardware.fit.detect", worker.look_at_machine)
    planner = FixedPlanner(write_plan(tmp_path / "plan.yaml", {"learning_rate": 2e-4}))
    result = run_flywheel(workspace, planner=planner, iterations=1, run_worker=worker, notify=worker.note)
    # The worker's own memory is no reason to refuse a recipe, and a probe needs it.
    assert result.records[0].candidates[0].rejected is None
    assert worker.released_in == ["validate", "probe"]
