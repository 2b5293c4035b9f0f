"""Guessing: what an answer at random would score, and whether answers have the form of one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tools.errors import ScorerError
from tools.evaluation.scorers import Scorer

__all__ = ["AnswerClasses", "find_answer_classes"]

_MOST_CLASSES: Final = 64


@dataclass(frozen=True)
class AnswerClasses:
    """The few distinct answers of a closed task, one standing for all that the scorer takes for it."""

    answers: tuple[str, ...]

    @property
    def chance(self) -> float:
        """What a uniform guess among them scores."""
        return 1 / len(self.answers)

    def well_formed(self, outputs: Sequence[str], scorer: Scorer) -> float | None:
        """Return the share of outputs that are one of the answers, None where there are no outputs."""
        if not outputs:
            return None
        return sum(_stands_for(self.answers, output, scorer) for output in outputs) / len(outputs)


def find_answer_classes(expected: Iterable[str], scorer: Scorer) -> AnswerClasses | None:
    """Return the distinct answers of a task, None where there is one or too many to guess among."""
    found: list[str] = []
    for answer in dict.fromkeys(expected):
        if not _stands_for(found, answer, scorer):
            found.append(answer)
        if len(found) > _MOST_CLASSES:
            return None
    return AnswerClasses(tuple(found)) if len(found) > 1 else None


def _stands_for(answers: Sequence[str], output: str, scorer: Scorer) -> bool:
    for answer in answers:
        try:
            if scorer(answer, output).score >= 1.0:
                return True
        except ScorerError:
            continue
    return False
