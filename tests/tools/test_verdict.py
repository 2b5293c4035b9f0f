"""The verdict: when it keeps, when it does not, and what it says."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, strategies as st

from tools.comparison import Comparison, Scores, compare, corrected_level
from tools.errors import EvidenceError
from tools.evaluation.scores import ScoreRow
from tools.verdict import Guard, Verdict, forbidden_guard, probe_guard, reach_verdict

FELL = Guard("forbidden outputs", 0.0, 0.025, False, "3 of 120 answers, where the base gave 0 of 120")
HELD = replace(FELL, candidate=0.0, passed=True)


def found(
    low: float, gain: float, high: float, level: float = 0.95, seeds: tuple[int, int] = (2, 2)
) -> Comparison:
    return Comparison(
        gain=gain,
        low=low,
        high=high,
        level=level,
        n_items=120,
        n_seeds_base=seeds[0],
        n_seeds_candidate=seeds[1],
        standard_error=0.05,
        degrees_of_freedom=100.0,
        base_mean=0.5,
        candidate_mean=0.5 + gain,
        p_value=0.5,
        seed_variance_known=min(seeds) > 1,
    )


def row(item: int, *, forbidden: bool = False, seed: int = 0) -> ScoreRow:
    return ScoreRow(item_id=f"item-{item}", seed=seed, score=0.0, forbidden=forbidden)


def test_verdict_keeps_when_the_interval_lies_above_the_minimum_gain() -> None:
    assert reach_verdict(found(0.001, 0.1, 0.2)).verdict is Verdict.KEEP
    assert reach_verdict(found(0.03, 0.1, 0.2), minimum_gain=0.02).verdict is Verdict.KEEP


def test_verdict_is_inconclusive_when_the_interval_crosses_the_minimum_gain() -> None:
    assert reach_verdict(found(-0.01, 0.1, 0.2)).verdict is Verdict.INCONCLUSIVE
    assert reach_verdict(found(0.01, 0.1, 0.2), minimum_gain=0.02).verdict is Verdict.INCONCLUSIVE


def test_verdict_discards_when_no_part_of_the_interval_exceeds_the_minimum_gain() -> None:
    assert reach_verdict(found(-0.2, -0.1, -0.01)).verdict is Verdict.DISCARD
    assert reach_verdict(found(0.001, 0.01, 0.019), minimum_gain=0.02).verdict is Verdict.DISCARD


def test_an_interval_that_ends_at_the_minimum_gain_does_not_exceed_it() -> None:
    assert reach_verdict(found(0.02, 0.1, 0.2), minimum_gain=0.02).verdict is Verdict.INCONCLUSIVE
    assert reach_verdict(found(-0.1, 0.0, 0.02), minimum_gain=0.02).verdict is Verdict.DISCARD


def test_a_guard_that_fell_turns_keep_into_discard_and_says_why() -> None:
    ruling = reach_verdict(found(0.1, 0.2, 0.3), guards=(HELD, FELL))
    assert ruling.verdict is Verdict.DISCARD
    assert ruling.vetoed
    assert ruling.guards == (HELD, FELL)
    assert "forbidden outputs fell: 3 of 120 answers, where the base gave 0 of 120: discard" in ruling.reason


def test_a_guard_that_fell_leaves_the_other_verdicts_as_they_are_and_is_told_of() -> None:
    still_open = reach_verdict(found(-0.1, 0.2, 0.3), guards=(FELL,))
    assert (still_open.verdict, still_open.vetoed) == (Verdict.INCONCLUSIVE, True)
    assert "3 of 120" in still_open.reason
    assert reach_verdict(found(-0.3, -0.2, -0.1), guards=(FELL,)).verdict is Verdict.DISCARD


def test_a_guard_that_held_changes_nothing() -> None:
    ruling = reach_verdict(found(0.1, 0.2, 0.3), guards=(HELD,))
    assert ruling.verdict is Verdict.KEEP
    assert not ruling.vetoed
    assert "forbidden" not in ruling.reason


def test_the_reason_is_one_plain_sentence_in_points() -> None:
    level = corrected_level(0.95, 3)
    assert reach_verdict(found(0.11, 0.214, 0.318, level), n_candidates=3).reason == (
        "selection rose 21.4 points (95% interval, corrected for 3 candidates: 11.0 to 31.8; "
        "120 items, 2 seeds each): keep"
    )
    twice = corrected_level(0.9, 3, 2)
    assert reach_verdict(
        found(-0.05, -0.02, 0.01, twice), n_candidates=3, n_looks=2, metric="dev"
    ).reason == (
        "dev fell 2.0 points (90% interval, corrected for 3 candidates and 2 looks: -5.0 to 1.0; "
        "120 items, 2 seeds each): inconclusive"
    )
    assert reach_verdict(found(-0.0001, -0.0001, 0.01), minimum_gain=0.02).reason == (
        "selection did not move (95% interval: 0.0 to 1.0; 120 items, 2 seeds each); "
        "more than 2.0 are asked for: discard"
    )


def test_the_reason_says_that_one_seed_leaves_its_luck_out() -> None:
    assert "1 seed each, so the luck of a seed is not in the interval" in (
        reach_verdict(found(0.1, 0.2, 0.3, seeds=(1, 1))).reason
    )
    mixed = reach_verdict(found(0.1, 0.2, 0.3, seeds=(1, 3))).reason
    assert "seeds: 3 of the candidate, 1 of the base, so the luck" in mixed
    assert "luck" not in reach_verdict(found(0.1, 0.2, 0.3, seeds=(2, 3))).reason


def test_an_interval_that_was_not_corrected_for_so_many_is_refused() -> None:
    with pytest.raises(EvidenceError, match="was not corrected for 30 candidates and 1 looks; give compare"):
        reach_verdict(found(0.1, 0.2, 0.3), n_candidates=30)
    with pytest.raises(EvidenceError, match="was not corrected for 0 candidates"):
        reach_verdict(found(0.1, 0.2, 0.3), n_candidates=0)


@pytest.mark.parametrize("minimum_gain", [-0.01, 1.0, float("nan")])
def test_a_minimum_gain_that_is_no_gain_is_refused(minimum_gain: float) -> None:
    with pytest.raises(EvidenceError, match="allowed: from 0 and below 1"):
        reach_verdict(found(0.1, 0.2, 0.3), minimum_gain=minimum_gain)


@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=8, max_size=8), min_size=1, max_size=3),
    st.randoms(use_true_random=False),
    st.floats(0.5, 0.999),
)
def test_verdict_never_keeps_when_the_means_are_equal(
    values: list[list[float]], rng: object, level: float
) -> None:
    shuffled = [list(line) for line in values]
    for line in shuffled:
        rng.shuffle(line)  # type: ignore[attr-defined]
    items = tuple("abcdefgh")
    base = Scores(items, tuple(range(len(values))), tuple(map(tuple, values)))
    candidate = Scores(items, tuple(range(len(values))), tuple(map(tuple, shuffled)))
    assert reach_verdict(compare(base, candidate, level=level)).verdict is not Verdict.KEEP


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.99), st.floats(0, 0.99))
def test_asking_for_more_never_turns_a_verdict_to_the_better(
    gain: float, below: float, above: float, one: float, other: float
) -> None:
    order = (Verdict.DISCARD, Verdict.INCONCLUSIVE, Verdict.KEEP)
    comparison = found(max(-1.0, gain - below), gain, min(1.0, gain + above))
    less, more = (reach_verdict(comparison, minimum_gain=minimum).verdict for minimum in sorted((one, other)))
    assert order.index(more) <= order.index(less)


def test_a_verdict_is_a_word_in_text_and_in_json() -> None:
    assert f"{Verdict.KEEP}" == "keep"
    assert json.dumps({"verdict": Verdict.INCONCLUSIVE}) == '{"verdict": "inconclusive"}'


def test_any_rise_of_forbidden_outputs_fails_the_guard() -> None:
    base = [row(item, forbidden=item < 2) for item in range(100)]
    same = [row(item, forbidden=item >= 98) for item in range(100)]
    more = [row(item, forbidden=item < 3) for item in range(100)]
    assert forbidden_guard(base, same).passed
    assert forbidden_guard(base, same[:50]).passed
    guard = forbidden_guard(base, more)
    assert (guard.base, guard.candidate, guard.passed) == (0.02, 0.03, False)
    assert guard.detail == "3 of 100 answers, where the base gave 2 of 100"


def test_equal_rates_over_different_counts_pass_whatever_the_rounding() -> None:
    for tenths in range(1, 10):
        base = [row(item, forbidden=item < tenths) for item in range(10)]
        candidate = [row(item, forbidden=item < tenths, seed=seed) for item in range(10) for seed in range(3)]
        assert forbidden_guard(base, candidate).passed
        assert forbidden_guard(candidate, base).passed


def test_a_rate_of_nothing_is_unknown() -> None:
    with pytest.raises(EvidenceError, match="the candidate has no score rows"):
        forbidden_guard([row(0)], [])
    with pytest.raises(EvidenceError, match="the base has no score rows"):
        forbidden_guard([], [row(0)])


@dataclass(frozen=True)
class Metric:
    metric: str
    baseline: float | None
    current: float | None
    ratio: float | None
    threshold: float


@dataclass(frozen=True)
class Probe:
    all_pass: bool
    rows: tuple[Metric, ...]
    nothing_to_lose: bool = False


def test_the_probe_guard_follows_the_probe_and_shows_its_weakest_metric() -> None:
    presence = Metric("think_presence_rate", 1.0, 0.95, 0.95, 0.90)
    length = Metric("think_token_length", 400.0, 200.0, 0.5, 0.75)
    guard = probe_guard(Probe(False, (presence, length)))
    assert (guard.name, guard.base, guard.candidate, guard.passed) == ("reasoning probe", 400.0, 200.0, False)
    assert guard.detail == (
        "think_presence_rate at 95% of the base, 90% needed; "
        "think_token_length at 50% of the base, 75% needed"
    )
    assert probe_guard(Probe(True, (presence,))).passed


def test_a_base_without_reasoning_has_none_to_lose() -> None:
    skipped = Metric("think_presence_rate", 0.0, 0.0, None, 0.9)
    guard = probe_guard(Probe(False, (skipped,), nothing_to_lose=True))
    assert (guard.base, guard.candidate, guard.passed) == (None, None, True)
    assert guard.detail == "the base shows nothing of it that could be lost"


def test_a_probe_that_measured_nothing_or_too_little_does_not_pass() -> None:
    skipped = Metric("think_presence_rate", 0.0, 0.0, None, 0.9)
    guard = probe_guard(Probe(False, (skipped,)), name="knowledge probe")
    assert (guard.name, guard.passed) == ("knowledge probe", False)
    assert guard.detail.startswith("nothing was measured: too few questions were answered on both sides")
    half = probe_guard(Probe(False, (Metric("think_presence_rate", 1.0, 1.0, 1.0, 0.9),)))
    assert not half.passed
    assert half.detail.endswith("90% needed; too few questions were answered on both sides")
