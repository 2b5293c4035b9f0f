"""Scores of members while they are being trained, on a few dev rows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.chat import render_prompt
from tools.dataset import load_dataset
from tools.engine.answering import Answering
from tools.engine.base import LoadedBase
from tools.engine.batches import RowEncoder
from tools.engine.generation import Answer, Asked
from tools.engine.member import Member, spread
from tools.engine.row_loss import row_losses
from tools.engine.spec import MidEval, ScorerChoice
from tools.errors import ChatError
from tools.evaluation.scorers import Scorer, get_scorer
from tools.rows import Row

__all__ = ["MidEvaluator", "scorer_of"]

logger = logging.getLogger(__name__)


class MidEvaluator:
    """Answers the same rows, spread over the dev file, for every member and step."""

    def __init__(
        self, base: LoadedBase, spec: MidEval, encoder: RowEncoder, should_stop: Callable[[], bool]
    ) -> None:
        self._base = base
        self._encoder = encoder
        self._spec = spec
        self._answering = Answering(
            base, max_new_tokens=spec.max_new_tokens, batch_size=spec.batch_size, should_stop=should_stop
        )
        self._scorer = scorer_of(spec.scorer)
        self._rows: Sequence[Row] = spread(load_dataset(Path(spec.rows)).rows, spec.n_items)
        self._prompts: dict[str | None, list[tuple[int, ...]]] = {}

    @property
    def n_items(self) -> int:
        """Rows that every evaluation looks at."""
        return len(self._rows)

    def evaluate(self, members: Sequence[Member]) -> None:
        """Score the present weights of all members, their answers in one batch, and tell each.

        Raises:
            StoppedError: asked to stop; some members may have no score of this step then.
        """
        started = time.perf_counter()
        asked = [
            Asked(
                self._prompts_for(member.system_prompt),
                self._base.stack.inference_copy(member.adapter, self._base.dtype),
            )
            for member in members
        ]
        losses = [self._loss(member) if member.is_at_rung else None for member in members]

        def score(place: int, answers: tuple[Answer, ...]) -> None:
            scores = [
                self._scorer(row.expected, answer.text).score
                for row, answer in zip(self._rows, answers, strict=True)
            ]
            wall_s = (time.perf_counter() - started) / len(members)
            members[place].note_score(sum(scores) / len(scores), len(scores), wall_s, losses[place])

        self._answering.answer(asked, score)

    def _loss(self, member: Member) -> float | None:
        """Return the mean loss of the expected answers; None where the rows hold none that can be learned."""
        try:
            encoded = self._encoder.encode(self._spec.rows, member.system_prompt).rows
        except ChatError as err:
            logger.warning("equal dev scores are not told apart by loss: %s", err)
            return None
        rows = [row for row in spread(encoded, self._spec.n_items) if row.n_supervised]
        losses = row_losses(self._base, rows, member.adapter)
        return sum(loss.mean for loss in losses) / len(losses) if losses else None

    def _prompts_for(self, system_prompt: str | None) -> list[tuple[int, ...]]:
        if system_prompt not in self._prompts:
            self._prompts[system_prompt] = [
                tuple(render_prompt(self._base.tokenizer, row.prompt, system_prompt=system_prompt))
                for row in self._rows
            ]
        return self._prompts[system_prompt]


def scorer_of(choice: ScorerChoice) -> Scorer:
    """Return the scorer that a spec names."""
    return get_scorer(choice.name, ignore=choice.ignore, scorer_file=choice.scorer_file)
