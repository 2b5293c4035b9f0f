"""The reasoning probe: does a model still think before it answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.errors import ProbeError
from tools.probe.asking import BatchGenerator, Reply, ask
from tools.probe.generator import ModelGenerator, Sampling, open_generator, tokenizer_of
from tools.probe.questions import ProbeQuestion, load_reasoning_questions
from tools.probe.report import ProbeReport
from tools.probe.row_log import RowForm, RowLog, fingerprint_model
from tools.probe.rows import ProbeRow, failed_row, row_from_dict, row_from_response, row_to_dict
from tools.probe.think import CHAR_QUARTER, count_char_quarters

__all__ = ["ReasoningProbe"]

OnProgress = Callable[[int, int, ProbeRow], object]

_FORM = RowForm(row_to_dict, row_from_dict, lambda row: row.qid)


class ReasoningProbe:
    """A probe set, to be put to one model after another.

    Raises:
        ProbeError: no questions, or two with one qid.
    """

    __slots__ = ("_questions",)

    def __init__(self, questions: Sequence[ProbeQuestion]) -> None:
        if not questions:
            raise ProbeError("there are no questions; a reasoning probe asks at least one")
        qids = [question.qid for question in questions]
        if len(set(qids)) != len(qids):
            twice = sorted({qid for qid in qids if qids.count(qid) > 1})
            raise ProbeError(f"qids {twice} stand for more than one question; each needs its own")
        self._questions = tuple(questions)

    @classmethod
    def from_jsonl(cls, path: str | Path) -> ReasoningProbe:
        """Read a probe set: one object a line with `qid`, `category` and `question`.

        `source` and `license` are optional; all other keys go to the question's metadata.

        Raises:
            ProbeError: the file is missing or empty, or lists every line that is no question.
        """
        return cls(load_reasoning_questions(path))

    @property
    def questions(self) -> tuple[ProbeQuestion, ...]:
        return self._questions

    def __len__(self) -> int:
        return len(self._questions)

    def run(
        self,
        model_id: str,
        *,
        lora_path: str | Path | None = None,
        step: int | None = None,
        max_new_tokens: int = 1024,
        temperature: float = 0.6,
        generator: Callable[[ProbeQuestion], str] | BatchGenerator | None = None,
        on_progress: OnProgress | None = None,
        resume_path: str | Path | None = None,
        batch_size: int = 8,
        seed: int = 0,
    ) -> ProbeReport:
        """Put every question to a model and report on its chains.

        A question that fails is a row with an error and in no aggregate. Without a generator
        the model is loaded, in bfloat16 on the one device there is, and answers in batches;
        its chains are then counted by its tokenizer.

        Args:
            model_id: A folder, a .gguf file or a Hub id.
            lora_path: Folder of a peft adapter to put on the model.
            step: Recorded in the report: the training step that is probed.
            max_new_tokens: Below 1024, reasoning models are often cut off within the chain.
            temperature: 0 takes the likeliest token.
            generator: Answers in the model's place: takes a question and returns its response, or
                is a batch generator, such as `open_generator` gives.
            on_progress: Called with the number of rows so far, of all, and the newest row.
            resume_path: JSONL file that each row is written to as it is made. Given again, its
                rows are taken over and only what is missing, or failed, is asked.
            batch_size: Questions answered at once by a loaded model.
            seed: Of the sampling. A question's answer depends on it and the question's text,
                not on what else is asked, up to the rounding that a batch's size may change.
        Raises:
            ProbeError: a bad argument, a resume file of another run, or no question got a
                response.
            ImportError: torch or transformers is missing and no generator was given.
            ModelError: the model or the adapter cannot be loaded.
        """
        started = time.monotonic()
        sampling = Sampling(max_new_tokens, temperature, seed)
        if isinstance(generator, ModelGenerator) and generator.sampling != sampling:
            raise ProbeError(
                f"the generator was opened with {generator.sampling}, and the run was asked for {sampling}; "
                "give both the same, since the report says how its answers were drawn"
            )
        adapter = None if lora_path is None else str(lora_path)
        if generator is None:
            counted_by = tokenizer_of(model_id)
        else:
            counted_by = generator.counted_by if isinstance(generator, BatchGenerator) else CHAR_QUARTER
        log = None
        if resume_path is not None:
            log = RowLog(Path(resume_path), _origin(model_id, adapter, sampling, counted_by), _FORM)
        rows = log.finished({item.qid: item.question for item in self._questions}) if log else {}
        missing = [question for question in self._questions if question.qid not in rows]
        if missing:
            answering = generator or open_generator(
                model_id, adapter, sampling=sampling, batch_size=batch_size
            )
            for reply in ask(missing, answering, text_of=lambda question: question.question):
                row = _row(reply, answering)
                if log:
                    log.append(row, reply.question.question)
                rows[row.qid] = row
                if on_progress is not None:
                    on_progress(len(rows), len(self._questions), row)
        return ProbeReport(
            model=model_id,
            rows=_ordered(rows, self._questions),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            lora_path=adapter,
            step=step,
            wall_seconds=round(time.monotonic() - started, 1),
            counted_by=counted_by,
            seed=seed,
        )


def _origin(model_id: str, adapter: str | None, sampling: Sampling, counted_by: str) -> dict[str, Any]:
    return {
        "model": model_id,
        "model_files": fingerprint_model(model_id),
        "lora_path": adapter,
        "adapter_files": adapter and fingerprint_model(adapter),
        "counted_by": counted_by,
        **asdict(sampling),
    }


def _row(reply: Reply[ProbeQuestion], answering: object) -> ProbeRow:
    wall_s = round(reply.wall_s, 2)
    if reply.response is None:
        assert reply.error is not None
        return failed_row(reply.question, reply.error, wall_seconds=wall_s)
    count = answering.count_tokens if isinstance(answering, BatchGenerator) else count_char_quarters
    return row_from_response(reply.question, reply.response, wall_seconds=wall_s, count_tokens=count)


def _ordered(rows: dict[str, ProbeRow], questions: Sequence[ProbeQuestion]) -> list[ProbeRow]:
    found = [rows[question.qid] for question in questions]
    if all(row.error is not None for row in found):
        raise ProbeError(f"none of {len(found)} questions got a response; the first: {found[0].error}")
    return found
