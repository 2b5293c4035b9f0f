"""Judging answers: scorers, and the score rows they leave."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tools.evaluation.scorers import SCORERS, ScoreOutcome, Scorer, get_scorer, is_forbidden
    from tools.evaluation.scores import (
        ScoreRow,
        ScoreSummary,
        error_kind,
        read_scores,
        score_answer,
        summarise,
        write_scores,
    )

_HOMES = {
    "SCORERS": "scorers",
    "ScoreOutcome": "scorers",
    "ScoreRow": "scores",
    "ScoreSummary": "scores",
    "Scorer": "scorers",
    "error_kind": "scores",
    "get_scorer": "scorers",
    "is_forbidden": "scorers",
    "read_scores": "scores",
    "score_answer": "scores",
    "summarise": "scores",
    "write_scores": "scores",
}

__all__ = [
    "SCORERS",
    "ScoreOutcome",
    "ScoreRow",
    "ScoreSummary",
    "Scorer",
    "error_kind",
    "get_scorer",
    "is_forbidden",
    "read_scores",
    "score_answer",
    "summarise",
    "write_scores",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
