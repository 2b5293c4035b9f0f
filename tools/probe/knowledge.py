"""The knowledge probe: what a model knows of a domain, asked before and after training."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from tools.clock import Clock, utc_now
from tools.errors import BakehouseError, ProbeError
from tools.probe.asking import BatchGenerator, Reply, ask
from tools.probe.fact_score import score_fact
from tools.probe.generator import ModelGenerator
from tools.probe.knowledge_report import (
    BY_WORDS,
    KnowledgeReport,
    KnowledgeRow,
    knowledge_row_from_dict,
    knowledge_row_to_dict,
)
from tools.probe.questions import KnowledgeQuestion, digest_questions, load_knowledge_questions
from tools.probe.row_log import RowForm, RowLog, fingerprint_model

__all__ = ["Judge", "KnowledgeProbe"]

logger = logging.getLogger(__name__)

Judge = Callable[[KnowledgeQuestion, str], float]
"""Takes a question and an answer and returns a score in [0, 1]."""

_BY_JUDGE: Final = "judge"
_FORM: Final = RowForm(knowledge_row_to_dict, knowledge_row_from_dict, lambda row: row.question)


class KnowledgeProbe:
    """Questions about a domain with their ideal answers.

    Raises:
        ProbeError: no questions, or one asked twice.
    """

    __slots__ = ("_questions",)

    def __init__(self, questions: Sequence[KnowledgeQuestion]) -> None:
        if not questions:
            raise ProbeError("there are no questions; a knowledge probe asks at least one")
        texts = [question.question for question in questions]
        if len(set(texts)) != len(texts):
            twice = sorted({text for text in texts if texts.count(text) > 1})
            raise ProbeError(f"asked more than once: {twice[:3]}; each question stands once")
        self._questions = tuple(questions)

    @classmethod
    def from_jsonl(cls, path: str | Path) -> KnowledgeProbe:
        """Read a probe set: one object a line with `question` and `ideal`.

        Raises:
            ProbeError: the file is missing or empty, or lists every line that is no question.
        """
        return cls(load_knowledge_questions(path))

    @property
    def questions(self) -> tuple[KnowledgeQuestion, ...]:
        return self._questions

    @property
    def digest(self) -> str:
        """SHA-256 of the questions and their ideal answers, in their order."""
        return digest_questions(self._questions)

    def __len__(self) -> int:
        return len(self._questions)

    def run(
        self,
        generator: Callable[[KnowledgeQuestion], str] | BatchGenerator,
        *,
        tag: str,
        model: str = "unknown",
        adapter: str | Path | None = None,
        judge: Judge | None = None,
        judge_name: str = _BY_JUDGE,
        on_progress: Callable[[int, int, KnowledgeRow], object] | None = None,
        resume_path: str | Path | None = None,
        clock: Clock = utc_now,
    ) -> KnowledgeReport:
        """Ask every question and score the answers.

        A question that fails, in the model or in the judge, is a row with an error and in no
        score.

        Args:
            generator: Takes a question and returns the answer, or is a batch generator, such as
                `open_generator(model, sampling=Sampling(256, temperature=0))` gives.
            tag: Names the report: `pre` before training, `post` after it.
            model: For the report.
            adapter: For the report.
            judge: Scores the answers; by their words (see `score_fact`) when None.
            judge_name: For the report: scores of two judges are never compared.
            on_progress: Called with the number of rows so far, of all, and the newest row.
            resume_path: JSONL file that each row is written to as it is made. Given again, its
                rows are taken over and only what is missing, or failed, is asked.
            clock: Gives the time that the report carries.
        Raises:
            ProbeError: no question got a score, a bad tag, or a resume file of another run.
        """
        if judge is not None and judge_name == BY_WORDS:
            raise ProbeError(f"judge_name is {BY_WORDS!r}, which names the scoring without a judge")
        scored_by = BY_WORDS if judge is None else judge_name
        # Made first, so that a bad tag is told before anything is asked.
        adapter = None if adapter is None else str(adapter)
        report = KnowledgeReport(tag, (), model=model, adapter=adapter, scored_by=scored_by)
        log = None if resume_path is None else RowLog(Path(resume_path), _origin(report, generator), _FORM)
        asked = {question.question: _identity(question) for question in self._questions}
        rows = log.finished(asked) if log else {}
        missing = [question for question in self._questions if question.question not in rows]
        for reply in ask(missing, generator, text_of=lambda question: question.question):
            row = rows[reply.question.question] = _row(reply, judge)
            if log:
                log.append(row, asked[row.question])
            if on_progress is not None:
                on_progress(len(rows), len(self._questions), row)
        ordered = tuple(rows[question.question] for question in self._questions)
        if all(row.score is None for row in ordered):
            raise ProbeError(f"none of {len(ordered)} questions got a score; the first: {ordered[0].error}")
        return replace(report, rows=ordered, created=clock())


def _identity(question: KnowledgeQuestion) -> str:
    return json.dumps([question.question, question.ideal], ensure_ascii=False)


def _origin(report: KnowledgeReport, generator: object) -> dict[str, Any]:
    sampling = asdict(generator.sampling) if isinstance(generator, ModelGenerator) else {}
    return {
        "tag": report.tag,
        "model": report.model,
        "model_files": fingerprint_model(report.model),
        "adapter": report.adapter,
        "adapter_files": report.adapter and fingerprint_model(report.adapter),
        "scored_by": report.scored_by,
        **sampling,
    }


def _row(reply: Reply[KnowledgeQuestion], judge: Judge | None) -> KnowledgeRow:
    question = reply.question
    if reply.response is None:
        return KnowledgeRow(question.question, question.ideal, "", None, _reason(reply.error))
    answer = reply.response.text.encode("utf-8", "replace").decode("utf-8")
    try:
        score = score_fact(question.ideal, answer) if judge is None else judge(question, answer)
        if not (isinstance(score, int | float) and math.isfinite(score) and 0 <= score <= 1):
            raise ProbeError(f"the judge gave {score!r:.80}; a number from 0 to 1 is needed")
    except Exception as err:
        logger.warning("a judge failed: %s", err, exc_info=not isinstance(err, BakehouseError))
        return KnowledgeRow(question.question, question.ideal, answer, None, _reason(err))
    return KnowledgeRow(question.question, question.ideal, answer, float(score), None)


def _reason(error: Exception | None) -> str:
    return f"{type(error).__name__}: {error}".encode("utf-8", "replace").decode("utf-8")
