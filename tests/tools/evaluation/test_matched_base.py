"""Two rollouts on the same tasks; the deltas are those of fieldkit 0.34.1 for the same rows."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from tools.comparison import Scores, compare
from tools.errors import EvidenceError
from tools.evaluation import GroupStats, MatchedBaseComparison
from tools.evaluation.paired_ratio import Part, ratio_gain


def row(task: str, passed: bool, n_passed: int, n_total: int, *kinds: bool, **more: Any) -> dict[str, Any]:
    assertions = [{"kind": "file_exists", "passed": kind} for kind in kinds]
    grade = {"passed": passed, "n_passed": n_passed, "n_total": n_total, "assertions": assertions}
    return {
        "task_id": task,
        "final_grade": grade,
        "stopped": "done",
        "n_turns": 5,
        "wall_seconds": 2.0,
    } | more


BASE = [
    row("synth-a-b-01", True, 3, 3, True),
    row("synth-a-b-02", False, 1, 3, False),
    row("synth-c-03", False, 0, 2, stopped="max_turns", n_turns=9, wall_seconds=8.0),
]
CANDIDATE = [
    row("synth-a-b-01", True, 3, 3, True),
    row("synth-a-b-02", True, 3, 3, True, n_turns=3),
    row("synth-c-03", False, 1, 2, n_turns=6, wall_seconds=3.0),
]


def test_one_rollout_is_counted() -> None:
    stats = MatchedBaseComparison().stats(BASE)
    assert stats == GroupStats(
        n=3,
        n_passed=1,
        n_assertions_passed=4,
        n_assertions_total=8,
        by_group={
            "a-b": {"n": 2, "passed": 1, "n_assertions_passed": 4, "n_assertions_total": 6},
            "c": {"n": 1, "passed": 0, "n_assertions_passed": 0, "n_assertions_total": 2},
        },
        by_kind={"file_exists": {"n": 2, "passed": 1}},
        stops={"done": 2, "max_turns": 1},
        mean_turns=19 / 3,
        mean_wall=4.0,
    )
    assert stats.task_pass_pct() == 100 / 3
    assert stats.assertion_pass_pct() == 50.0


def test_deltas_are_fieldkits_and_unrounded() -> None:
    result = MatchedBaseComparison().compare(BASE, CANDIDATE)
    assert result.overall_delta == pytest.approx(
        {
            "delta_task_pp": 100 / 3,
            "delta_assertion_pp": 37.5,
            "delta_mean_turns": -5 / 3,
            "delta_mean_wall": -5 / 3,
        }
    )
    assert [(r["group"], r["n"], r["delta_task_pp"]) for r in result.per_group] == [
        ("a-b", 2, 50.0),
        ("c", 1, 0.0),
    ]
    assert result.per_group[0]["delta_assertion_pp"] == pytest.approx(100 / 3)
    assert result.per_kind[0]["delta_pp"] == 50.0
    assert result.n_tasks == 3
    assert result.unmatched_baseline == result.unmatched_candidate == ()


def test_the_task_interval_is_that_of_the_paired_comparison() -> None:
    rng = random.Random(3)
    outcomes = [(rng.random() < 0.4, rng.random() < 0.7) for _ in range(40)]
    tasks = tuple(f"t{i:02d}" for i in range(40))
    rows = [[row(t, pair[side], 0, 0) for t, pair in zip(tasks, outcomes, strict=True)] for side in (0, 1)]
    result = MatchedBaseComparison(level=0.9).compare(*rows)
    scores = [Scores(tasks, (0,), (tuple(float(pair[side]) for pair in outcomes),)) for side in (0, 1)]
    expected = compare(*scores, level=0.9)
    assert result.overall_delta["delta_task_pp"] == pytest.approx(100 * expected.gain)
    assert result.overall_interval["delta_task_pp"] == pytest.approx(
        (100 * expected.low, 100 * expected.high)
    )


def test_intervals_stand_beside_deltas_and_one_task_has_none() -> None:
    result = MatchedBaseComparison().compare(BASE, CANDIDATE)
    for key, delta in result.overall_delta.items():
        interval = result.overall_interval[key]
        assert interval is not None
        assert delta is not None
        assert interval[0] < delta < interval[1]
    assert result.per_group[0]["interval_task_pp"] is not None
    assert result.per_group[1]["interval_task_pp"] is None
    assert result.per_kind[0]["interval_pp"] is not None


def test_agreement_of_all_tasks_is_no_certainty() -> None:
    rows = [row(f"t{i}", True, 1, 1) for i in range(5)]
    interval = MatchedBaseComparison().compare(rows, rows).overall_interval["delta_task_pp"]
    assert interval is not None
    assert interval[0] < -20
    assert interval[1] > 20


def test_means_without_a_spread_have_no_interval() -> None:
    rows, slower = (
        [row(f"t{i}", True, 1, 1, wall_seconds=0.1 * i + more) for i in range(5)] for more in (0, 0.3)
    )
    result = MatchedBaseComparison().compare(rows, slower)
    assert result.overall_delta["delta_mean_wall"] == pytest.approx(0.3)
    assert result.overall_interval["delta_mean_wall"] is None
    assert result.overall_interval["delta_mean_turns"] is None
    assert "| mean turns | 5.00 | 5.00 | +0.00 | — |" in result.report()


def test_a_ratio_of_sums_covers_its_truth_as_often_as_it_says() -> None:
    rng = random.Random(11)
    hits = 0
    for _ in range(400):
        parts = []
        for _ in range(40):
            n = rng.randint(1, 6)
            ease = rng.random()
            base = sum(rng.random() < 0.6 * ease for _ in range(n))
            candidate = sum(rng.random() < 0.6 * ease + 0.3 for _ in range(n))
            parts.append(Part(base, n, candidate, n))
        interval = ratio_gain(parts, level=0.9, is_rate=True).interval
        assert interval is not None
        hits += interval[0] <= 0.3 <= interval[1]
    assert 0.86 <= hits / 400 <= 0.96


def test_tasks_of_one_rollout_alone_are_named_and_in_no_number() -> None:
    extra = row("synth-a-b-09", True, 9, 9)
    nameless = {"final_grade": {"passed": True}}
    result = MatchedBaseComparison().compare(
        [*BASE, nameless], [extra, *CANDIDATE, row("synth-z-10", True, 1, 1)]
    )
    plain = MatchedBaseComparison().compare(BASE, CANDIDATE)
    assert result.unmatched_baseline == ("",)
    assert result.unmatched_candidate == ("synth-a-b-09", "synth-z-10")
    assert result.overall_delta == plain.overall_delta
    assert result.candidate == plain.candidate
    assert "**Only the candidate has 2 tasks, left out:** synth-a-b-09, synth-z-10" in result.report()
    assert "**Only the base has 1 tasks, left out:** (no task_id)" in result.report()


@pytest.mark.parametrize("rows", [([], []), (BASE, []), (BASE, [row("synth-x-77", True, 1, 1)])])
def test_rollouts_without_a_common_task_are_refused(rows: Any) -> None:
    with pytest.raises(EvidenceError, match="no task is in both"):
        MatchedBaseComparison().compare(*rows)


def test_what_is_unknown_is_none_or_counted() -> None:
    bare = [
        {"task_id": "synth-a-01"},
        {"task_id": "synth-a-02", "n_turns": math.nan, "final_grade": {"passed": 1}},
    ]
    result = MatchedBaseComparison().compare(bare, bare)
    stats = result.baseline
    assert (stats.n, stats.n_passed, stats.n_ungraded, stats.stops) == (2, 0, 2, {"?": 2})
    assert (stats.mean_turns, stats.mean_wall, stats.assertion_pass_pct()) == (None, None, None)
    assert result.overall_delta["delta_mean_turns"] is None
    assert result.overall_delta["delta_assertion_pp"] is None
    assert result.overall_delta["delta_task_pp"] == 0.0
    assert "| mean turns | — | — | — | — |" in result.report()
    assert "**2 tasks of the base have no grade** and count as failed." in result.report()
    assert MatchedBaseComparison().stats([]).task_pass_pct() is None


def test_unknown_times_do_not_pull_a_mean_to_zero() -> None:
    rows = [
        row("a", True, 1, 1, n_turns=4),
        row("b", True, 1, 1, n_turns=None),
        row("c", True, 1, 1, n_turns=6),
    ]
    assert MatchedBaseComparison().stats(rows).mean_turns == 5.0


def test_samples_of_a_task_share_its_place_in_the_pairing() -> None:
    once = MatchedBaseComparison().compare(BASE, CANDIDATE)
    thrice = MatchedBaseComparison().compare(BASE * 3, CANDIDATE * 3)
    assert thrice.n_tasks == 3
    assert thrice.baseline.n == 9
    assert thrice.overall_delta == pytest.approx(once.overall_delta)
    assert thrice.overall_interval["delta_task_pp"] == pytest.approx(once.overall_interval["delta_task_pp"])


def test_groups_are_the_callers_to_name() -> None:
    by_first = MatchedBaseComparison(group_extractor=lambda task_id: task_id[:5])
    assert [r["group"] for r in by_first.compare(BASE, CANDIDATE).per_group] == ["synth"]
    none = MatchedBaseComparison(group_extractor=None).compare(BASE, CANDIDATE)
    assert none.per_group == []
    assert none.baseline.by_group == {}
    stats = MatchedBaseComparison().stats(
        [row("synth-data-science-researcher-03", True, 1, 1), row("x/0", True, 1, 1)]
    )
    assert set(stats.by_group) == {"data-science-researcher", "x/0"}


def test_files_are_read_and_their_bad_lines_counted(tmp_path: Path) -> None:
    base, candidate = tmp_path / "base.jsonl", tmp_path / "candidate.jsonl"
    base.write_text("".join(json.dumps(r) + "\n" for r in BASE) + '{"task_id": "torn', encoding="utf-8")
    candidate.write_text("\n\n".join(map(json.dumps, CANDIDATE)), encoding="utf-8")
    result = MatchedBaseComparison().compare(base, str(candidate))
    assert result.overall_delta == MatchedBaseComparison().compare(BASE, CANDIDATE).overall_delta
    assert (result.baseline.n_malformed, result.candidate.n_malformed) == (1, 0)


def test_the_dict_is_json_and_the_report_markdown() -> None:
    result = MatchedBaseComparison().compare(BASE, CANDIDATE)
    value = result.to_dict()
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert {"baseline", "candidate", "overall_delta", "per_group", "per_kind"} <= value.keys()
    assert value["baseline"]["task_pass_pct"] == 100 / 3
    report = result.report()
    assert "| task pass | 1/3 (33.3%) | 2/3 (66.7%) | +33.3 pp |" in report
    assert "| per-assertion | 4/8 (50.0%) | 7/8 (87.5%) | +37.5 pp |" in report
    assert "| mean turns | 6.33 | 4.67 | -1.67 |" in report
    tables = [line for line in report.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {6, 11}


def test_a_groups_name_cannot_leave_its_cell() -> None:
    hostile = MatchedBaseComparison(group_extractor=lambda _: "a|b\n## heading")
    report = hostile.compare(BASE, CANDIDATE).report()
    assert "| a\\|b ## heading | 3 |" in report


def test_a_level_outside_its_range_is_refused() -> None:
    with pytest.raises(EvidenceError, match="level"):
        MatchedBaseComparison(level=95).compare(BASE, CANDIDATE)
