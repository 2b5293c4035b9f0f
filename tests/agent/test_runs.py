"""The run of a flywheel: the same command after a kill comes to the same number of iterations."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.flywheel import run_flywheel
from agent.planners.fixed import FixedPlanner
from agent.progress import Event
from agent.runs import FlywheelRun, enter_run, leave_run
from tests.agent.bench import make_workspace, run_here, write_base, write_plan
from tests.git_project import isolate_git
from tools.journal import Journal


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl", clock=lambda: "2026-11-20T04:49:00Z")


def test_a_run_that_was_cut_off_counts_what_it_has_finished(journal: Journal) -> None:
    assert enter_run(journal, 5) == FlywheelRun("r0001", 0)
    journal.append("iteration_end", "i0001")
    journal.append("iteration_end", "i0002", abandoned="the data changed")
    journal.append("iteration_end", "i0003")
    assert enter_run(journal, 5) == FlywheelRun("r0001", 2)
    assert enter_run(journal, 5) == FlywheelRun("r0001", 2)


def test_a_run_that_ended_is_followed_by_a_new_one(journal: Journal) -> None:
    run = enter_run(journal, 5)
    journal.append("iteration_end", "i0001")
    leave_run(journal, run)
    assert enter_run(journal, 5) == FlywheelRun("r0002", 0)


def test_another_number_is_another_run_and_closes_the_one_that_was_cut_off(journal: Journal) -> None:
    enter_run(journal, 5)
    journal.append("iteration_end", "i0001")
    leave_run(journal, enter_run(journal, 1))
    assert journal.open_runs() == ()
    assert enter_run(journal, 5) == FlywheelRun("r0003", 0)


def test_two_iterations_cut_off_in_the_second_come_to_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate_git(monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    root = tmp_path / "w"
    root.mkdir()
    settings = {"candidates": 1, "iterations": 2}
    workspace = make_workspace(root, write_base(tmp_path / "base"), seeds=[17], bakeoff=settings)
    patches = ({"lora_alpha": 8}, {"weight_decay": 0.1}, {"learning_rate": 2e-4})
    plan = write_plan(tmp_path / "plan.yaml", *patches)

    def die(event: Event) -> None:
        if (event.iteration_id, event.step, event.kind) == ("i0002", "train", "done"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_flywheel(workspace, planner=FixedPlanner(plan), run_worker=run_here, notify=die)
    resumed = run_flywheel(workspace, planner=FixedPlanner(plan), run_worker=run_here)
    assert [record.iteration_id for record in resumed.records] == ["i0002"]
    assert resumed.stopped_by == "iterations"
