"""A night on examples/drone-router, once for each planner that `make demo` does not show.

Everything is as a person leaves it: the command detached, another terminal that watches, the real
model, real training. Only the model that plans is scripted, behind a real server and the real SDK.
"""

from __future__ import annotations

import html
import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.planner_context import read_history
from agent.planners.calibration import calibrate
from agent.scaffold import create_workspace
from tests.agent.planners.messages_api import MessagesApi, Reply, call, serve_messages, submit
from tests.git_project import git, isolate_git
from tools.clock import utc_now
from tools.decisions import load_entries
from tools.errors import ModelError
from tools.journal import Journal
from tools.lineage import LineageStore
from tools.models import resolve_base_model
from tools.recipe import TrainRecipe
from tools.workspace import Workspace
from tools.yaml_text import dump_yaml, parse_yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * 3600)]

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "drone-router"
BRANCH = "bakehouse/drone-router"
MLP = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SCRIPT: tuple[Reply, ...] = (
    call(
        ("read_dev_failures", {"page": 1}), ("read_lineage", {}), ("look_up_decision", {"question": "recipe"})
    ),
    # It leaves the ranges and reaches for what is locked; both are refused, and it may mend its plan.
    submit({"epochs": 50}, {"base_model": "another"}, gain=0.5),
    submit(
        {"lora_target_modules": MLP},
        {"lora_target_modules": MLP, "epochs": 2},
        {"learning_rate": 1e-3},
        gain=0.2,
        notes="Half of the dev failures are numbers that were not converted.",
    ),
)


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    isolate_git(monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    try:
        resolve_base_model("smollm2-135m-instruct-q4_1")
    except ModelError as err:
        pytest.skip(str(err))
    root = tmp_path / "a night"
    create_workspace(root, name="drone-router", source=EXAMPLE)
    git(root, "config", "user.name", "Ada")
    git(root, "config", "user.email", "ada@example.org")
    return Workspace(root)


def test_a_planned_bakeoff_runs_unattended(workspace: Workspace) -> None:
    start(workspace, "--plan", str(EXAMPLE / "plan.yaml"))
    record = check_the_morning(workspace, planner="fixed")
    assert [candidate["changes"] for candidate in record["candidates"]] == [
        ["epochs 1 -> 2"],
        ["lora_target_modules +gate_proj +up_proj +down_proj"],
        ["lora_rank 8 -> 16", "lora_alpha 16 -> 32"],
    ]


def test_a_bakeoff_that_a_model_plans_runs_unattended(workspace: Workspace) -> None:
    with serve_messages(*SCRIPT) as api:
        ask_scripted_model(workspace, api)
        start(workspace, "--planner", "claude")
        record = check_the_morning(workspace, planner="claude/scripted-1")
    assert len(api.requests) == len(SCRIPT)
    assert api.requests[0]["system"][0]["cache_control"]
    sealed = [f'"{split}-' for split in ("selection", "test")]
    assert not any(name in json.dumps(request) for request in api.requests for name in sealed)
    refused = " ".join(record["notes"])
    for thing in ("refused: proposal 1: epochs", "refused: proposal 2: 'base_model'"):
        assert thing in refused


def ask_scripted_model(workspace: Workspace, api: MessagesApi) -> None:
    task = parse_yaml(workspace.task_file.read_text(encoding="utf-8"))
    task["bakeoff"] |= {
        "planner_model": "scripted-1",
        "planner_base_url": api.url,
        "planner_prices": {"input": 3, "output": 15, "cache_read": 0.3, "cache_write": 3.75},
    }
    workspace.task_file.write_text(dump_yaml(task), encoding="utf-8")
    git(workspace.root, "commit", "-q", "-a", "-m", "Ask a model for plans")


def start(workspace: Workspace, *options: str) -> None:
    """Start the flywheel detached, and watch it from another terminal until it has ended."""
    job = read_json(workspace, "flywheel", "--detach", "--iters", "1", *options)
    with terminal(workspace, "watch", "--every-s", "5") as shown:
        text = shown()
    assert "i0001-c1-s17" in text
    assert "drone-router: ended in order" in text
    ended = read_json(workspace, "poll", job["id"])
    assert (ended["status"], ended["exit_code"]) == ("succeeded", 0)


def check_the_morning(workspace: Workspace, *, planner: str) -> dict[str, Any]:
    """Look at all that a person finds, and return the iteration's record from the journal."""
    root = workspace.root
    assert git(root, "status", "--porcelain") == ""
    assert git(root, "rev-list", "--count", f"main..{BRANCH}") == "1"
    body = git(root, "log", "-1", "--format=%B", BRANCH)
    assert f"Planner: {planner}" in body
    assert "Bakehouse-Iteration: i0001" in body

    journal = Journal(workspace.journal_file, clock=utc_now)
    events = journal.events()
    assert journal.problems == ()
    assert not [event for event in events if event.event in ("failed", "interrupted")]
    assert journal.open_runs() == ()
    assert [event.key for event in events if event.event == "iteration_end"] == ["i0001"]
    record: dict[str, Any] = journal.done("decide", "i0001")

    lineage = workspace.worktree_dir / "lineage"
    trials = LineageStore(lineage, lower_is_better=False).all_trials()
    mine = {trial.exp_id: trial for trial in trials if trial.specialist == planner}
    assert {name.rpartition("-s")[0] for name in mine} == {"i0001-c1", "i0001-c2", "i0001-c3"}
    assert all(trial.core_metric is not None and trial.expected_delta for trial in mine.values())
    (held,) = calibrate(read_history(lineage, trials))
    assert (held.planner, held.n) == (planner, 3)

    (entry,) = load_entries(dirs=[workspace.worktree_dir / "decide-entries"])
    assert entry.provenance is not None
    assert entry.provenance.planner == planner
    kept = TrainRecipe.from_yaml(workspace.worktree_dir / "recipe.yaml")
    assert entry.provenance.recipe_digest == kept.digest
    for page in (lineage / "i0001" / "report.html", workspace.reports_dir / "i0001" / "report.html"):
        assert record["decision"] in html.unescape(page.read_text(encoding="utf-8"))
    beat = json.loads((workspace.state_dir / "flywheel_heartbeat.json").read_text(encoding="utf-8"))
    assert beat["status"] == "completed"
    status = read_json(workspace, "status")
    assert (status["unmerged_commits"], status["running"]) == (1, None)
    assert [commit["name"] for commit in read_json(workspace, "review", "list")["commits"]] == ["i0001"]
    return record


def read_json(workspace: Workspace, *arguments: str) -> Any:
    done = subprocess.run(
        [*COMMAND, *arguments, "--workspace", str(workspace.root), "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


COMMAND = (sys.executable, "-P", "-m", "agent")


@contextmanager
def terminal(workspace: Workspace, *arguments: str) -> Iterator[Callable[[], str]]:
    """Run a command on a terminal of its own; yield what waits for its end and returns what it showed."""
    ours, theirs = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        while True:
            try:
                block = os.read(ours, 65536)
            except OSError:
                return
            if not block:
                return
            shown.append(block)

    environment = {**os.environ, "COLUMNS": "120", "LINES": "60", "TERM": "xterm"}
    child = subprocess.Popen(
        [*COMMAND, *arguments, "--workspace", str(workspace.root)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    reader = threading.Thread(target=read, daemon=True)
    reader.start()

    def wait() -> str:
        assert child.wait() == 0
        reader.join(timeout=60)
        text = b"".join(shown).decode("utf-8", "replace")
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)

    try:
        yield wait
    finally:
        child.kill()
        child.wait()
        os.close(ours)
