"""The paired comparison: what its interval holds, and what it refuses to say."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import assume, given, strategies as st

from tools.comparison import Comparison, Scores, compare, corrected_level, interval
from tools.errors import EvidenceError
from tools.evaluation.scores import ScoreRow
from tools.student_t import t_quantile

LEVELS = st.floats(0.5, 0.999)
ROUNDING = 1e-12  # two levels may be one bit apart


def table(*rows: list[float], first_seed: int = 0) -> Scores:
    items = tuple(f"item-{number:03d}" for number in range(len(rows[0])))
    return Scores(items, tuple(range(first_seed, first_seed + len(rows))), tuple(map(tuple, rows)))


def score_rows(scores: Scores) -> list[ScoreRow]:
    return [
        ScoreRow(item_id=item, seed=seed, score=value)
        for seed, row in zip(scores.seeds, scores.values, strict=True)
        for item, value in zip(scores.item_ids, row, strict=True)
    ]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Scores, Scores]:
    n_items = draw(st.integers(2, 12))
    value = draw(st.sampled_from([st.sampled_from([0.0, 1.0]), st.floats(0, 1)]))
    row = st.lists(value, min_size=n_items, max_size=n_items)
    base, candidate = (draw(st.lists(row, min_size=1, max_size=3)) for _ in range(2))
    return table(*base), table(*candidate)


@given(pairs(), LEVELS)
def test_turning_the_two_around_turns_the_gain_and_its_interval_around(
    pair: tuple[Scores, Scores], level: float
) -> None:
    there, back = compare(*pair, level=level), compare(*reversed(pair), level=level)
    assert back.gain == -there.gain
    assert (back.low, back.high) == (-there.high, -there.low)
    assert (back.standard_error, back.p_value) == (there.standard_error, there.p_value)


@given(pairs(), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(pair: tuple[Scores, Scores], rng: random.Random) -> None:
    shuffled = []
    for scores in pair:
        rows = score_rows(scores)
        rng.shuffle(rows)
        shuffled.append(Scores.from_rows(rows))
    assert compare(*shuffled) == compare(*pair)
    backwards = Scores(
        pair[1].item_ids[::-1], pair[1].seeds[::-1], tuple(row[::-1] for row in pair[1].values[::-1])
    )
    assert compare(pair[0], backwards) == compare(*pair)


@given(pairs(), LEVELS, LEVELS)
def test_a_higher_level_gives_an_interval_around_that_of_a_lower(
    pair: tuple[Scores, Scores], one: float, other: float
) -> None:
    lower, higher = (compare(*pair, level=level) for level in sorted((one, other)))
    assert lower.low <= lower.gain <= lower.high
    assert higher.low <= lower.low + ROUNDING
    assert lower.high <= higher.high + ROUNDING
    narrow, wide = (interval(pair[0], level) for level in sorted((one, other)))
    assert narrow.low <= narrow.mean <= narrow.high
    assert wide.low <= narrow.low + ROUNDING
    assert narrow.high <= wide.high + ROUNDING


@given(pairs(), LEVELS)
def test_an_interval_always_has_a_width_and_stays_on_the_scale(
    pair: tuple[Scores, Scores], level: float
) -> None:
    found = compare(*pair, level=level)
    assert -1.0 <= found.low < found.high <= 1.0
    assert found.standard_error > 0.0
    assert 0.0 <= found.p_value <= 1.0
    own = interval(pair[0], level)
    assert 0.0 <= own.low < own.high <= 1.0
    assert found.gain == pytest.approx(found.candidate_mean - found.base_mean, abs=1e-12)


@given(pairs(), LEVELS)
def test_the_p_value_and_the_interval_agree(pair: tuple[Scores, Scores], level: float) -> None:
    found = compare(*pair, level=level)
    assume(abs(found.p_value - (1 - level)) > 1e-9)
    assume(0 not in (found.low, found.high))
    raw_excludes_zero = found.low > 0.0 or found.high < 0.0
    if raw_excludes_zero:
        assert found.p_value < 1 - level
    elif level >= 0.9:
        assert found.p_value > 1 - level


def test_one_seed_of_right_and_wrong_is_the_adjusted_wald_interval() -> None:
    n, won, lost = 40, 9, 2
    base = table([0.0] * won + [1.0] * lost + [1.0] * (n - won - lost))
    candidate = table([1.0] * won + [0.0] * lost + [1.0] * (n - won - lost))
    found = compare(base, candidate)
    # Bonett and Price: one more won and one more lost, of two more items.
    p_won, p_lost, size = (won + 1) / (n + 2), (lost + 1) / (n + 2), n + 2
    variance = (p_won + p_lost - (p_won - p_lost) ** 2) / (size - 1)
    reach = t_quantile(0.95, size - 1) * math.sqrt(variance)
    assert found.gain == pytest.approx(7 / 40)
    assert found.standard_error == pytest.approx(math.sqrt(variance))
    assert (found.low, found.high) == pytest.approx((p_won - p_lost - reach, p_won - p_lost + reach))
    assert found.degrees_of_freedom == 41
    assert found.seed_variance_known is False


def test_no_item_that_differs_is_no_proof_that_none_can() -> None:
    same = table([1.0] * 50 + [0.0] * 50)
    found = compare(same, same)
    assert (found.gain, found.p_value) == (0.0, 1.0)
    assert -found.low == found.high == pytest.approx(0.0277, abs=1e-3)
    perfect = interval(table([1.0] * 100))
    assert perfect.mean == perfect.high == 1.0
    assert 0.93 < perfect.low < 0.97


def test_seeds_that_disagree_widen_the_interval_by_their_own_spread() -> None:
    base = table([0.0] * 100, [0.0] * 100, [0.0] * 100)
    agreeing = table(*[[1.0] * 30 + [0.0] * 70] * 3)
    differing = table([1.0] * 10 + [0.0] * 90, [1.0] * 30 + [0.0] * 70, [1.0] * 50 + [0.0] * 50)
    calm, wild = compare(base, agreeing), compare(base, differing)
    assert calm.gain == pytest.approx(wild.gain) == pytest.approx(0.3)
    assert calm.seed_variance_known
    # Seed means 0.1, 0.3, 0.5: variance 0.04, over three seeds, beside the items' part.
    items = [1.0] * 10 + [2 / 3] * 20 + [1 / 3] * 20 + [0.0] * 50 + [1.0, -1.0]
    mean = sum(items) / 102
    item_part = sum((value - mean) ** 2 for value in items) / 101 / 102
    assert wild.standard_error**2 == pytest.approx(item_part + 0.04 / 3)
    joined = (item_part + 0.04 / 3) ** 2 / (item_part**2 / 101 + (0.04 / 3) ** 2 / 2)
    assert wild.degrees_of_freedom == pytest.approx(joined)
    assert calm.low > 0.15
    assert wild.low < 0.0 < wild.high


@pytest.mark.parametrize(
    ("n_base", "n_candidate", "most"), [(2, 2, 6.0), (3, 3, 24.0), (2, 5, 6.0), (1, 3, 24.0)]
)
def test_few_seeds_that_agree_do_not_pass_for_many(n_base: int, n_candidate: int, most: float) -> None:
    found = compare(table(*[[0.0] * 100] * n_base), table(*[[1.0, 0.0] * 50] * n_candidate))
    assert found.degrees_of_freedom == most


def test_the_luck_of_a_single_seed_is_left_open_not_taken_for_none() -> None:
    two, one = table([0.0, 1.0], [1.0, 1.0]), table([1.0, 1.0], first_seed=5)
    for base, candidate in ((two, one), (one, two), (one, one)):
        found = compare(base, candidate)
        assert found.seed_variance_known is False
        assert (found.n_seeds_base, found.n_seeds_candidate) == (base.n_seeds, candidate.n_seeds)
    assert compare(two, two).seed_variance_known is True
    assert interval(one).seed_variance_known is False
    assert interval(two).seed_variance_known is True


def test_different_items_are_named() -> None:
    base, candidate = table([0.0] * 3), table([0.0] * 3)
    other = replace(candidate, item_ids=("item-000", "item-001", "stray"))
    with pytest.raises(
        EvidenceError, match="only the base has 'item-002'; only the candidate has 'stray'; score both"
    ):
        compare(base, other)
    many = table([0.0] * 12)
    with pytest.raises(EvidenceError, match="'item-007' and 4 more; score both"):
        compare(base, many)


def test_one_item_has_no_interval() -> None:
    one = table([1.0], [0.0])
    with pytest.raises(EvidenceError, match="one item has no interval"):
        compare(one, one)
    with pytest.raises(EvidenceError, match="one item has no interval"):
        interval(one)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1, 1.1, None, "1"])
def test_a_value_that_is_no_score_is_refused_with_its_item(bad: float) -> None:
    with pytest.raises(EvidenceError, match=r"seed 0: no score in \[0, 1\] for items 'item-001'"):
        table([0.0, bad, 1.0])


def test_a_ragged_repeated_or_empty_table_is_refused() -> None:
    with pytest.raises(EvidenceError, match="there are no scores"):
        Scores.from_rows([])
    with pytest.raises(EvidenceError, match="seed 1: 1 scores for 2 items"):
        Scores(("a", "b"), (0, 1), ((0.0, 1.0), (0.0,)))
    with pytest.raises(EvidenceError, match="1 rows of scores for 2 seeds"):
        Scores(("a", "b"), (0, 1), ((0.0, 1.0),))
    with pytest.raises(EvidenceError, match="items scored twice: 'a'"):
        Scores(("a", "a"), (0,), ((0.0, 1.0),))
    with pytest.raises(EvidenceError, match="seeds scored twice: '3'"):
        Scores(("a",), (3, 3), ((0.0,), (1.0,)))


def test_rows_that_do_not_fill_the_table_are_refused() -> None:
    rows = score_rows(table([0.0, 1.0], [1.0, 1.0]))
    with pytest.raises(EvidenceError, match="seed 1 has no score for items 'item-001'; evaluate it again"):
        Scores.from_rows(rows[:-1])
    with pytest.raises(EvidenceError, match="item 'item-001' is scored twice for seed 1"):
        Scores.from_rows([*rows, rows[-1]])
    assert Scores.from_rows(rows).mean == 0.75


def test_the_level_is_shared_out_over_candidates_and_looks() -> None:
    assert corrected_level(0.95, 1) == pytest.approx(0.95)
    assert corrected_level(0.95, 5) == pytest.approx(0.99)
    assert corrected_level(0.9, 5, 2) == pytest.approx(0.99)


@pytest.mark.parametrize(
    ("level", "n_candidates", "n_looks"), [(0.0, 1, 1), (1.0, 1, 1), (0.95, 0, 1), (0.95, 1, 0)]
)
def test_a_correction_for_nothing_is_refused(level: float, n_candidates: int, n_looks: int) -> None:
    with pytest.raises(EvidenceError, match="allowed"):
        corrected_level(level, n_candidates, n_looks)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0, math.nan])
def test_a_level_that_is_no_probability_is_refused(level: float) -> None:
    same = table([0.0, 1.0])
    with pytest.raises(EvidenceError, match=r"allowed: above 0 and below 1, e\.g\. 0\.95"):
        compare(same, same, level=level)
    with pytest.raises(EvidenceError, match="allowed"):
        interval(same, level)


def misses(n_seeds: int, luck: float, rounds: int = 400) -> float:
    """Return how often the interval of two equal recipes excludes 0: 60 coins, tilted per seed."""
    rng = random.Random(5)

    def scores() -> Scores:
        tilts = [min(1.0, max(0.0, 0.5 + rng.gauss(0.0, luck))) for _ in range(n_seeds)]
        return table(*[[float(rng.random() < tilt) for _ in range(60)] for tilt in tilts])

    def found() -> Comparison:
        return compare(scores(), scores(), level=0.9)

    return sum(not one.low <= 0.0 <= one.high for one in (found() for _ in range(rounds))) / rounds


def test_equal_recipes_are_told_apart_no_more_often_than_promised() -> None:
    # Three standard errors above 10 percent of 400 rounds.
    assert 0.02 < misses(n_seeds=1, luck=0.0) < 0.145
    assert misses(n_seeds=2, luck=0.05) < 0.145
    assert misses(n_seeds=3, luck=0.05) < 0.145
    # What one seed cannot know shows here: the reason why further ones are bought.
    assert misses(n_seeds=1, luck=0.1) > 0.2
