"""The four diagnostics: signs that another setting of the same method will not help.

Source: the skill `finetuning` of evo, whose diagnostics these are; the tests that they run are
this project's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from agent.diagnostics.finding import Finding
from agent.diagnostics.moves import Move

__all__ = ["find_base_below_random", "find_exhausted_method", "find_same_score", "find_stuck_at_zero"]

_SURE: Final = 0.05


def find_stuck_at_zero(moves: Sequence[Move], *, least_runs: int = 2) -> Finding | None:
    """Return a finding when at least so many recipes were trained and every one scores 0."""
    scored = [move for move in moves if move.score is not None]
    if len(scored) < least_runs or any(move.score for move in scored):
        return None
    return Finding(
        "stuck_at_zero",
        f"all {len(scored)} trained recipes score 0",
        "Read outputs before anything else: where none parses, mend template, stop token or answer format; "
        "where they parse, the technique is wrong, not the recipe: use the scorer as the reward",
        _ids(scored),
    )


def find_base_below_random(
    *, score: float | None, chance: float | None, n_items: int, well_formed: float | None
) -> Finding | None:
    """Return a finding when the untrained base answers in form and yet surely worse than a guess.

    A base whose answers have the wrong form scores low for that reason, so no finding is made
    unless most of its answers are well formed.

    Args:
        score: The base's mean score; None is unknown.
        chance: What guessing scores, in (0, 1); None is unknown.
        n_items: Items that it was scored on.
        well_formed: Share of its answers that have the form of an answer; None is unknown.
    """
    if score is None or chance is None or well_formed is None or n_items < 1 or not 0 < chance < 1:
        return None
    n_right = round(score * n_items)
    if well_formed < 0.5 or _binomial_tail(n_right, n_items, chance) >= _SURE:
        return None
    return Finding(
        "base_below_random",
        f"the untrained base scores {score:.3f} where guessing gives {chance:.3f}, in well-formed answers",
        "The knowledge is missing, not the format: train on a corpus of the domain, distil from a stronger "
        "model, or retrieve; fine-tuning on demonstrations installs little knowledge",
        (f"{n_right} of {n_items} items right",),
    )


def find_exhausted_method(moves: Sequence[Move], *, window: int = 4) -> Finding | None:
    """Return a finding when the last so many candidates all gained nothing."""
    judged = [move for move in moves if move.gain is not None]
    last = judged[-window:]
    if len(last) < window or any(move.gain is None or move.gain > 0 for move in last):
        return None
    return Finding(
        "method_exhausted",
        f"none of the last {window} candidates gained anything over the incumbent",
        "Change the data or the method, or improve what surrounds the weights; nearby settings are used up",
        _ids(last),
    )


def find_same_score(
    moves: Sequence[Move], *, n_items: int | None = None, least_techniques: int = 3
) -> Finding | None:
    """Return a finding when the latest moves share one non-zero score across distinct techniques.

    Args:
        moves: Oldest first.
        n_items: Items of a score; scores less than half an item apart are the same. None asks for
            equal scores.
        least_techniques: Structurally different recipes that it takes.
    """
    near = 0.5 / n_items if n_items else 1e-9
    same: list[Move] = []
    for move in reversed(moves):
        if move.score is None:
            continue
        if same and same[0].score is not None and abs(move.score - same[0].score) > near:
            break
        same.append(move)
    if not same or not same[0].score or len({move.technique for move in same}) < least_techniques:
        return None
    return Finding(
        "same_score",
        f"{len(same)} recipes of different techniques all score {same[0].score:.3f}",
        "Lay three training answers and three expected dev answers side by side: most often the training "
        "data teaches another form than the scorer wants; try no further technique before that",
        _ids(same),
    )


def _ids(moves: Sequence[Move]) -> tuple[str, ...]:
    return tuple(trial_id for move in moves for trial_id in move.trial_ids)


def _binomial_tail(k: int, n: int, p: float) -> float:
    """Return P(X <= k) for X of n trials with chance p, in logarithms: n may be thousands."""
    log_p, log_q = math.log(p), math.log1p(-p)
    return math.fsum(
        math.exp(
            math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * log_p + (n - i) * log_q
        )
        for i in range(k + 1)
    )
