"""What the driver of a run asks its node, and what the node answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Facts", "Growth", "Mark", "Seen", "View"]

Mark = tuple[int, int]
"""What tells a checkpoint's folder on the node from a later one of the same number."""


@dataclass(frozen=True)
class Facts:
    """Where the work is done."""

    name: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Seen:
    """What has come back so far. A reply that got lost costs nothing: the same question brings it again."""

    log_bytes: int = 0
    metrics_file: int = 0
    """The inode of the metrics on the node, which are written anew when a run is resumed."""
    metrics_bytes: int = 0
    checkpoints: Mapping[int, Mark] = field(default_factory=dict)


@dataclass(frozen=True)
class Growth:
    """What a file of whole lines has more than before, or, with start 0, all that it has."""

    file: int
    start: int
    data: bytes


@dataclass(frozen=True)
class View:
    """One look at the run on the node."""

    exit_code: int | None
    """Read before all else: with it known, nothing can be missing from the rest."""
    log: bytes
    metrics: Growth | None
    latest: int | None
    """What the tracker named before the folders were listed: they are whole up to there."""
    best: int | None
    steps: tuple[int, ...]
    """Checkpoints on the node, up to latest."""
    wanted: Mapping[int, Mark]
    """Those that have not come back."""

    @property
    def is_last(self) -> bool:
        """The worker has ended, and there is nothing left to fetch."""
        return self.exit_code is not None and not self.log and self.metrics is None and not self.wanted
