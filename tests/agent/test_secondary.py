"""What a candidate costs beside what it scores."""

from __future__ import annotations

from typing import Any

import pytest

from agent.records import TrialRecord
from agent.secondary import compare_costs, describe_secondary
from tools.evaluation.scores import ScoreRow


def trial(seed: int, *, train_s: float = 10.0, eval_s: float = 2.0) -> TrialRecord:
    known: dict[str, Any] = {"trial_id": f"t-s{seed}", "candidate_id": "c1", "parent_id": "", "recipe": {}}
    return TrialRecord(
        **known, seed=seed, status="done", run_dir="runs/t", train_s=train_s, eval_s=eval_s, selection=0.5
    )


def answers(*tokens: int | None, seed: int = 1) -> list[ScoreRow]:
    return [ScoreRow(f"item-{n}", seed, 1.0, n_tokens=count) for n, count in enumerate(tokens)]


def costs(before: list[ScoreRow], after: list[ScoreRow], **trials: Any) -> dict[str, Any]:
    found = compare_costs(
        trials.get("base", [trial(1)]),
        trials.get("candidate", [trial(1, train_s=20.0, eval_s=3.0)]),
        base_rows=before,
        candidate_rows=after,
        level=0.95,
    )
    return {metric.name: metric for metric in found}


def test_tokens_an_answer_are_paired_by_item_over_the_seeds() -> None:
    before = [*answers(10, 20, 30, seed=1), *answers(12, 22, 32, seed=2)]
    metric = costs(before, answers(15, 24, 36))["answer_tokens"]
    assert (metric.base, metric.candidate) == (21.0, 25.0)
    # Differences of 4, 3 and 5: a mean of 4, and t(2) = 4.3027 times 1 / sqrt(3) on each side.
    assert (metric.low, metric.high) == (pytest.approx(4 - 2.4841, abs=1e-3), pytest.approx(6.4841, abs=1e-3))
    assert describe_secondary(metric) == (
        "tokens an answer: 21 -> 25 (95% interval of the difference: +1.5 to +6.5)"
    )


def test_seconds_have_no_interval_for_a_trial_is_one_number() -> None:
    found = costs(answers(1, 2), answers(1, 2))
    assert (found["training_s"].base, found["training_s"].candidate, found["training_s"].low) == (
        10,
        20,
        None,
    )
    assert describe_secondary(found["scoring_s"]) == "seconds of answering dev and selection: 2 -> 3"


@pytest.mark.parametrize("after", [answers(1, None), answers(1), answers(1, 2, 3)])
def test_what_was_not_counted_or_does_not_pair_is_left_out(after: list[ScoreRow]) -> None:
    assert "answer_tokens" not in costs(answers(1, 2), after)


def test_a_time_that_nobody_took_is_no_time_of_zero() -> None:
    assert "training_s" not in costs(answers(1, 2), answers(1, 2), base=[trial(1, train_s=0.0)])
