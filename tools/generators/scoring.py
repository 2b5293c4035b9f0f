"""Rows answered by any generator and judged like those that the engine answers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tools.chat import normalize_for_template
from tools.errors import EvaluationError
from tools.evaluation.scorers import Scorer
from tools.evaluation.scores import ScoreRow, score_answer, write_scores
from tools.files import write_text_atomic
from tools.generators.generator import Generator
from tools.rows import Row

__all__ = ["Generated", "Unanswered", "score_generated", "write_generated"]

_SHOWN: Final = 300


@dataclass(frozen=True)
class Unanswered:
    """A row that has no score, since it got no answer."""

    item_id: str
    error: str


@dataclass(frozen=True)
class Generated:
    """What became of every row. A row without an answer is worth nothing known: it is in no mean."""

    rows: tuple[ScoreRow, ...]
    unanswered: tuple[Unanswered, ...]
    input_tokens: int | None
    output_tokens: int | None
    """Over all answers; None where the generator does not count, for one of them at least."""
    n_cut_off: int

    @property
    def mean(self) -> float:
        """The mean score over the rows that were answered."""
        return math.fsum(row.score for row in self.rows) / len(self.rows)


def score_generated(
    generator: Generator,
    rows: Sequence[Row],
    scorer: Scorer,
    *,
    seed: int = 0,
    system_prompt: str | None = None,
    forbidden_outputs: Sequence[str] = (),
) -> Generated:
    """Have every row answered and judge what came back.

    Args:
        seed: Recorded with each score.
        system_prompt: Put before a conversation without a system turn.
    Raises:
        EvaluationError: there is no row, or none of them got an answer.
        ScorerError: the scorer failed.
    """
    if not rows:
        raise EvaluationError("there are no rows to answer")
    asked = [normalize_for_template(row.prompt, template=None, system_prompt=system_prompt) for row in rows]
    found = generator.generate(asked)
    judged: list[ScoreRow] = []
    unanswered: list[Unanswered] = []
    for row, generation in zip(rows, found, strict=True):
        if generation.text is None:
            unanswered.append(Unanswered(row.id, (generation.error or "no answer")[:_SHOWN]))
            continue
        judged.append(
            score_answer(
                scorer,
                item_id=row.id,
                seed=seed,
                prompt=row.prompt[-1].content,
                expected=row.expected,
                output=generation.text,
                n_tokens=generation.output_tokens,
                forbidden_outputs=forbidden_outputs,
            )
        )
    if not judged:
        raise EvaluationError(
            f"none of {len(rows)} rows got an answer from {generator.name}; the first: {unanswered[0].error}"
        )
    answered = [generation for generation in found if generation.text is not None]
    return Generated(
        tuple(judged),
        tuple(unanswered),
        _total([one.input_tokens for one in answered]),
        _total([one.output_tokens for one in answered]),
        sum(one.is_complete is False for one in answered),
    )


def write_generated(folder: Path, split: str, generated: Generated, *, redact: bool) -> None:
    """Write `<split>.jsonl` with the scores and `<split>.unanswered.jsonl` with the rest."""
    # A server may repeat the row that it refuses.
    kept = [Unanswered(one.item_id, "no answer") if redact else one for one in generated.unanswered]
    lines = [json.dumps(asdict(one)) + "\n" for one in kept]
    write_text_atomic(folder / f"{split}.unanswered.jsonl", "".join(lines))
    write_scores(folder / f"{split}.jsonl", generated.rows, redact=redact)


def _total(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
