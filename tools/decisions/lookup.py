"""The lookup: the newest standing entry that answers a question in a context."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from tools.decisions.corpus import load_entries
from tools.decisions.entry import DecideEntry
from tools.errors import DecideError


@dataclass(frozen=True)
class DecidePick:
    """An answer, the evidence for it and the entry that gave it."""

    pick: str
    evidence: str
    entry: DecideEntry
    optimize_for: str
    context: Mapping[str, Any]
    """The context of the entry, which may say more than was asked."""

    @property
    def backend(self) -> str:
        """The pick, under the name that fits the question `train_backend`."""
        return self.pick

    @property
    def entry_path(self) -> Path | None:
        """Where the entry was read from."""
        return self.entry.path


def decide(
    question: str,
    *,
    context: Mapping[str, Any],
    optimize_for: str,
    dirs: Iterable[str | Path] | None = None,
) -> DecidePick:
    """Return what the newest active entry found for a question.

    Args:
        question: What is asked, such as `train_backend`.
        context: Every key must be in the entry's context with this value, or this text for it;
            an entry that does not say is no match.
        optimize_for: The goal of the finding.
        dirs: Folders to look in; default as in `load_entries`.
    Raises:
        DecideError: no active entry covers the question, the context or the goal; it lists
            what the corpus has.
    """
    entries = load_entries(dirs=dirs, lifecycle="active", question=question)
    matched = [entry for entry in entries if _covers(entry, context)]
    asked = ", ".join(f"{key}={value!r}" for key, value in context.items()) or "any context"
    if not matched:
        seen = ", ".join(f"{entry.slug}@{entry.created.isoformat()}" for entry in entries) or "none"
        raise DecideError(
            f"no active {question} entry for {asked} (active entries: {seen}); ask for less, or add an entry"
        )
    for entry in matched:
        found = entry.find(optimize_for=optimize_for)
        if found is not None:
            return DecidePick(found.pick, found.evidence, entry, optimize_for, dict(entry.context))
    goals = sorted({found.optimize_for for entry in matched for found in entry.findings})
    raise DecideError(
        f"no {question} entry for {asked} has a finding on optimize_for={optimize_for!r}; available: {goals}"
    )


def train_backend(
    *,
    base_model_family: str,
    optimize_for: str,
    dirs: Iterable[str | Path] | None = None,
) -> DecidePick:
    """Return the lane to train on: `decide` on the question `train_backend`.

    Raises:
        DecideError: no active entry covers the family and the goal; it lists what the corpus has.
    """
    context = {"base_model_family": base_model_family}
    return decide("train_backend", context=context, optimize_for=optimize_for, dirs=dirs)


def _covers(entry: DecideEntry, context: Mapping[str, Any]) -> bool:
    return all(key in entry.context and _same(entry.context[key], value) for key, value in context.items())


def _same(held: Any, asked: Any) -> bool:
    """Compare as values, or by how YAML writes a scalar: a command line has only texts to give."""
    if isinstance(held, bool) or isinstance(asked, bool):
        return str(held).lower() == str(asked).lower()
    if isinstance(held, int | float | date) and isinstance(asked, str):
        return str(held) == asked
    return bool(held == asked)
