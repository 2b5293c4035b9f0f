"""A probe set on disk: one question a line, of one kind."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from tools.errors import ProbeError
from tools.files import digest_json

__all__ = [
    "KnowledgeQuestion",
    "ProbeKind",
    "ProbeQuestion",
    "digest_questions",
    "load_knowledge_questions",
    "load_probe_kind",
    "load_reasoning_questions",
]

ProbeKind = Literal["reasoning", "knowledge"]

_REASONING_KEYS: Final = ("qid", "category", "question")
_KNOWLEDGE_KEYS: Final = ("question", "ideal")
_OPTIONAL_KEYS: Final = ("source", "license")
_SHOWN: Final = 20


@dataclass(frozen=True)
class ProbeQuestion:
    """One question of a reasoning probe."""

    qid: str
    category: str
    question: str
    source: str | None = field(default=None, kw_only=True)
    license: str | None = field(default=None, kw_only=True)
    metadata: Mapping[str, Any] = field(default_factory=dict, kw_only=True, hash=False)
    """The keys of the line that have no field here."""

    def to_dict(self) -> dict[str, Any]:
        """Return the line that the question was read from."""
        plain = {key: getattr(self, key) for key in _REASONING_KEYS}
        known = {key: getattr(self, key) for key in _OPTIONAL_KEYS if getattr(self, key) is not None}
        return plain | known | dict(self.metadata)


@dataclass(frozen=True)
class KnowledgeQuestion:
    """A question about a domain, with the answer that an expert would give."""

    question: str
    ideal: str

    def to_dict(self) -> dict[str, str]:
        """Return the line that the question was read from."""
        return {"question": self.question, "ideal": self.ideal}


def load_probe_kind(path: str | Path) -> ProbeKind:
    """Return what a probe set asks about, by the keys of its lines.

    Lines with `qid`, `category` and `question` are a reasoning probe; lines with `question`
    and `ideal` are a knowledge probe.

    Raises:
        ProbeError: the file is missing or empty, a line is no JSON object or has the keys of
            neither kind, or the lines are of both kinds.
    """
    kinds: dict[ProbeKind, int] = {}
    problems = []
    for number, line in _read_lines(path):
        kind = _kind_of(line)
        if kind is None:
            problems.append(
                f"line {number} has the keys {_show(sorted(line))}; a reasoning probe has qid, category and "
                "question, a knowledge probe has question and ideal"
            )
        else:
            kinds.setdefault(kind, number)
    if len(kinds) > 1:
        lines = " and ".join(f"{kind} (line {number})" for kind, number in kinds.items())
        problems.append(f"the lines are of two kinds, {lines}; keep each kind in a file of its own")
    _refuse(path, problems)
    return next(iter(kinds))


def load_reasoning_questions(path: str | Path) -> tuple[ProbeQuestion, ...]:
    """Read a reasoning probe set, every line of it or nothing.

    Raises:
        ProbeError: the file is missing or empty, or lists every line that is no question.
    """
    problems: list[str] = []
    questions = []
    for number, line in _read_lines(path):
        found = list(_reasoning_problems(line))
        problems.extend(f"line {number}: {text}" for text in found)
        if not found:
            known = {*_REASONING_KEYS, *_OPTIONAL_KEYS}
            questions.append(
                ProbeQuestion(
                    str(line["qid"]),
                    line["category"],
                    line["question"],
                    source=line.get("source"),
                    license=line.get("license"),
                    metadata={key: value for key, value in line.items() if key not in known},
                )
            )
    problems.extend(_repeated([question.qid for question in questions], "qid"))
    _refuse(path, problems)
    return tuple(questions)


def load_knowledge_questions(path: str | Path) -> tuple[KnowledgeQuestion, ...]:
    """Read a knowledge probe set, every line of it or nothing. Other keys are left aside.

    Raises:
        ProbeError: the file is missing or empty, or lists every line that is no question.
    """
    problems: list[str] = []
    questions = []
    for number, line in _read_lines(path):
        found = [text for key in _KNOWLEDGE_KEYS for text in _text_problems(line, key)]
        problems.extend(f"line {number}: {text}" for text in found)
        if not found:
            questions.append(KnowledgeQuestion(line["question"], line["ideal"]))
    problems.extend(_repeated([question.question for question in questions], "question"))
    _refuse(path, problems)
    return tuple(questions)


def digest_questions(questions: Iterable[ProbeQuestion | KnowledgeQuestion]) -> str:
    """Return one SHA-256 over what is asked, and of a knowledge probe what is expected."""
    return digest_json(
        [
            [item.question, item.ideal] if isinstance(item, KnowledgeQuestion) else [item.qid, item.question]
            for item in questions
        ]
    )


def _read_lines(path: str | Path) -> Sequence[tuple[int, dict[str, Any]]]:
    source = Path(path)
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ProbeError(f"{source} cannot be read as a probe set ({err}); give a JSONL file") from err
    lines: list[tuple[int, dict[str, Any]]] = []
    problems = []
    # Not splitlines: a JSON text may hold other line separators of Unicode as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as err:
            problems.append(f"line {number} is not JSON ({err})")
            continue
        if isinstance(value, dict):
            lines.append((number, value))
        else:
            problems.append(f"line {number} is {_show(value)}; a JSON object is needed")
    if not lines and not problems:
        problems.append("no lines; a probe set holds at least one question")
    _refuse(source, problems)
    return lines


def _kind_of(line: Mapping[str, Any]) -> ProbeKind | None:
    if all(key in line for key in _REASONING_KEYS):
        return "reasoning"
    return "knowledge" if all(key in line for key in _KNOWLEDGE_KEYS) else None


def _reasoning_problems(line: Mapping[str, Any]) -> Iterable[str]:
    qid = line.get("qid")
    is_number = isinstance(qid, int) and not isinstance(qid, bool)
    for key in _REASONING_KEYS[1:] if is_number else _REASONING_KEYS:
        yield from _text_problems(line, key)
    for key in _OPTIONAL_KEYS:
        if not isinstance(line.get(key), str | None):
            yield f"{key} is {_show(line[key])}; a text is allowed"


def _text_problems(line: Mapping[str, Any], key: str) -> Iterable[str]:
    value = line.get(key)
    if not isinstance(value, str) or not value.strip():
        yield f"{key} is {_show(value)}; a text is needed"
    elif any("\ud800" <= letter <= "\udfff" for letter in value):
        yield f"{key} holds half a surrogate pair, which is no character"


def _repeated(names: Sequence[str], what: str) -> Iterable[str]:
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{what} {_show(name)} stands there {count} times; each is asked once"


def _refuse(path: str | Path, problems: Sequence[str]) -> None:
    if not problems:
        return
    shown = "".join(f"\n  {text}" for text in problems[:_SHOWN])
    more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    raise ProbeError(f"{path} is no probe set:{shown}{more}")


def _show(value: Any) -> str:
    text = "missing" if value is None else json.dumps(value, default=repr)
    return text if len(text) <= 80 else text[:77] + "..."
