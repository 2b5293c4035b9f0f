"""Requested rows and the queue through SIGKILL: real processes, ended at each place that matters."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.ideas.queue import open_queue
from tests.agent.bench import write_base
from tests.agent.data_work.teacher_server import Asked, Says, TeacherServer
from tests.agent.test_flywheel_ideas import data_workspace, git, missing_colours
from tools.clock import utc_now
from tools.dataset import load_dataset
from tools.journal import Journal
from tools.lineage import LineageStore
from tools.recipe import TrainRecipe
from tools.workspace import Workspace

pytestmark = pytest.mark.slow


@pytest.fixture
def server() -> Iterator[TeacherServer]:
    def slow(asked: Asked) -> Says:
        says = missing_colours(asked)
        says.delay_s = 0.5
        return says

    found = TeacherServer(slow)
    yield found
    found.close()


def start(workspace: Workspace) -> subprocess.Popen[bytes]:
    """Start one bakeoff in a process group of its own."""
    names = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "OMP_NUM_THREADS": "1"}
    log = (workspace.root.parent / "bakeoff.log").open("ab")
    with log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "agent", "bakeoff"],
            cwd=workspace.root,
            env=os.environ | names,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def kill_once(workspace: Workspace, reached: Callable[[], bool]) -> None:
    """Start a bakeoff and end it with all of its children as soon as it has reached a place."""
    process = start(workspace)
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None, (workspace.root.parent / "bakeoff.log").read_text(encoding="utf-8")
        assert time.monotonic() < deadline, "the place was never reached"
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_no_kill_loses_a_request_or_makes_it_twice(tmp_path: Path, server: TeacherServer) -> None:
    workspace = data_workspace(tmp_path / "w", write_base(tmp_path / "base"), server)
    train = (workspace.root / "data" / "train.jsonl").read_bytes()

    def journal(event: str, step: str) -> Callable[[], bool]:
        def reached() -> bool:
            found = Journal(workspace.journal_file, clock=utc_now).events()
            return any((one.event, one.step) == (event, step) for one in found)

        return reached

    def state(wanted: str) -> Callable[[], bool]:
        return lambda: [item.state for item in open_queue(workspace).items()] == [wanted]

    n_kills_while_asking = 2
    kill_once(workspace, journal("start", "data"))
    kill_once(workspace, lambda: bool(server.asked))
    for reached in (
        lambda: bool(list((workspace.state_dir / "rows").glob("q0001.jsonl"))),
        lambda: bool(list((workspace.state_dir / "rows").glob("q0001-*.jsonl"))),
        journal("done", "data"),
        state("taken"),
        journal("start", "train"),
        journal("start", "commit"),
        state("done"),
    ):
        kill_once(workspace, reached)
    last = start(workspace)
    assert last.wait(timeout=300) == 0, (tmp_path / "bakeoff.log").read_text(encoding="utf-8")

    assert len(server.asked) <= 1 + n_kills_while_asking
    (item,) = open_queue(workspace).items()
    assert (item.state, item.iteration, item.candidate) == ("done", "i0001", "c2")
    assert item.trials == ("i0001-c2-s17",)
    assert (workspace.root / "data" / "train.jsonl").read_bytes() == train
    assert git(workspace.root, "status", "--porcelain") == ""
    names = [trial.exp_id for trial in LineageStore(workspace.worktree_dir / "lineage").all_trials()]
    assert len(names) == len(set(names))
    tried = TrainRecipe.from_yaml(workspace.worktree_dir / "lineage" / "i0001-c2-s17" / "recipe.yaml")
    (kept,) = (workspace.state_dir / "rows").glob("q0001-*.jsonl")
    assert tried.dataset_jsonl == f"data/requests/{kept.name}"
    rows = load_dataset(kept).rows
    assert (len(rows), len({row.id for row in rows})) == (24, 24)
