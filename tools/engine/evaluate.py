"""Answer and score whole splits with adapters from disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.chat import render_prompt
from tools.dataset import load_dataset
from tools.engine.adapter_files import load_adapter
from tools.engine.answering import Answering
from tools.engine.base import LoadedBase
from tools.engine.generation import Answer, Asked, StoppedError
from tools.engine.lora import Adapter
from tools.engine.mid_eval import scorer_of
from tools.engine.pass_size import ADAPTERS_ABREAST
from tools.engine.results import AdapterResult, SplitScore
from tools.engine.spec import AdapterRef, EvaluateSpec
from tools.errors import BakehouseError
from tools.evaluation.scores import ScoreRow, score_answer, write_scores
from tools.rows import Row

__all__ = ["evaluate_adapters"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Question:
    row: Row
    prompt: tuple[int, ...]


def evaluate_adapters(
    base: LoadedBase, spec: EvaluateSpec, *, should_stop: Callable[[], bool] = lambda: False
) -> tuple[AdapterResult, ...]:
    """Score every adapter on every split and write `<scores_dir>/<trial_id>/<split>.jsonl`.

    An adapter that cannot be loaded or scored has the reason in its result; the others go on.

    Raises:
        DatasetError, ChatError, ScorerError: the rows or the scorer are unfit for any adapter.
        StoppedError: asked to stop.
    """
    scorer_of(spec.scorer)
    questions = {split: _questions(base, path, spec.system_prompt) for split, path in spec.splits.items()}
    answering = Answering(
        base, max_new_tokens=spec.max_new_tokens, batch_size=spec.batch_size, should_stop=should_stop
    )
    results: list[AdapterResult] = []
    for start in range(0, len(spec.adapters), ADAPTERS_ABREAST):
        refs = spec.adapters[start : start + ADAPTERS_ABREAST]
        results += _evaluate(base, spec, refs, questions, answering)
    return tuple(results)


def _evaluate(
    base: LoadedBase,
    spec: EvaluateSpec,
    refs: Sequence[AdapterRef],
    questions: Mapping[str, Sequence[_Question]],
    answering: Answering,
) -> list[AdapterResult]:
    scored = [_Scored(spec, ref, base) for ref in refs]
    started = time.perf_counter()
    jobs = [_Job(item, split) for item in scored if item.error is None for split in questions]
    _answer(jobs, questions, answering)
    wall_s = time.perf_counter() - started
    n_tokens = sum(item.n_tokens for item in scored)
    return [item.result(wall_s, n_tokens) for item in scored]


@dataclass(frozen=True)
class _Job:
    """One adapter on one split."""

    item: _Scored
    split: str


def _answer(jobs: Sequence[_Job], questions: Mapping[str, Sequence[_Question]], answering: Answering) -> None:
    """Answer and score all jobs in one batch; where that fails, one by one: it shows whose fault it was."""
    left = set(range(len(jobs)))

    def score(place: int, answers: tuple[Answer, ...]) -> None:
        left.remove(place)
        job = jobs[place]
        job.item.score(job.split, questions[job.split], answers)

    asked = [Asked([question.prompt for question in questions[job.split]], job.item.adapter) for job in jobs]
    try:
        answering.answer(asked, score)
    except StoppedError:
        raise
    except Exception as err:  # noqa: BLE001 - an adapter that fails is a result
        if len(jobs) == 1:
            jobs[0].item.fail(err)
            return
        for place in sorted(left):
            _answer([jobs[place]], questions, answering)


class _Scored:
    """One adapter: its answers are scored as they come."""

    def __init__(self, spec: EvaluateSpec, ref: AdapterRef, base: LoadedBase) -> None:
        self.adapter: Adapter | None = None
        self.error: str | None = None
        self._spec = spec
        self._ref = ref
        self._means: dict[str, tuple[float, int, int]] = {}
        """By split: mean, rows and tokens."""
        try:
            if ref.adapter_dir is not None:
                self.adapter = load_adapter(base.stack, ref.adapter_dir, device=base.device, dtype=base.dtype)
        except Exception as err:  # noqa: BLE001 - an adapter that fails is a result
            self.fail(err)

    @property
    def n_tokens(self) -> int:
        """All that was generated."""
        return sum(tokens for _, _, tokens in self._means.values())

    def score(self, split: str, questions: Sequence[_Question], answers: Sequence[Answer]) -> None:
        """Score the answers to a split and write them; an error ends this adapter alone."""
        if self.error is not None:
            return
        try:
            rows = self._rows(questions, answers)
            path = Path(self._spec.scores_dir) / self._ref.trial_id / f"{split}.jsonl"
            write_scores(path, rows, redact=split in self._spec.sealed_splits)
        except Exception as err:  # noqa: BLE001 - an adapter that fails is a result
            self.fail(err)
            return
        mean = sum(row.score for row in rows) / len(rows)
        self._means[split] = (mean, len(rows), sum(answer.n_tokens for answer in answers))
        logger.info("%s: %s %.3f over %d rows", self._ref.trial_id, split, mean, len(rows))

    def result(self, wall_s: float, n_tokens: int) -> AdapterResult:
        """Return what was found.

        Args:
            wall_s: Of all adapters together; each has the part of it that its tokens are of n_tokens.
        """
        splits = {
            split: SplitScore(mean, n, wall_s * tokens / max(1, n_tokens))
            for split, (mean, n, tokens) in self._means.items()
        }
        eval_s = sum(split.eval_s for split in splits.values())
        return AdapterResult(self._ref.trial_id, self._ref.seed, splits, eval_s, self.error)

    def _rows(self, questions: Sequence[_Question], answers: Sequence[Answer]) -> list[ScoreRow]:
        scorer = scorer_of(self._spec.scorer)
        return [
            score_answer(
                scorer,
                item_id=question.row.id,
                seed=self._ref.seed,
                prompt=question.row.prompt[-1].content,
                expected=question.row.expected,
                output=answer.text,
                n_tokens=answer.n_tokens,
                forbidden_outputs=self._spec.forbidden_outputs,
            )
            for question, answer in zip(questions, answers, strict=True)
        ]

    def fail(self, err: Exception) -> None:
        """Take an error for the result of this adapter."""
        logger.error("%s: %s", self._ref.trial_id, err, exc_info=not isinstance(err, BakehouseError))
        self.error = f"{type(err).__name__}: {err}"


def _questions(base: LoadedBase, path: str, system_prompt: str | None) -> tuple[_Question, ...]:
    return tuple(
        _Question(row, tuple(render_prompt(base.tokenizer, row.prompt, system_prompt=system_prompt)))
        for row in load_dataset(Path(path)).rows
    )
