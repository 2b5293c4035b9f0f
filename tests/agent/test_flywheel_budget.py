"""Caps of a whole flywheel: what is bought, what is not, and how a cap ends a run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.budget.account import read_account
from agent.budget.limits import what_is_left
from agent.flywheel import FlywheelResult, run_flywheel
from agent.planners.claude_planner import ClaudePlanner
from agent.planners.fixed import FixedPlanner
from agent.planners.messages_client import MessagesServer
from agent.progress import Event
from agent.watching import Watcher
from tests.agent.bench import make_workspace, run_here, write_base, write_plan
from tests.agent.planners.messages_api import serve_messages, submit
from tests.git_project import isolate_git
from tools.clock import utc_now
from tools.decisions import load_entries
from tools.errors import BudgetError
from tools.hardware import detect
from tools.journal import Journal
from tools.lineage import FailureLabel, LineageStore
from tools.workspace import Workspace
from tools.yaml_text import dump_yaml, parse_yaml

LONG = {"epochs": 10.0}
SHORT_SMOKE = {"rows": 4, "steps": 30, "learning_rate": 0.02}
TRAIN_S, EVAL_S, WORKER_S = 10.0, 5.0, 20.0


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    isolate_git(monkeypatch)
    # The workers here say that they held a GPU, and so the machine must have one.
    real = detect()
    monkeypatch.setattr("agent.flywheel.detect", lambda: replace(real, kind="cuda"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base model"))


class Workers:
    """The real engine, whose results say that they took a GPU and a known time."""

    def __init__(self, slow: str = "") -> None:
        self.trained: list[str] = []
        self._slow = slow

    def __call__(self, spec: Mapping[str, Any], *, spec_path: Path, log_path: Path, **_: Any) -> Any:
        result = json.loads(json.dumps(run_here(spec, spec_path=spec_path, log_path=log_path)))
        wall_s = WORKER_S
        for entry in [*result.get("members", ()), *result.get("adapters", ())]:
            entry["train_s" if "train_s" in entry else "eval_s"] = TRAIN_S if "train_s" in entry else EVAL_S
            if self._slow and "train_s" in entry and self._slow in entry["trial_id"]:
                wall_s = 10_000.0
        self.trained += [member["trial_id"] for member in result.get("members", ())]
        return {**result, "usage": {"wall_s": wall_s, "gpus": 1}}

    @property
    def full(self) -> list[str]:
        return [name for name in self.trained if "smoke" not in name]


def prepare(tmp_path: Path, base: Path, budget: dict[str, Any], **task: Any) -> Workspace:
    root = tmp_path / "w"
    root.mkdir()
    return make_workspace(root, base, **{"seeds": [17], "budget": budget, **task})


def turn(workspace: Workspace, tmp_path: Path, *patches: dict[str, Any], **options: Any) -> FlywheelResult:
    plan = write_plan(tmp_path / "plan.yaml", *patches)
    return run_flywheel(workspace, planner=FixedPlanner(plan), **{"iterations": 1, **options})


def n_commits(workspace: Workspace) -> int:
    told = subprocess.run(
        ("git", "rev-list", "--count", "main..bakehouse/colours"),
        cwd=workspace.root,
        check=True,
        capture_output=True,
        text=True,
    )
    return int(told.stdout)


def set_budget(workspace: Workspace, budget: dict[str, Any]) -> None:
    task = parse_yaml(workspace.task_file.read_text())
    workspace.task_file.write_text(dump_yaml({**task, "budget": budget}))


def journal_of(workspace: Workspace) -> Journal:
    return Journal(workspace.journal_file, clock=utc_now)


def open_iterations(workspace: Workspace) -> list[str]:
    journal = journal_of(workspace)
    begun = [event.key for event in journal.events() if event.event == "iteration_begin"]
    return [key for key in begun if journal.last("iteration_end", key) is None]


def test_a_candidate_that_the_budget_does_not_cover_is_recorded_and_not_trained(
    base: Path, tmp_path: Path
) -> None:
    # After the start and the smoke gate 150 s are left: enough for one candidate of 30 s, not for 240 s more.
    workspace = prepare(tmp_path, base, {"gpu_hours": 250 / 3600}, smoke=SHORT_SMOKE)
    workers, events = Workers(), list[Event]()
    result = turn(
        workspace, tmp_path, {"learning_rate": 2e-4}, LONG, run_worker=workers, notify=events.append
    )
    (record,) = result.records
    assert workers.full == ["i0001-incumbent-s17", "i0001-c1-s17"]
    assert record.ruling("c1") is not None
    assert record.ruling("c2") is None
    assert "gpu_hours" in str(record.candidates[1].rejected)
    assert [candidate.is_left_out for candidate in record.candidates] == [False, True]
    assert n_commits(workspace) == 1
    (entry,) = load_entries(dirs=[workspace.worktree_dir / "decide-entries"])
    assert any("not trained" in finding.evidence for finding in entry.findings)
    # Three workers at the start, two for the smoke run that both candidates share, a training, a scoring.
    assert result.spent.gpu_s == 7 * WORKER_S
    assert record.budget is not None
    assert record.budget.left.gpu_s == pytest.approx(250 - (result.spent.gpu_s or 0))
    told = [event for event in events if event.kind == "budget"]
    assert {event.step for event in told} >= {"start", "plan", "smoke", "train", "evaluate", "probe"}
    beat = json.loads((workspace.state_dir / "flywheel_heartbeat.json").read_text())
    assert beat["budget_left"]["gpu_s"] == pytest.approx(record.budget.left.gpu_s)
    view = Watcher(workspace).look()
    assert (view.spent.trials, view.left.gpu_s) == (result.spent.trials, result.left.gpu_s)
    page = (workspace.reports_dir / "i0001" / "report.html").read_text()
    assert "Left of the run" in page


def test_further_seeds_that_the_budget_does_not_cover_are_not_bought_and_the_verdict_says_so(
    base: Path, tmp_path: Path
) -> None:
    workspace = prepare(tmp_path, base, {"trials": 3}, seeds=[17, 29])
    workers = Workers()
    result = turn(workspace, tmp_path, {"epochs": 6, "learning_rate": 0.005}, run_worker=workers)
    (record,) = result.records
    ruling = record.ruling("c1")
    assert ruling is not None
    assert "not all of the task's seeds were bought" in ruling.reason
    assert ruling.n_seeds == 1
    # A further seed takes two trials, and one was left.
    assert workers.full == ["i0001-incumbent-s17", "i0001-c1-s17"]
    assert (result.left.trials, n_commits(workspace)) == (1, 1)


def test_a_cap_reached_before_a_candidate_is_trained_commits_nothing_and_leaves_nothing_open(
    base: Path, tmp_path: Path
) -> None:
    workspace = prepare(tmp_path, base, {"trials": 1})
    first = turn(workspace, tmp_path, {"learning_rate": 2e-4}, run_worker=run_here)
    assert (first.stopped_by, first.records) == ("budget", ())
    assert "cap of 1" in first.reason
    assert "without a commit" in first.reason
    assert n_commits(workspace) == 0
    assert open_iterations(workspace) == []
    assert journal_of(workspace).open_runs() == ()
    # With more to spend, what was measured is not measured again.
    set_budget(workspace, {"trials": 2})
    workers = Workers()
    second = turn(workspace, tmp_path, {"learning_rate": 2e-4}, run_worker=workers)
    assert [record.iteration_id for record in second.records] == ["i0002"]
    assert workers.full == ["i0002-c1-s17"]
    rows = LineageStore(workspace.worktree_dir / "lineage", lower_is_better=False).all_trials()
    assert [row.exp_id for row in rows] == ["i0001-incumbent-s17", "i0002-c1-s17"]


def test_a_run_whose_budget_has_no_room_for_another_iteration_ends_after_this_one(
    base: Path, tmp_path: Path
) -> None:
    workspace = prepare(tmp_path, base, {"trials": 2}, bakeoff={"candidates": 1, "iterations": 3})
    patches = ({"learning_rate": 2e-4}, {"lora_alpha": 8}, {"weight_decay": 0.1})
    result = turn(workspace, tmp_path, *patches, run_worker=run_here, iterations=3)
    assert (result.stopped_by, len(result.records)) == ("budget", 1)
    assert "no room for another iteration" in result.reason
    assert open_iterations(workspace) == []


def test_a_cap_reached_before_the_scoring_leaves_a_decision_without_a_verdict(
    base: Path, tmp_path: Path
) -> None:
    workspace = prepare(tmp_path, base, {"gpu_hours": 600 / 3600})
    result = turn(workspace, tmp_path, {"learning_rate": 2e-4}, run_worker=Workers(slow="-c1-s17"))
    (record,) = result.records
    ruling = record.ruling("c1")
    assert ruling is not None
    assert (ruling.verdict, ruling.gain) == ("inconclusive", None)
    assert n_commits(workspace) == 1
    rows = LineageStore(workspace.worktree_dir / "lineage", lower_is_better=False).all_trials()
    by_name = {row.exp_id: row for row in rows}
    assert by_name["i0001-c1-s17"].status is FailureLabel.EVAL_BUDGET_OVERRUN
    assert "gpu_hours" in by_name["i0001-c1-s17"].notes


@pytest.mark.parametrize("killed_in", ["train", "evaluate"])
def test_a_killed_run_goes_on_with_the_trials_that_it_had_reserved(
    base: Path, tmp_path: Path, killed_in: str
) -> None:
    workspace = prepare(tmp_path, base, {"trials": 3})

    def die(spec: Mapping[str, Any], **paths: Any) -> Any:
        if spec["kind"] == killed_in and "look1" in str(paths["spec_path"]):
            raise KeyboardInterrupt
        return run_here(spec, **paths)

    patches = ({"learning_rate": 2e-4}, {"lora_alpha": 8})
    with pytest.raises(KeyboardInterrupt):
        turn(workspace, tmp_path, *patches, run_worker=die)
    # What a SIGKILL leaves: a reservation that nobody settled.
    lines = workspace.journal_file.read_text().splitlines(keepends=True)
    settled = max(i for i, line in enumerate(lines) if '"budget_settled"' in line)
    workspace.journal_file.write_text("".join(lines[:settled]))
    result = turn(workspace, tmp_path, *patches, run_worker=run_here)
    assert result.left.trials == 0
    assert [t.scored for t in result.records[0].own_trials] == [True, True, True]
    account = read_account(journal_of(workspace).events())
    assert account.open == {}
    assert what_is_left(workspace.load_task().budget, account.committed).trials == 0


def test_a_dollar_cap_without_a_price_is_refused_before_anything_is_spent(base: Path, tmp_path: Path) -> None:
    workspace = prepare(tmp_path, base, {"dollars": 1.0})
    planner = ClaudePlanner("scripted", server=MessagesServer(base_url="http://127.0.0.1:9"))
    with pytest.raises(BudgetError, match="planner_prices"):
        run_flywheel(workspace, planner=planner, run_worker=run_here)
    assert journal_of(workspace).events() == ()
    # A planner that asks nobody costs nothing.
    assert turn(workspace, tmp_path, {"learning_rate": 2e-4}, run_worker=run_here).records


def test_a_cap_on_turns_ends_the_run_where_a_plan_would_pass_it(base: Path, tmp_path: Path) -> None:
    workspace = prepare(tmp_path, base, {"turns": 1}, bakeoff={"candidates": 1, "iterations": 3})
    with serve_messages(submit({"lora_alpha": 8}), repeats=True) as api:
        planner = ClaudePlanner("scripted", server=MessagesServer(base_url=api.url))
        result = run_flywheel(workspace, planner=planner, run_worker=run_here)
        assert len(api.requests) == 1
    assert (result.stopped_by, len(result.records), result.spent.turns) == ("budget", 1, 1)
    assert result.records[0].budget is not None
    assert result.records[0].budget.spent.turns == 1


def test_the_unattended_start_is_held_to_the_wall_clock_by_its_worker(base: Path, tmp_path: Path) -> None:
    workspace = prepare(tmp_path, base, {"wall_s": 5000})
    limits: list[float | None] = []

    def watched(spec: Mapping[str, Any], *, timeout_s: float | None = None, **paths: Any) -> Any:
        limits.append(timeout_s)
        return run_here(spec, **paths)

    turn(workspace, tmp_path, {"learning_rate": 2e-4}, run_worker=watched)
    assert limits
    assert all(limit is not None and 4000 < limit <= 5000 for limit in limits)
    assert limits == sorted(limits, reverse=True, key=lambda limit: limit or 0.0)
