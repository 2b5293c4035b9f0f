"""The signatures and defaults that fieldkit's manual of 0.3 gives for its `eval` module."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

import tools.evaluation as evaluation
from tools.evaluation import (
    AssertionGrader,
    Bench,
    Judge,
    MatchedBaseComparison,
    PassAtK,
    Trajectory,
    TurnDetail,
)


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (Bench, {"metrics_key": None}),
        (Bench.run, {"on_error": "record", "tag_fn": None}),
        (Judge, {"max_tokens": 160, "temperature": 0.0, "rubric": evaluation.RUBRIC_CORRECTNESS}),
        (Judge.grade, {"question": None, "reference": None, "context": None}),
        (Trajectory, {"baseline": None, "score_field": "val_bpb", "lower_is_better": True}),
        (Trajectory.from_jsonl, {"score_field": "val_bpb", "lower_is_better": True}),
        (AssertionGrader.grade, {"seed_files": None, "task_id": ""}),
        (PassAtK, {"ks": (1,)}),
        (PassAtK.score, {"extras_fn": None}),
        (evaluation.summarize_agent_runs, {"label": ""}),
        (
            evaluation.AgentRun.from_record,
            {
                "question_id_field": "arxiv_id",
                "question_id_path": ("input_data",),
                "inference_path": ("inference_results", 0),
                "turns_field": "turn_details",
            },
        ),
    ],
)
def test_a_documented_default_holds(function: Any, parameters: dict[str, Any]) -> None:
    signature = inspect.signature(function).parameters
    assert {name: signature[name].default for name in parameters} == parameters


def test_the_five_canonical_fields_of_a_turn_come_first() -> None:
    names = [field.name for field in TurnDetail.__dataclass_fields__.values()]
    assert names == ["turn", "action", "duration_s", "input_tokens", "output_tokens", "extras"]


def test_a_grade_is_what_a_comparison_reads(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    task = [{"kind": "file_exists", "path": "a.txt"}, {"kind": "file_not_exists", "path": "a.txt"}]
    grade = json.loads(json.dumps(AssertionGrader().grade(task, tmp_path).to_dict()))
    stats = MatchedBaseComparison().stats([{"task_id": "synth-x-01", "final_grade": grade}])
    assert (stats.n_passed, stats.n_assertions_passed, stats.n_assertions_total) == (0, 1, 2)
    assert stats.by_kind == {"file_exists": {"n": 1, "passed": 1}, "file_not_exists": {"n": 1, "passed": 0}}
