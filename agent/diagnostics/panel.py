"""The panel: every diagnostic that needs no more than what the flywheel already has at hand."""

from __future__ import annotations

from collections.abc import Sequence

from agent.diagnostics.false_progress import (
    find_conditioned_on_judged,
    find_eval_in_synthetic,
    find_objective_mismatch,
    find_trained_on_held_out,
)
from agent.diagnostics.finding import Finding
from agent.diagnostics.moves import list_moves
from agent.diagnostics.plateaus import find_exhausted_method, find_same_score, find_stuck_at_zero
from agent.plan import TrialSummary
from tools.dataset import Dataset
from tools.evaluation.scorers import Scorer

__all__ = ["diagnose_data", "diagnose_history"]


def diagnose_history(history: Sequence[TrialSummary], *, n_items: int | None = None) -> tuple[Finding, ...]:
    """Return what the trials show.

    Args:
        history: Oldest first.
        n_items: Items of the judged split that their scores were measured on.
    """
    moves = list_moves(history)
    found = (
        find_stuck_at_zero(moves),
        find_exhausted_method(moves),
        find_same_score(moves, n_items=n_items),
    )
    return tuple(finding for finding in found if finding is not None)


def diagnose_data(
    train: Dataset, dev: Dataset, selection: Dataset, test: Dataset, scorer: Scorer
) -> tuple[Finding, ...]:
    """Return what the data shows. Findings name judged rows by id and hold none of their text."""
    judged = {"dev": dev, "selection": selection, "test": test}
    found = (
        find_trained_on_held_out(train, judged),
        find_eval_in_synthetic(train, judged),
        find_conditioned_on_judged(train, judged),
        find_objective_mismatch(train, dev, scorer),
    )
    return tuple(finding for finding in found if finding is not None)
