"""The report of a knowledge probe, kept under its tag."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tools.errors import ProbeError
from tools.files import write_json_atomic
from tools.probe.questions import KnowledgeQuestion, digest_questions
from tools.probe.rows import read_number

__all__ = ["BY_WORDS", "KnowledgeReport", "KnowledgeRow", "knowledge_row_from_dict", "knowledge_row_to_dict"]

BY_WORDS: Final = "words"
"""The name of the scoring that needs no judge."""

_TAG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAME: Final = re.compile(r"probe_(?P<tag>.+)_(?P<stamp>\d{8}_\d{6})\.json")


@dataclass(frozen=True)
class KnowledgeRow:
    """One question, the model's answer, and its score in [0, 1]."""

    question: str
    ideal: str
    answer: str
    score: float | None
    """None where the model or the judge failed."""
    error: str | None = None


@dataclass(frozen=True)
class KnowledgeReport:
    """What a model knew, under a tag.

    Raises:
        ProbeError: the tag is no plain name.
    """

    tag: str
    rows: tuple[KnowledgeRow, ...]
    model: str = "unknown"
    adapter: str | None = None
    scored_by: str = BY_WORDS
    created: str = ""
    """When, in UTC, as 2026-11-20T04:49:00Z."""

    def __post_init__(self) -> None:
        _check_tag(self.tag)

    @property
    def score(self) -> float | None:
        """Mean over the rows that have a score; None when none has."""
        scores = [row.score for row in self.rows if row.score is not None]
        return sum(scores) / len(scores) if scores else None

    @property
    def failed(self) -> tuple[KnowledgeRow, ...]:
        """The rows without a score."""
        return tuple(row for row in self.rows if row.score is None)

    @property
    def digest(self) -> str:
        """SHA-256 of the questions and their ideal answers, in their order."""
        return digest_questions(KnowledgeQuestion(row.question, row.ideal) for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as the JSON that `from_dict` reads."""
        return {
            "tag": self.tag,
            "timestamp": _stamp(self.created),
            "created": self.created,
            "model": self.model,
            "adapter": self.adapter,
            "total": len(self.rows),
            "mean_score": self.score,
            "max_score": 1,
            "scored_by": self.scored_by,
            "questions_digest": self.digest,
            "results": [knowledge_row_to_dict(row) for row in self.rows],
        }

    @classmethod
    def from_dict(cls, data: Any) -> KnowledgeReport:
        """Read a report from JSON, forge's own included: its scores of 0 to 3 become 0 to 1.

        Raises:
            ProbeError: a key is missing, a value is of the wrong type, or the questions are not
                those that the file's digest was made of.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("results"), list):
            raise ProbeError("a knowledge report is a JSON object with a list results; this is none")
        best = read_number(data.get("max_score"), 1.0, "max_score")
        if best <= 0:
            raise ProbeError(f"max_score is {best!r}; a number above 0 is needed")
        report = cls(
            tag=str(data.get("tag", "")),
            rows=tuple(
                knowledge_row_from_dict(row, f"results[{i}]", best=best)
                for i, row in enumerate(data["results"])
            ),
            model=str(data.get("model", "unknown")),
            adapter=None if data.get("adapter") is None else str(data["adapter"]),
            # forge has one way to score, by a judge, and does not name it.
            scored_by=str(data.get("scored_by", "judge")),
            created=str(data.get("created", _from_stamp(str(data.get("timestamp", ""))))),
        )
        if data.get("questions_digest", report.digest) != report.digest:
            raise ProbeError("the questions or ideal answers were changed after the report was written")
        return report

    @classmethod
    def from_json(cls, path: str | Path) -> KnowledgeReport:
        """Read a report from disk.

        Raises:
            ProbeError: the file is missing, is no JSON, or is no report; says which.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as err:
            raise ProbeError(f"{path} cannot be read as a knowledge report: {err}") from err
        try:
            return cls.from_dict(data)
        except ProbeError as err:
            raise ProbeError(f"{path}: {err}") from err

    def save(self, folder: str | Path) -> Path:
        """Write the report into folder as `probe_<tag>_<time>.json` and return its path.

        Raises:
            ProbeError: the report has no time, or another one of this tag and time is there: a
                report is a record and is never replaced.
        """
        stamp = _stamp(self.created)
        if stamp is None:
            raise ProbeError(f"created is {self.created!r}; a time such as 2026-11-20T04:49:00Z is needed")
        path = Path(folder) / f"probe_{self.tag}_{stamp}.json"
        if path.exists():
            raise ProbeError(f"{path} is there already; a report is never replaced, give another tag")
        return write_json_atomic(path, self.to_dict())

    @classmethod
    def load(cls, folder: str | Path, tag: str) -> KnowledgeReport:
        """Return the newest report of a tag in folder.

        Raises:
            ProbeError: there is none, or it cannot be read.
        """
        _check_tag(tag)
        found: dict[str, Path] = {}
        for path in Path(folder).glob("probe_*.json"):
            match = _NAME.fullmatch(path.name)
            if match and match["tag"] == tag:
                found[match["stamp"]] = path
        if not found:
            raise ProbeError(f"{folder} holds no report tagged {tag!r}; run the probe with this tag first")
        return cls.from_json(found[max(found)])


def knowledge_row_to_dict(row: KnowledgeRow) -> dict[str, Any]:
    """Return a row as JSON."""
    return {
        "question": row.question,
        "ideal": row.ideal,
        "model_answer": row.answer,
        "score": row.score,
        "error": row.error,
    }


def knowledge_row_from_dict(plain: Any, where: str, *, best: float = 1.0) -> KnowledgeRow:
    """Read a row from JSON.

    Args:
        where: Names the row in an error.
        best: The score of a perfect answer in that file; scores become parts of it.
    Raises:
        ProbeError: a key is missing, or a value is of the wrong type.
    """
    if not isinstance(plain, Mapping):
        raise ProbeError(f"{where} is {plain!r:.80}; an object is needed")
    for key in ("question", "ideal", "model_answer"):
        if not isinstance(plain.get(key), str):
            raise ProbeError(f"{where}: {key} is {plain.get(key)!r:.80}; a text is needed")
    score = plain.get("score")
    if score is not None:
        score = read_number(score, 0.0, f"{where}: score") / best
        if not 0 <= score <= 1:
            raise ProbeError(f"{where}: score is {plain['score']!r}; a number from 0 to {best:g} is needed")
    error = plain.get("error")
    return KnowledgeRow(
        plain["question"],
        plain["ideal"],
        plain["model_answer"],
        score,
        None if error is None else str(error),
    )


def _check_tag(tag: str) -> None:
    if not _TAG.fullmatch(tag):
        raise ProbeError(f"tag is {tag!r}; up to 64 letters, digits and ._- are allowed")


def _stamp(created: str) -> str | None:
    match = re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)Z", created)
    return None if match is None else "{}{}{}_{}{}{}".format(*match.groups())


def _from_stamp(stamp: str) -> str:
    match = re.fullmatch(r"(\d{4})(\d\d)(\d\d)_(\d\d)(\d\d)(\d\d)", stamp)
    return "" if match is None else "{}-{}-{}T{}:{}:{}Z".format(*match.groups())
