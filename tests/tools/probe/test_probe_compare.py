from __future__ import annotations

import json
from typing import Any

import pytest

from tests.tools.probe.test_probe_report import GOLDEN, report, row
from tools.errors import ProbeError
from tools.probe import DEFAULT_COMPARE_THRESHOLDS, CompareResult, CompareThresholds, ProbeReport
from tools.verdict import probe_guard

EXPECTED = json.loads((GOLDEN / "compare.json").read_text(encoding="utf-8"))


def golden(name: str) -> ProbeReport:
    return ProbeReport.from_json(GOLDEN / f"{name}.json")


def check_against_golden(result: CompareResult, expected: dict[str, Any]) -> None:
    """The reference rounds its aggregates before it divides them."""
    for ours, theirs in zip(result.rows, expected["rows"], strict=True):
        assert (ours.metric, ours.threshold, ours.status) == (
            theirs["metric"],
            theirs["threshold"],
            theirs["status"],
        )
        assert ours.baseline == pytest.approx(theirs["baseline"], abs=0.051)
        assert ours.current == pytest.approx(theirs["current"], abs=0.051)
        assert ours.ratio == pytest.approx(theirs["ratio"], rel=0.005)
    for name in ("all_pass", "baseline_label", "current_label", "budget_normalized", "budget_cap"):
        assert getattr(result, name) == expected[name]
    assert list(result.excluded_qids) == expected["excluded_qids"]
    assert result.per_category == {
        name: {side: pytest.approx(rate, abs=1e-4) for side, rate in sides.items()}
        for name, sides in expected["per_category"].items()
    }


def test_results_are_those_of_fieldkit_on_its_own_files() -> None:
    base, candidate = golden("baseline"), golden("candidate")
    check_against_golden(candidate.compare(base), EXPECTED["normalized"])
    check_against_golden(candidate.compare(base, normalize_budget=False), EXPECTED["raw"])
    labels = {"baseline_label": "candidate", "current_label": "baseline"}
    check_against_golden(base.compare(candidate, **labels), EXPECTED["swapped"])
    cut = candidate.with_budget(96)
    assert list(cut.excluded_qids) == EXPECTED["with_budget_96"]["excluded"]
    assert cut.overall.n == EXPECTED["with_budget_96"]["n"]


def test_equal_reports_pass() -> None:
    one = report(row("a"), row("b", None))
    result = one.compare(one)
    assert result.all_pass
    assert [(r.metric, r.ratio, r.status) for r in result.rows] == [
        ("think_presence_rate", 1.0, "PASS"),
        ("think_token_length", 1.0, "PASS"),
    ]
    assert (result.budget_normalized, result.budget_cap, result.excluded_qids, result.n_paired) == (
        False,
        None,
        (),
        2,
    )
    assert result.per_category == {"c": {"baseline_presence": 0.5, "current_presence": 0.5}}


def test_thresholds_are_the_documented_ones_and_reached_exactly_is_passed() -> None:
    assert CompareThresholds(0.90, 0.75) == DEFAULT_COMPARE_THRESHOLDS
    names = [f"q{i}" for i in range(15)]
    base = report(*(row(q, 400 if i < 10 else None) for i, q in enumerate(names)))
    # 9/15 over 10/15 is 0.9; both the rounding of fieldkit and binary floating point miss it.
    current = report(*(row(q, 300 if i < 9 else None) for i, q in enumerate(names)))
    result = current.compare(base)
    assert [r.status for r in result.rows] == ["PASS", "PASS"]
    shorter = report(*(row(q, 299 if i < 9 else None) for i, q in enumerate(names)))
    assert [r.status for r in shorter.compare(base).rows] == ["PASS", "FAIL"]
    assert not shorter.compare(base).all_pass
    assert shorter.compare(base, thresholds=CompareThresholds(0.9, 0.7)).all_pass


@pytest.mark.parametrize("threshold", [float("nan"), -0.1, float("inf")])
def test_a_threshold_is_a_finite_number(threshold: float) -> None:
    with pytest.raises(ProbeError, match="threshold think_token_length"):
        CompareThresholds(0.9, threshold)


def test_nothing_passes_on_an_empty_baseline() -> None:
    for base in (report(), report(row("a", None, error="E: x"))):
        result = report(row("a")).compare(base)
        assert {r.status for r in result.rows} == {"skip"}
        assert (result.all_pass, result.nothing_to_lose, result.n_paired) == (False, False, 0)
        assert not probe_guard(result).passed


def test_nothing_passes_on_other_questions() -> None:
    result = report(row("a"), row("b")).compare(report(row("x"), row("y")))
    assert (result.all_pass, result.nothing_to_lose, result.unpaired_qids) == (False, False, tuple("abxy"))
    assert not probe_guard(result).passed


