"""pass@k: exact, for any number of samples."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tools.errors import EvaluationError
from tools.evaluation import PassAtK, pass_at_k_estimator


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_the_estimate_is_the_exact_fraction_rounded_once(case: tuple[int, int, int]) -> None:
    n, c, k = case
    assert pass_at_k_estimator(n, c, k) == float(1 - Fraction(math.comb(n - c, k), math.comb(n, k)))


@pytest.mark.parametrize(("n", "c", "k"), [(6, 2, 3), (7, 0, 2), (5, 5, 1), (8, 3, 6)])
def test_the_estimate_is_the_share_of_draws_that_hold_a_pass(n: int, c: int, k: int) -> None:
    draws = list(itertools.combinations(range(n), k))
    assert pass_at_k_estimator(n, c, k) == sum(min(draw) < c for draw in draws) / len(draws)


def test_the_numbers_of_fieldkit() -> None:
    assert pass_at_k_estimator(10, 3, 5) == pytest.approx(0.9166666666666666)
    assert pass_at_k_estimator(200, 7, 10) == pytest.approx(0.3055988116177335)


def test_large_n_loses_no_digit() -> None:
    assert pass_at_k_estimator(10**9, 1, 1) == 1e-9
    assert pass_at_k_estimator(10**9, 3, 1) == 3e-9
    assert pass_at_k_estimator(10**6, 1, 500_000) == 0.5
    assert pass_at_k_estimator(10**6, 500_000, 500_000) == 1.0
    assert pass_at_k_estimator(10**6, 0, 10**6) == 0.0
    n, c, k = 200_000, 2_000, 2_000
    exact = 1 - Fraction(math.perm(n - c, k), math.perm(n, k))
    assert pass_at_k_estimator(n, c, k) == exact.numerator / exact.denominator


@pytest.mark.parametrize(
    "case", [(5, 0, 6), (5, 6, 1), (5, -1, 1), (5, 1, 0), (0, 0, 1), (5, 2.0, 1), (5, True, 1)]
)
def test_an_impossible_case_is_refused(case: Any) -> None:
    with pytest.raises(EvaluationError):
        pass_at_k_estimator(*case)


PROBLEMS = [{"task_id": "a"}, {"task_id": "b"}]
SAMPLES = [["x", "y", "z"], ["x", "x", "z"]]


def test_samples_are_graded_and_averaged_over_problems() -> None:
    result = PassAtK(ks=(1, 2)).score(PROBLEMS, SAMPLES, lambda text, _: text == "x")
    assert result.pass_at == pytest.approx({1: 0.5, 2: 5 / 6})
    assert result.per_task == [{"task_id": "a", "n": 3, "passed": 1}, {"task_id": "b", "n": 3, "passed": 2}]
    assert (result.n_problems, result.samples_per_problem) == (2, 3)
    assert result.to_dict()["pass_at"]["pass@2"] == pytest.approx(5 / 6, rel=1e-15)
    assert result.report() == "pass@1 0.5000, pass@2 0.8333 (2 problems, 3 samples each)"


def test_extras_join_a_problems_row() -> None:
    result = PassAtK().score(
        [{"id": 7}],
        [["x"]],
        lambda text, problem: text == "x" and problem["id"] == 7,
        extras_fn=lambda _, drawn: {"tail": drawn[0]},
        task_id_field="id",
    )
    assert result.per_task == [{"task_id": "7", "n": 1, "passed": 1, "tail": "x"}]
    with pytest.raises(EvaluationError, match="passed"):
        PassAtK().score(PROBLEMS[:1], [["x"]], lambda *_: True, extras_fn=lambda *_: {"passed": 9})


def test_rows_that_were_graded_before_need_no_grader() -> None:
    graded = PassAtK(ks=(1, 2)).score(PROBLEMS, SAMPLES, lambda text, _: text == "x")
    assert PassAtK(ks=(1, 2)).from_rows(graded.to_dict()["per_task"]) == graded
    assert PassAtK(ks=(1, 2)).from_rows([("a", 3, 1), ("b", 3, 2)]) == graded


def test_no_problem_gives_no_estimate() -> None:
    assert PassAtK(ks=(1, 8)).score([], [], lambda *_: True).pass_at == {1: None, 8: None}
    assert PassAtK().from_rows([]).report() == "pass@1 — (0 problems, 0 samples each)"


@pytest.mark.parametrize(
    ("ks", "samples", "message"),
    [
        ((1,), [["x"]], "must match"),
        ((1,), [["x"], ["x", "y"]], "same number"),
        ((2,), [["x"], ["y"]], "1 to 1"),
        ((0,), [["x"], ["y"]], "ks holds"),
        ((), [["x"], ["y"]], "empty"),
        ((1,), ["xy", "xz"], "list of texts"),
    ],
)
def test_samples_and_ks_must_fit(ks: Any, samples: Any, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        PassAtK(ks).score(PROBLEMS, samples, lambda *_: True)


@pytest.mark.parametrize("rows", [[("a", 3, 4)], [("a", 3, 1), ("b", 2, 1)], [{"task_id": "a", "n": 3}]])
def test_rows_must_hold_counts_that_fit(rows: Any) -> None:
    with pytest.raises(EvaluationError):
        PassAtK().from_rows(rows)
