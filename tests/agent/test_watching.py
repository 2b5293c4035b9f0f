"""Watching: what the files of a recorded bakeoff say while it runs, when it ends and when it was killed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from agent.budget.amounts import Amounts
from agent.budget.ledger import Ledger
from agent.cli.watch_commands import render
from agent.heartbeat_files import FlywheelHeartbeat
from agent.job_state import look_at_job
from agent.launch import start_flywheel
from agent.watching import FlywheelView, Watcher
from tests.agent.review_sample import first_incumbent
from tests.bakeoff_sample import TASK, Bakeoff, build_bakeoff
from tools.errors import TrainError
from tools.jobs import wait_job
from tools.journal import Journal
from tools.lock import hold_workspace
from tools.task import BudgetCaps
from tools.yaml_text import dump_yaml


class Times:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.minute = 0

    def __call__(self) -> str:
        return f"2026-11-20T01:{self.minute:02d}:00Z"


@pytest.fixture
def bakeoff(tmp_path: Path) -> Bakeoff:
    made = build_bakeoff(tmp_path / "w")
    (tmp_path / "w" / "task.yaml").write_text(dump_yaml(TASK.model_dump(mode="json")), encoding="utf-8")
    return made


@pytest.fixture
def times() -> Times:
    return Times()


def begin(bakeoff: Bakeoff, times: Times) -> Journal:
    """Write the journal of a flywheel that has come to its training step."""
    log = Journal(bakeoff.workspace.journal_file, clock=times)
    log.append("iteration_begin", "i0003", locks={})

    def plan() -> dict[str, str]:
        times.minute = 2
        return {}

    log.run_step("plan", "i0003", plan)
    incumbent = first_incumbent(bakeoff.record)
    log.run_step("start", "i0003", lambda: incumbent.model_dump(mode="json"))
    FlywheelHeartbeat(bakeoff.workspace.state_dir, times).running("i0003", 0.52)
    return log


def training(bakeoff: Bakeoff, times: Times) -> Iterator[FlywheelView]:
    """Look from inside the training step, and again when it has ended."""
    log = begin(bakeoff, times)
    watcher = Watcher(bakeoff.workspace, clock=times)
    seen: list[FlywheelView] = []

    def train() -> list[object]:
        times.minute = 10
        seen.append(watcher.look())
        return [t.model_dump(mode="json") for t in bakeoff.record.trials if t.candidate_id == "c1"]

    with hold_workspace(bakeoff.workspace.state_dir, what="flywheel"):
        log.run_step("train", "i0003", train)
        yield seen[0]
        yield watcher.look()


def test_a_running_step_shows_how_long_it_runs_and_how_far_its_trials_are(
    bakeoff: Bakeoff, times: Times
) -> None:
    view = next(training(bakeoff, times))
    assert (view.state, view.iteration, view.accuracy) == ("running", "i0003", 0.52)
    assert view.holder is not None
    assert "flywheel" in view.holder
    assert [(s.name, s.state, s.wall_s) for s in view.steps] == [
        ("plan", "done", 120.0),
        ("start", "done", 0.0),
        ("train", "running", 480.0),
    ]
    states = {trial.trial_id: trial.state for trial in view.trials}
    assert states["i0003-incumbent-s17"] == "scored"
    trial = next(t for t in view.trials if t.trial_id == "i0003-c1-s17")
    assert (trial.state, trial.step) == ("training", 90)
    assert trial.loss is not None
    assert trial.mid_score is not None
    assert trial.quiet_s is not None


@pytest.mark.parametrize("saved", [True, False])
def test_a_trial_that_has_saved_all_it_did_waits_for_the_others(
    bakeoff: Bakeoff, times: Times, saved: bool
) -> None:
    run_dir = bakeoff.workspace.runs_dir / "i0003-c1-s17" / "runs-full"
    long_ago = (run_dir / "metrics.jsonl").stat().st_mtime - 600
    os.utime(run_dir / "metrics.jsonl", (long_ago, long_ago))
    if saved:
        (run_dir / "iter_0000090").mkdir()
        (run_dir / "latest_checkpointed_iteration.txt").write_text("90", encoding="utf-8")
    trial = next(t for t in next(training(bakeoff, times)).trials if t.trial_id == "i0003-c1-s17")
    assert trial.state == ("training, saved" if saved else "training")
    assert (trial.quiet_s is None) == saved


def test_a_finished_step_gives_its_trials_their_results(bakeoff: Bakeoff, times: Times) -> None:
    *_, view = training(bakeoff, times)
    trial = next(t for t in view.trials if t.trial_id == "i0003-c1-s17")
    record = next(t for t in bakeoff.record.trials if t.trial_id == "i0003-c1-s17")
    assert (trial.state, trial.selection) == ("scored", record.selection)
    assert trial.quiet_s is None


def test_a_killed_flywheel_is_told_from_a_running_one(bakeoff: Bakeoff, times: Times) -> None:
    log = begin(bakeoff, times)
    with bakeoff.workspace.journal_file.open("a") as file:
        line = {"seq": len(log.events()) + 1, "at": times(), "event": "start", "step": "train"}
        file.write(json.dumps({**line, "key": "i0003", "attempt": 1}) + '\n{"seq": 9, "torn')
    view = Watcher(bakeoff.workspace, clock=times).look()
    assert view.state == "cut off"
    assert {trial.state for trial in view.trials} == {"scored", "not finished"}
    assert [(s.name, s.state) for s in view.steps][-1] == ("train", "cut off")
    assert "torn" in view.problems[0]


def test_an_error_and_its_reason_are_shown(bakeoff: Bakeoff, times: Times) -> None:
    log = begin(bakeoff, times)

    def train() -> None:
        raise TrainError("the GPU is gone")

    with pytest.raises(TrainError):
        log.run_step("train", "i0003", train)
    FlywheelHeartbeat(bakeoff.workspace.state_dir, times).end("TrainError: the GPU is gone")
    view = Watcher(bakeoff.workspace, clock=times).look()
    assert (view.state, view.error) == ("error", "TrainError: the GPU is gone")
    assert view.steps[-1].error == "TrainError: the GPU is gone"


def test_a_detached_flywheel_that_is_refused_at_once_shows_why(bakeoff: Bakeoff, times: Times) -> None:
    FlywheelHeartbeat(bakeoff.workspace.state_dir, lambda: "2001-01-01T00:00:00Z").end()
    missing = bakeoff.workspace.root / "no plan.yaml"
    job = start_flywheel(bakeoff.workspace, plan_file=missing)
    wait_job(bakeoff.workspace.jobs_dir, job.id, timeout_s=60)
    view = Watcher(bakeoff.workspace, clock=times).look()
    assert view.state == "error"
    assert view.error is not None
    assert "no plan" in view.error


def test_decisions_are_listed_and_a_foreign_record_is_passed_over(bakeoff: Bakeoff, times: Times) -> None:
    log = begin(bakeoff, times)
    log.run_step("decide", "i0002", lambda: {"from": "another version"})
    log.run_step("decide", "i0003", lambda: bakeoff.record.model_dump(mode="json"))
    (found,) = Watcher(bakeoff.workspace, clock=times).look().decisions
    assert (found.iteration, found.promoted) == ("i0003", "c1")


def test_a_journal_that_contradicts_itself_is_reported(bakeoff: Bakeoff, times: Times) -> None:
    begin(bakeoff, times)
    path = bakeoff.workspace.journal_file
    path.write_text(path.read_text() * 2)
    view = Watcher(bakeoff.workspace, clock=times).look()
    assert "contradicts itself" in view.problems[0]


def test_an_untouched_workspace_is_idle(tmp_path: Path, times: Times, bakeoff: Bakeoff) -> None:
    view = Watcher(bakeoff.workspace, clock=times).look()
    assert (view.state, view.iteration, view.steps, view.trials) == ("idle", None, (), ())


def test_what_a_planner_wrote_cannot_steer_the_terminal(bakeoff: Bakeoff, times: Times) -> None:
    log = begin(bakeoff, times)
    decision = "Keep \x1b[2Jc1\r\nforged line [bold]"
    record = bakeoff.record.model_copy(update={"decision": decision})
    log.run_step("decide", "i0003", lambda: record.model_dump(mode="json"))
    text = io.StringIO()
    view = Watcher(bakeoff.workspace, clock=times).look()
    Console(file=text, width=200, force_terminal=True, color_system=None).print(render(view))
    assert "\x1b[2J" not in text.getvalue()
    assert "i0003: Keep [2Jc1 forged line [bold]" in text.getvalue()


def test_what_is_spent_and_left_is_shown_and_a_running_steps_worst_case_is_taken_off(
    bakeoff: Bakeoff, times: Times
) -> None:
    task = TASK.model_copy(update={"budget": BudgetCaps(trials=5, wall_s=4000)})
    bakeoff.workspace.task_file.write_text(dump_yaml(task.model_dump(mode="json")))
    log = begin(bakeoff, times)
    log.begin_run("r0001")
    ledger = Ledger(log, task.budget, count_gpus=lambda: 0, clock=times)
    ledger.enter("r0001")
    with ledger.spending("train", "i0003", Amounts(wall_s=3000.0, trials=("a", "b"))):
        view = Watcher(bakeoff.workspace, clock=times).look()
        assert (view.spent.trials, view.left.trials) == ((), 3)
        assert view.left.wall_s == pytest.approx(1000, abs=60)
        job = start_flywheel(bakeoff.workspace, plan_file=bakeoff.workspace.root / "no plan.yaml")
        phase = look_at_job(bakeoff.workspace, job).phase
        assert phase is not None
        assert phase.startswith("i0003: train (start); left of the budget: ")
        wait_job(bakeoff.workspace.jobs_dir, job.id, timeout_s=60)
    view = Watcher(bakeoff.workspace, clock=times).look()
    text = io.StringIO()
    Console(file=text, width=200).print(render(view))
    assert "2 trials · left: 1 h 06 min of wall clock, 3 trials" in text.getvalue()
    told = subprocess.run(
        [sys.executable, "-P", "-m", "agent", "watch", "--json"],
        cwd=bakeoff.workspace.root,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(told.stdout)["left"]["trials"] == 3
    assert json.loads(told.stdout)["spent"]["trials"] == ["a", "b"]


def test_the_command_prints_once_for_people_and_for_programs(bakeoff: Bakeoff, times: Times) -> None:
    begin(bakeoff, times)

    def watch(*options: str) -> str:
        command = [sys.executable, "-P", "-m", "agent", "watch", *options]
        done = subprocess.run(
            command, cwd=bakeoff.workspace.root, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert json.loads(watch("--json"))["state"] == "cut off"
    with hold_workspace(bakeoff.workspace.state_dir, what="flywheel"):
        # Without a terminal nothing can be redrawn, so it ends although the flywheel runs.
        assert "drone-router: running" in watch()
        assert "i0003-c1-s17" in " ".join(watch("--once").split())


def test_on_a_terminal_it_goes_on_until_the_run_ends(bakeoff: Bakeoff, times: Times) -> None:
    begin(bakeoff, times)
    leader, follower = os.openpty()
    command = [sys.executable, "-P", "-m", "agent", "watch", "--every-s", "0.2"]
    with hold_workspace(bakeoff.workspace.state_dir, what="flywheel"):
        child = subprocess.Popen(command, cwd=bakeoff.workspace.root, stdout=follower, stdin=follower)
        os.close(follower)
        shown = b""
        while b"running" not in shown:
            shown += os.read(leader, 4096)
        assert child.poll() is None
        FlywheelHeartbeat(bakeoff.workspace.state_dir, times).end()
    with contextlib.suppress(OSError):
        # Reading from a terminal that nobody has open any more is an error on Linux.
        while part := os.read(leader, 4096):
            shown += part
    os.close(leader)
    assert child.wait() == 0
    assert b"ended in order" in shown
