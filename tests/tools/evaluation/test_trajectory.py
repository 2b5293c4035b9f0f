"""Trajectories; the expected numbers are those that fieldkit 0.34.1 gives for the same file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.errors import EvaluationError
from tools.evaluation import Trajectory


def step(
    number: int, knob: str, value: Any, score: Any, decision: str = "revert", **more: Any
) -> dict[str, Any]:
    proposal = {"knob": knob, "new_value": value}
    return {"iter": number, "proposal": proposal, "decision": decision, "val_bpb": score, **more}


STEPS = [
    {"baseline_val_bpb": 1.2, "model": "m"},
    {"iter": 1, "stage": "proposed", "proposal": {"knob": "lr"}},
    step(1, "lr", 0.1, 1.3, stage="evaluated"),
    step(2, "lr", 0.01, 1.1, "keep", stage="evaluated"),
    step(3, "layers", [2, 4], 1.15),
    step(4, "lr", 0.1, 1.31),
    step(5, "layers", [2, 4], 1.05, "keep"),
]


def load(path: Path, rows: list[Any], *lines: str, **options: Any) -> Trajectory:
    path = path / "trajectory.jsonl"
    text = "".join(json.dumps(row) + "\n" for row in rows) + "\n".join(lines)
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    return Trajectory.from_jsonl(path, **options)


def test_a_log_is_read_with_its_header(tmp_path: Path) -> None:
    trajectory = load(tmp_path, STEPS)
    assert [step.iter for step in trajectory.iters] == [1, 2, 3, 4, 5]
    assert trajectory.baseline == 1.2
    assert trajectory.header["model"] == "m"
    assert trajectory.iters[2].value == [2, 4]
    assert trajectory.iters[0].raw["stage"] == "evaluated"
    assert trajectory.n_malformed == 0


def test_coverage_repeats_modes_and_bests(tmp_path: Path) -> None:
    trajectory = load(tmp_path, STEPS)
    assert trajectory.knob_coverage() == {"lr": 3, "layers": 2}
    assert trajectory.repeat_rate() == 0.4
    assert trajectory.mode_dominance() == {"lr=0.1": 0.4, "layers=[2, 4]": 0.4, "lr=0.01": 0.2}
    assert trajectory.cumulative_best() == [1.2, 1.1, 1.1, 1.1, 1.05]
    assert trajectory.cumulative_best(baseline=1.0) == [1.0] * 5
    assert [step.iter for step in trajectory.keeps()] == [2, 5]
    best = trajectory.best()
    assert best is not None
    assert best.iter == 5


def test_fieldkits_reports_come_with_its_arguments(tmp_path: Path) -> None:
    trajectory = load(tmp_path, STEPS)
    report = trajectory.knob_coverage(["lr", "layers", "wd"])
    assert report.pop("knobs_touched_pct") == pytest.approx(66.7, abs=0.05)
    assert report == {
        "knobs_touched": 2,
        "knob_count": {"lr": 3, "layers": 2},
        "knobs_total": 3,
        "knobs_untouched": ["wd"],
    }
    assert trajectory.repeat_rate(window=2) == [
        {"first": 1, "last": 2, "n": 2, "repeats": 0, "rate": 0.0},
        {"first": 3, "last": 4, "n": 2, "repeats": 1, "rate": 0.5},
        {"first": 5, "last": 5, "n": 1, "repeats": 1, "rate": 1.0},
    ]
    assert trajectory.mode_dominance(top_n=1) == [{"knob": "lr", "value": 0.1, "n": 2}]


def test_higher_may_be_better_and_the_score_have_another_name(tmp_path: Path) -> None:
    rows = [{"iter": n, "proposal": {"knob": "k"}, "acc": score} for n, score in enumerate([0.5, 0.4, 0.7])]
    trajectory = load(tmp_path, rows, score_field="acc", lower_is_better=False)
    assert trajectory.baseline is None
    assert trajectory.cumulative_best() == [0.5, 0.5, 0.7]
    best = trajectory.best()
    assert best is not None
    assert best.score == 0.7


def test_malformed_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    bad = [
        step(6, "lr", 1, None),
        step(7, "lr", 1, "fast"),
        step(8, "lr", 1, True),
        {"iter": None, "val_bpb": 1.0},
        {"iter": 9, "val_bpb": 1.0, "proposal": "lr"},
    ]
    trajectory = load(
        tmp_path, STEPS + bad, '{"iter": 10, "val_bpb": NaN}', "[1]", "[" * 100_000, "\udcff", '{"iter": 1'
    )
    assert len(trajectory.iters) == 5
    assert trajectory.n_malformed == 10


def test_an_empty_log_knows_nothing(tmp_path: Path) -> None:
    trajectory = load(tmp_path, [])
    assert (trajectory.knob_coverage(), trajectory.mode_dominance(), trajectory.cumulative_best()) == (
        {},
        {},
        [],
    )
    assert trajectory.repeat_rate() is None
    assert trajectory.repeat_rate(window=3) == []
    assert trajectory.best() is None


def test_equal_values_repeat_and_true_is_not_one(tmp_path: Path) -> None:
    trajectory = load(
        tmp_path, [step(n, "k", value, 1.0) for n, value in enumerate([1, True, 1.0, {"a": 1}, {"a": 1.0}])]
    )
    assert trajectory.mode_dominance() == {"k=1": 0.4, 'k={"a": 1}': 0.4, "k=true": 0.2}


def test_impossible_arguments_are_refused(tmp_path: Path) -> None:
    trajectory = load(tmp_path, STEPS)
    with pytest.raises(EvaluationError, match="window is 0"):
        trajectory.repeat_rate(window=0)
    with pytest.raises(EvaluationError, match="give a list"):
        trajectory.knob_coverage("lr")
    with pytest.raises(FileNotFoundError):
        Trajectory.from_jsonl(tmp_path / "none.jsonl")
