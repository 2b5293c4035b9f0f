"""A decide entry: one question, the context it was asked in, and what was found."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final

from tools.decisions.provenance import Provenance, shorten
from tools.errors import DecideError
from tools.yaml_text import parse_yaml

VALID_LIFECYCLES: Final = frozenset({"active", "superseded", "deprecated"})
MAX_ENTRY_BYTES: Final = 1 << 20

_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}\Z")
_FINDING_KEYS: Final = ("optimize_for", "pick", "evidence")


@dataclass(frozen=True)
class DecideFinding:
    """The answer for one goal: what to pick, and why."""

    optimize_for: str
    pick: str
    evidence: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the finding that this version does not know, kept as they came."""


@dataclass(frozen=True)
class DecideEntry:
    """A question, its context and its findings, as one YAML file holds them.

    `slug` names the file and is what `supersedes` of other entries refers to.

    Raises:
        DecideError: the lifecycle is unknown, or there is no finding.
    Source: fieldkit.training.DecideEntry; `provenance` and `extra` are this project's.
    """

    slug: str
    lifecycle: str
    created: date
    question: str
    context: Mapping[str, Any]
    findings: tuple[DecideFinding, ...]
    sources: tuple[str, ...] = ()
    supersedes: tuple[str, ...] = ()
    notes: str = ""
    path: Path | None = None
    """Where it was read from; None for an entry made in memory."""
    provenance: Provenance | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Top-level keys that this version does not know, kept as they came."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "findings", tuple(self.findings))
        if self.lifecycle not in VALID_LIFECYCLES:
            allowed = sorted(VALID_LIFECYCLES)
            raise DecideError(f"entry {self.slug!r}: lifecycle is {self.lifecycle!r}; allowed: {allowed}")
        if not self.findings:
            raise DecideError(f"entry {self.slug!r} has no findings; at least one is needed")

    def age_days(self, *, today: date | None = None) -> int:
        """Return the days from `created` to today (the local date), at least 0."""
        now = today or datetime.now().astimezone().date()
        return max(0, (now - self.created).days)

    def matches_context(self, **constraints: Any) -> bool:
        """Return whether the context has every one of these keys with exactly this value."""
        return all(key in self.context and self.context[key] == value for key, value in constraints.items())

    def find(self, *, optimize_for: str) -> DecideFinding | None:
        """Return the first finding for a goal, or None."""
        return next((found for found in self.findings if found.optimize_for == optimize_for), None)

    @classmethod
    def from_yaml(cls, path: str | Path) -> DecideEntry:
        """Read an entry from a YAML file, or from JSON where the name ends in .json.

        Raises:
            DecideError: missing, unreadable, over 1 MiB, no mapping, or a malformed entry.
        """
        file = Path(path)
        data = _parse(file, _read_text(file))
        if not isinstance(data, Mapping):
            raise DecideError(f"{file} holds a {type(data).__name__}; an entry is a mapping")
        return cls.from_dict(data, path=file.resolve())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, path: Path | None = None) -> DecideEntry:
        """Build an entry from plain values. Unknown keys are kept in `extra`.

        Raises:
            DecideError: a required key is missing, or a value has the wrong shape.
        """
        missing = [key for key in ("slug", "lifecycle", "created", "question", "findings") if key not in data]
        if missing:
            where = f" in {path}" if path else ""
            raise DecideError(f"missing key(s) {missing}{where}; every decide entry needs them")
        slug = _text(data["slug"], "slug")
        label = f"entry {slug!r}"
        context = data.get("context") or {}
        if not isinstance(context, Mapping):
            raise DecideError(f"{label}: context is {shorten(context)}; it must be a mapping")
        block = data.get("provenance")
        return cls(
            slug=slug,
            lifecycle=_text(data["lifecycle"], f"{label}: lifecycle"),
            created=_as_date(data["created"], label),
            question=_text(data["question"], f"{label}: question"),
            context=dict(context),
            findings=_as_findings(data["findings"], label),
            sources=_as_texts(data.get("sources"), f"{label}: sources"),
            supersedes=_as_texts(data.get("supersedes"), f"{label}: supersedes"),
            notes=_text(data.get("notes") or "", f"{label}: notes", empty=True),
            path=path,
            provenance=None if block is None else Provenance.from_dict(block),
            extra={key: value for key, value in data.items() if key not in ENTRY_KEYS},
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values of the file, in the order of the schema."""
        plain: dict[str, Any] = {
            "slug": self.slug,
            "lifecycle": self.lifecycle,
            "created": self.created,
            "question": self.question,
            "context": dict(self.context),
            "findings": [
                {"optimize_for": found.optimize_for, "pick": found.pick, "evidence": found.evidence}
                | dict(found.extra)
                for found in self.findings
            ],
            "sources": list(self.sources),
            "supersedes": list(self.supersedes),
            "notes": self.notes,
        }
        if self.provenance is not None:
            plain["provenance"] = self.provenance.to_dict()
        return plain | dict(self.extra)


ENTRY_KEYS: Final = frozenset(
    {
        "slug",
        "lifecycle",
        "created",
        "question",
        "context",
        "findings",
        "sources",
        "supersedes",
        "notes",
        "provenance",
    }
)


def _read_text(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_ENTRY_BYTES + 1)
        if len(data) > MAX_ENTRY_BYTES:
            raise DecideError(f"{file} is larger than {MAX_ENTRY_BYTES} bytes; an entry is a page of text")
        return data.decode("utf-8-sig")
    except FileNotFoundError as err:
        raise DecideError(f"no decide entry at {file}") from err
    except (OSError, UnicodeDecodeError) as err:
        raise DecideError(f"{file} cannot be read: {err}") from err


def _parse(file: Path, text: str) -> Any:
    if file.suffix.lower() == ".json":
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as err:
            raise DecideError(f"{file} cannot be read as JSON: {err}") from err
    try:
        if _has_alias(text):
            raise DecideError(f"{file} uses a YAML alias (*name); write the value out instead")
        return parse_yaml(text)
    except ValueError as err:
        raise DecideError(f"{file} cannot be read as YAML: {err}") from err


def _has_alias(text: str) -> bool:
    """Return whether a text uses an alias, with which a page can stand for more than memory holds."""
    import yaml

    if "*" not in text:
        return False
    try:
        return any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text))
    except (yaml.YAMLError, RecursionError) as err:
        raise ValueError(str(err) or "nested too deeply") from err


def _as_findings(value: Any, label: str) -> tuple[DecideFinding, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise DecideError(f"{label}: findings is {shorten(value)}; it must be a list")
    return tuple(_as_finding(item, f"{label}: finding {index}") for index, item in enumerate(value))


def _as_finding(value: Any, label: str) -> DecideFinding:
    if not isinstance(value, Mapping):
        raise DecideError(f"{label} is {shorten(value)}; it must be a mapping with optimize_for and pick")
    missing = [key for key in ("optimize_for", "pick") if key not in value]
    if missing:
        raise DecideError(f"{label} has no {missing}; every finding needs optimize_for and pick")
    return DecideFinding(
        optimize_for=_text(value["optimize_for"], f"{label}: optimize_for"),
        pick=_text(value["pick"], f"{label}: pick"),
        evidence=_text(value.get("evidence") or "", f"{label}: evidence", empty=True),
        extra={key: item for key, item in value.items() if key not in _FINDING_KEYS},
    )


def _as_texts(value: Any, label: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise DecideError(f"{label} is {shorten(value)}; it must be a list of strings")
    return tuple(_text(item, label) for item in value)


def _text(value: Any, label: str, *, empty: bool = False) -> str:
    """Return a scalar as text: YAML reads an unquoted 2026-05-22 as a date and 8 as a number."""
    if not isinstance(value, str | int | float | date) or (not empty and not str(value).strip()):
        raise DecideError(f"{label} is {shorten(value)}; it must be {'a' if empty else 'a non-empty'} string")
    return str(value)


def _as_date(value: Any, label: str) -> date:
    if isinstance(value, datetime):
        return value.date()
    if isinstance(value, date):
        return value
    if isinstance(value, str) and _DATE.match(value):
        try:
            return date.fromisoformat(value)
        except ValueError as err:
            raise DecideError(f"{label}: created is {shorten(value)}: {err}") from err
    raise DecideError(f"{label}: created is {shorten(value)}; it must be a date written YYYY-MM-DD")
