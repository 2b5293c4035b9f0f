"""Staleness of decisions: what has aged, and what the world has moved away from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Final

from tools.decisions import DecideEntry, load_entries
from tools.errors import DecideError

__all__ = ["DEFAULT_FRESHNESS_DAYS", "Environment", "StalenessReport", "refresh", "staleness"]

DEFAULT_FRESHNESS_DAYS: Final = 180


@dataclass(frozen=True)
class Environment:
    """What a decision may be compared with today. None and a missing library mean unknown."""

    base_model: str | None = None
    base_model_digest: str | None = None
    driver: str | None = None
    library_versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StalenessReport:
    """An entry, its age, and whether it should be measured again or superseded."""

    entry: DecideEntry
    age_days: int
    stale: bool
    reasons: tuple[str, ...] = ()
    """A sentence for each reason; none for a fresh entry."""


def staleness(
    entry: DecideEntry,
    *,
    today: date,
    environment: Environment | None = None,
    freshness_days: int = DEFAULT_FRESHNESS_DAYS,
) -> tuple[str, ...]:
    """Return why an entry is stale; nothing when it is fresh.

    What the entry's provenance or the environment does not say is no reason.

    Args:
        entry: Stale when older than freshness_days: at that very age it is fresh.
        today: The day to count from.
        environment: What the machine has today; None looks at the age alone.
        freshness_days: From 0.
    Raises:
        DecideError: freshness_days is negative.
    """
    if freshness_days < 0:
        raise DecideError(f"freshness_days is {freshness_days}; it must be 0 or more")
    reasons: list[str] = []
    age = entry.age_days(today=today)
    if age > freshness_days:
        reasons.append(f"{age} days old, more than {freshness_days}")
    if environment is not None:
        reasons += _changes(entry, environment)
    return tuple(reasons)


def refresh(
    *,
    dirs: Iterable[str | Path] | None = None,
    freshness_days: int = DEFAULT_FRESHNESS_DAYS,
    today: date | None = None,
    include_lifecycle: str | Iterable[str] | None = None,
    environment: Environment | None = None,
) -> list[StalenessReport]:
    """Report on every entry, the oldest first.

    Args:
        dirs: Folders to read; default as in `load_entries`.
        freshness_days: An entry older than this is stale.
        today: Default: the local date.
        include_lifecycle: One lifecycle, several, or None for all.
        environment: What the machine has today; None looks at the age alone.
    Raises:
        DecideError: freshness_days is negative, or a lifecycle is unknown.
    """
    if freshness_days < 0:
        raise DecideError(f"freshness_days is {freshness_days}; it must be 0 or more")
    now = today or datetime.now().astimezone().date()
    reports = []
    for entry in load_entries(dirs=dirs, lifecycle=include_lifecycle):
        reasons = staleness(entry, today=now, environment=environment, freshness_days=freshness_days)
        reports.append(StalenessReport(entry, entry.age_days(today=now), bool(reasons), reasons))
    return sorted(reports, key=lambda report: report.age_days, reverse=True)


def _changes(entry: DecideEntry, now: Environment) -> list[str]:
    was = entry.provenance
    base_model = entry.context.get("base_model")
    pairs = [("the base model", base_model if isinstance(base_model, str) else None, now.base_model)]
    if was is not None:
        pairs = [("the base model", was.base_model or pairs[0][1], now.base_model)]
        if was.base_model == now.base_model:
            pairs.append(("the base model's digest", was.base_model_digest, now.base_model_digest))
        pairs.append(("the driver", was.driver, now.driver))
        pairs += [
            (name, version, now.library_versions.get(name))
            for name, version in sorted(was.library_versions.items())
            if not _is_same_release(version, now.library_versions.get(name, version))
        ]
    return [
        f"{what} was {before}, is now {after}"
        for what, before, after in pairs
        if before is not None and after is not None and before != after
    ]


def _is_same_release(before: str, after: str) -> bool:
    """Compare versions; a build such as `+cpu` counts where both name one."""
    one, other = before.partition("+"), after.partition("+")
    return one[0] == other[0] and (not one[2] or not other[2] or one[2] == other[2])
