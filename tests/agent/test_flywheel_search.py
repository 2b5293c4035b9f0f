"""A flywheel whose candidates compete on the way: real training, real scores, real commits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.flywheel import run_flywheel
from agent.plan import OnTheWay
from agent.planner_context import read_history
from agent.planners.fixed import FixedPlanner
from tests.agent.bench import make_workspace, run_here, write_base, write_plan
from tests.git_project import isolate_git
from tools.comparison import corrected_level
from tools.engine.worker import EXIT_STOPPED, StopFlag, run_worker
from tools.errors import TaskError
from tools.files import write_json_atomic
from tools.lineage import FailureLabel, LineageStore
from tools.task import Task

STRONG = {
    "learning_rate": 0.005,
    "lora_rank": 16,
    "lora_alpha": 32,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "epochs": 10,
}


@pytest.fixture(autouse=True)
def own_git_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    isolate_git(monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


class StopAfter(StopFlag):
    """Set once it was asked so many times."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def __call__(self) -> bool:
        self.left -= 1
        self.is_set = self.left < 0
        return self.is_set


def test_losers_of_a_search_are_recorded_and_never_judged_though_it_was_cut_off(tmp_path: Path) -> None:
    root = tmp_path / "w"
    root.mkdir()
    bakeoff = {"candidates": 3, "iterations": 1, "search": {"rungs": [0.5], "keep": 0.33}}
    workspace = make_workspace(root, write_base(tmp_path / "base"), bakeoff=bakeoff, mid_eval_items=16)
    specs: list[Mapping[str, Any]] = []

    def watch(spec: Mapping[str, Any], **paths: Any) -> Mapping[str, Any]:
        specs.append(spec)
        return run_here(spec, **paths)

    def cut_off(spec: Mapping[str, Any], **paths: Any) -> Mapping[str, Any]:
        if not spec.get("search"):
            return run_here(spec, **paths)
        # In the middle of the second candidate, when the first waits at the rung.
        assert run_worker(write_json_atomic(paths["spec_path"], spec), stop=StopAfter(20)) == EXIT_STOPPED
        raise KeyboardInterrupt

    plan = write_plan(tmp_path / "plan.yaml", {"learning_rate": 2e-4}, STRONG, {"learning_rate": 3e-4})
    planner = FixedPlanner(plan)
    with pytest.raises(KeyboardInterrupt):
        run_flywheel(workspace, planner=planner, iterations=1, run_worker=cut_off)
    result = run_flywheel(workspace, planner=planner, iterations=1, run_worker=watch)

    (record,) = result.records
    assert record.promoted == "c2"
    first = {trial.candidate_id: trial for trial in record.own_trials if trial.seed == 17}
    assert [first[name].status for name in ("c1", "c2", "c3")] == ["halted", "done", "halted"]
    assert (first["c1"].steps, first["c1"].total_steps) == (4, 8)
    assert first["c1"].selection is None
    assert "left the search after 4 of 8 steps: dev score 0.000 on 16 rows" in str(first["c1"].error)
    for name in ("c1", "c3"):
        ruling = record.ruling(name)
        assert ruling is not None
        assert (ruling.verdict, ruling.reason) == ("discard", first[name].error)
    kept = record.ruling("c2")
    assert kept is not None
    # Three were tried, whoever left on the way, and the winner was looked at twice.
    assert kept.level == pytest.approx(corrected_level(0.95, 3, 2))
    assert any("halted 2 of 3 candidates" in note and "saved 8 of 96 steps" in note for note in record.notes)

    rows = {
        row.exp_id: row
        for row in LineageStore(workspace.worktree_dir / "lineage", lower_is_better=False).all_trials()
    }
    history = read_history(workspace.worktree_dir / "lineage", list(rows.values()))
    assert {trial.trial_id: trial.halted for trial in history if trial.halted} == {
        "i0001-c1-s17": OnTheWay(4, 0.0),
        "i0001-c3-s17": OnTheWay(4, 0.0),
    }
    row = rows["i0001-c1-s17"]
    assert (row.status, row.core_metric) == (FailureLabel.DISCARD, None)
    assert "left the search" in row.notes
    assert (workspace.worktree_dir / "lineage" / "i0001-c1-s17" / "metrics.jsonl").is_file()
    report = (workspace.worktree_dir / "lineage" / "i0001" / "report.html").read_text(encoding="utf-8")
    assert "left the search after 4 of 8 steps" in report
    assert "saved 8 of 96 steps" in report

    # Only dev rows were looked at, and the bought seeds do not compete.
    searched = [spec for spec in specs if spec["kind"] == "train" and spec["search"]]
    assert len(searched) == 1
    assert searched[0]["mid_eval"]["rows"].endswith("dev.jsonl")
    judged = [spec["adapters"] for spec in specs if spec["kind"] == "evaluate"]
    assert not any(
        entry["trial_id"].startswith(("i0001-c1", "i0001-c3")) for entries in judged for entry in entries
    )


@pytest.mark.parametrize("search", [{"rungs": [0.5, 0.25]}, {"rungs": []}, {"keep": 1.0}, {"rungs": [1.0]}])
def test_a_search_that_cannot_be_is_refused_by_its_key(tmp_path: Path, search: dict[str, Any]) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(json.dumps({"name": "t", "bakeoff": {"search": search}}), encoding="utf-8")
    with pytest.raises(TaskError, match=r"bakeoff\.search"):
        Task.from_yaml(path)
