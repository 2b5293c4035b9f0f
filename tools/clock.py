"""The clock, as a function that callers hand in and tests replace."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], str]
"""Returns the time now in UTC as `2026-11-20T04:49:00Z`."""

__all__ = ["Clock", "utc_now"]


def utc_now() -> str:
    """Return the time now in UTC as `2026-11-20T04:49:00Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