def test_only_questions_that_both_answered_are_compared() -> None:
    base = report(row("a", 100), row("b", 100), row("easy", None), row("gone", None))
    current = report(row("a", 100), row("b", 100), row("new", 900), row("gone", None, error="E: x"))
    result = current.compare(base, thresholds=CompareThresholds(answered=0.5))
    assert [r.ratio for r in result.rows] == [1.0, 1.0]
    assert result.n_paired == 2
    assert result.unpaired_qids == ("easy", "new")
    assert result.failed_qids == ("gone",)
    assert result.all_pass


def test_a_candidate_that_fails_on_many_questions_does_not_pass_on_the_rest() -> None:
    base = report(*(row(f"q{i}") for i in range(20)))
    for n_failed, passes in ((0, True), (2, True), (3, False), (19, False)):
        rows = [row(f"q{i}", None, error="E: x") if i < n_failed else row(f"q{i}") for i in range(20)]
        result = report(*rows).compare(base)
        assert result.all_pass is passes
        assert probe_guard(result).passed is passes


def test_a_base_without_chains_has_none_to_lose_but_passes_nothing() -> None:
    base = report(row("a", None), row("b", None))
    result = base.compare(base)
    assert {r.status for r in result.rows} == {"skip"}
    assert (result.all_pass, result.nothing_to_lose) == (False, True)
    assert probe_guard(result).passed


def test_a_base_whose_chains_were_all_cut_off_is_unmeasured_and_not_without_reasoning() -> None:
    base = report(row("a", None, truncated=True), row("b", None, truncated=True))
    result = report(row("a", None), row("b", None)).compare(base)
    assert (result.all_pass, result.nothing_to_lose, result.truncated_qids) == (False, False, ("a", "b"))
    assert not probe_guard(result).passed


def test_a_metric_without_a_baseline_is_left_out_of_the_tally() -> None:
    base = report(row("a", 0), row("b", 0))
    result = base.compare(base)
    assert [r.status for r in result.rows] == ["PASS", "skip"]
    assert result.all_pass


def test_a_chain_over_the_smaller_budget_leaves_both_reports() -> None:
    base = report(row("long", 1500), row("b", 100), row("c", 100), budget=1536)
    current = report(row("long", 1700), row("b", 100), row("c", 1600), budget=2048)
    result = current.compare(base)
    assert (result.budget_normalized, result.budget_cap) == (True, 1536)
    assert result.excluded_qids == ("c", "long")
    assert [(r.baseline, r.current) for r in result.rows] == [(1.0, 1.0), (100.0, 100.0)]
    assert base.compare(current).excluded_qids == ("c", "long")
    raw = current.compare(base, normalize_budget=False)
    assert (raw.budget_normalized, raw.budget_cap, raw.excluded_qids) == (False, None, ())
    assert raw.rows[1].baseline == base.overall.think_token_length
    assert raw.rows[1].current == current.overall.think_token_length


def test_what_an_earlier_budget_left_out_of_one_is_left_out_of_both() -> None:
    base = report(row("long", 100), row("b", 100), budget=1536)
    current = report(row("long", 1700), row("b", 100), budget=2048).with_budget(1536)
    result = current.compare(base)
    assert (result.excluded_qids, result.unpaired_qids, result.n_paired) == (("long",), (), 1)
    assert (result.budget_normalized, result.budget_cap) == (True, 1536)


def test_everything_over_budget_is_no_pass() -> None:
    result = report(row("a", 900), budget=1000).compare(report(row("a", 400), budget=500))
    assert (result.all_pass, result.excluded_qids) == (False, ("a",))


def test_nan_never_passes() -> None:
    nan: Any = float("nan")
    good, bad = report(row("a")), report(row("a", 100, think_n_tok=nan))
    for current, base in ((bad, good), (good, bad)):
        result = current.compare(base)
        assert (result.rows[1].status, result.rows[1].ratio, result.all_pass) == ("FAIL", None, False)
        assert not probe_guard(result).passed


def test_lengths_of_two_ways_to_count_are_counted_again_alike() -> None:
    by_characters = report(row("a", 100))
    by_tokenizer = report(row("a", 100, think_n_tok=60), counted_by="tokenizer of m")
    assert by_tokenizer.compare(by_characters).rows[1].ratio == 1.0
    assert by_characters.compare(by_tokenizer).rows[1].ratio == 1.0
    assert by_tokenizer.compare(by_tokenizer).rows[1].current == 60.0


def test_a_result_is_a_guard_with_its_weakest_metric() -> None:
    guard = probe_guard(report(row("a", 50)).compare(report(row("a", 100))))
    assert (guard.base, guard.candidate, guard.passed) == (100.0, 50.0, False)


def test_labels_are_the_models_names_unless_given() -> None:
    one = report(row("a"))
    assert (one.compare(one).baseline_label, one.compare(one).current_label) == ("m", "m")
    named = one.compare(one, baseline_label="unsloth", current_label="nemo")
    assert (named.baseline_label, named.current_label) == ("unsloth", "nemo")


def test_results_are_plain_data() -> None:
    result = golden("candidate").compare(golden("baseline"))
    assert json.loads(json.dumps(result.per_category)) == result.per_category
