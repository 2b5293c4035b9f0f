"""Answer and score whole splits with adapters from disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.chat import render_prompt
from tools.dataset import load_dataset
from tools.engine.adapter_files import load_adapter
from tools.engine.answering import Answering
from tools.engine.base import LoadedBase
from tools.engine.generation import StoppedError
from tools.engine.lora import Adapter
from tools.engine.mid_eval import scorer_of
from tools.engine.results import AdapterResult, SplitScore
from tools.engine.spec import AdapterRef, EvaluateSpec
from tools.errors import BakehouseError
from tools.evaluation.scores import score_answer, write_scores
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
    return tuple(_evaluate(base, spec, ref, questions, answering) for ref in spec.adapters)


def _questions(base: LoadedBase, path: str, system_prompt: str | None) -> tuple[_Question, ...]:
    return tuple(
        _Question(row, tuple(render_prompt(base.tokenizer, row.prompt, system_prompt=system_prompt)))
        for row in load_dataset(Path(path)).rows
    )


def _evaluate(
    base: LoadedBase,
    spec: EvaluateSpec,
    ref: AdapterRef,
    questions: Mapping[str, tuple[_Question, ...]],
    answering: Answering,
) -> AdapterResult:
    started = time.perf_counter()
    splits: dict[str, SplitScore] = {}
    error = None
    try:
        adapter = None
        if ref.adapter_dir is not None:
            adapter = load_adapter(base.stack, ref.adapter_dir, device=base.device, dtype=base.dtype)
        for split, asked in questions.items():
            splits[split] = _score_split(spec, ref, split, asked, adapter, answering)
    except StoppedError:
        raise
    except Exception as err:
        logger.error("%s: %s", ref.trial_id, err, exc_info=not isinstance(err, BakehouseError))
        error = f"{type(err).__name__}: {err}"
    return AdapterResult(ref.trial_id, ref.seed, splits, time.perf_counter() - started, error)


def _score_split(
    spec: EvaluateSpec,
    ref: AdapterRef,
    split: str,
    questions: tuple[_Question, ...],
    adapter: Adapter | None,
    answering: Answering,
) -> SplitScore:
    started = time.perf_counter()
    answers = answering.answer([question.prompt for question in questions], adapter)
    scorer = scorer_of(spec.scorer)
    rows = [
        score_answer(
            scorer,
            item_id=question.row.id,
            seed=ref.seed,
            prompt=question.row.prompt[-1].content,
            expected=question.row.expected,
            output=answer.text,
            n_tokens=answer.n_tokens,
            forbidden_outputs=spec.forbidden_outputs,
        )
        for question, answer in zip(questions, answers, strict=True)
    ]
    path = Path(spec.scores_dir) / ref.trial_id / f"{split}.jsonl"
    write_scores(path, rows, redact=split in spec.sealed_splits)
    mean = sum(row.score for row in rows) / len(rows)
    wall_s = time.perf_counter() - started
    logger.info("%s: %s %.3f over %d rows in %.1f s", ref.trial_id, split, mean, len(rows), wall_s)
    return SplitScore(mean, len(rows), wall_s)
