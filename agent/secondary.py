"""Secondary metrics: what a candidate costs beside what it scores. No verdict rests on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Final

from agent.records import SecondaryRecord, TrialRecord
from tools.evaluation.scores import ScoreRow
from tools.student_t import t_quantile

__all__ = ["compare_costs", "describe_secondary"]

_NAMES: Final = {
    "answer_tokens": "tokens an answer",
    "scoring_s": "seconds of answering dev and selection",
    "training_s": "seconds of training a seed",
}


def compare_costs(
    base: Sequence[TrialRecord],
    candidate: Sequence[TrialRecord],
    *,
    base_rows: Sequence[ScoreRow],
    candidate_rows: Sequence[ScoreRow],
    level: float,
) -> tuple[SecondaryRecord, ...]:
    """Return the metrics that both sides have, over the seeds that they share.

    Tokens an answer is what serving it costs, whatever the machine, and has an interval, paired by
    item. The seconds are of this machine and its load, one number a trial, and have none.

    Args:
        base: The incumbent's trials.
        candidate: The candidate's trials, on the same seeds.
        base_rows: Score rows of the incumbent's trials on one split.
        candidate_rows: Score rows of the candidate's on the same.
        level: Two-sided confidence of the intervals, in (0, 1).
    """
    found = [
        _tokens(base_rows, candidate_rows, level),
        _seconds("scoring_s", [trial.eval_s for trial in base], [trial.eval_s for trial in candidate]),
        _seconds("training_s", [trial.train_s for trial in base], [trial.train_s for trial in candidate]),
    ]
    return tuple(metric for metric in found if metric is not None)


def describe_secondary(metric: SecondaryRecord) -> str:
    """Return a metric in words: both values and, where it has one, the interval of their difference."""
    said = f"{_NAMES[metric.name]}: {metric.base:.3g} -> {metric.candidate:.3g}"
    if metric.low is None or metric.high is None or metric.level is None:
        return said
    span = f"{metric.low:+.2g} to {metric.high:+.2g}"
    return f"{said} ({100 * metric.level:g}% interval of the difference: {span})"


def _tokens(
    base_rows: Sequence[ScoreRow], candidate_rows: Sequence[ScoreRow], level: float
) -> SecondaryRecord | None:
    before, after = _tokens_by_item(base_rows), _tokens_by_item(candidate_rows)
    if len(after) < 2 or before.keys() != after.keys():
        return None
    differences = [after[item] - before[item] for item in sorted(after)]
    half = t_quantile(level, len(differences) - 1) * stdev(differences) / math.sqrt(len(differences))
    return SecondaryRecord(
        name="answer_tokens",
        base=fmean(before.values()),
        candidate=fmean(after.values()),
        low=fmean(differences) - half,
        high=fmean(differences) + half,
        level=level,
    )


def _tokens_by_item(rows: Sequence[ScoreRow]) -> dict[str, float]:
    """Return the mean tokens of an item's answers; nothing at all where one was not counted."""
    counts: dict[str, list[int]] = {}
    for row in rows:
        if row.n_tokens is None:
            return {}
        counts.setdefault(row.item_id, []).append(row.n_tokens)
    return {item: fmean(found) for item, found in counts.items()}


def _seconds(name: str, base: Sequence[float], candidate: Sequence[float]) -> SecondaryRecord | None:
    # A trial without a time was not measured; it did not take none.
    if not base or not candidate or not (min(base) > 0 and min(candidate) > 0):
        return None
    return SecondaryRecord.model_validate({"name": name, "base": fmean(base), "candidate": fmean(candidate)})
