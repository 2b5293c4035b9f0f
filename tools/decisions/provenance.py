"""Where a decision comes from: the run, the data and the machine behind its evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from tools.errors import DecideError


@dataclass(frozen=True)
class Provenance:
    """What it takes to repeat a bakeoff and to see that the world has moved on since.

    None and empty mean unknown, never zero.
    """

    commit: str | None = None
    """The commit that the trials ran from."""
    recipe_digest: str | None = None
    data_digest: str | None = None
    base_model: str | None = None
    base_model_digest: str | None = None
    seeds: tuple[int, ...] = ()
    n_items: int | None = None
    """Items per seed that the effect was measured on."""
    effect: float | None = None
    """Mean paired gain over the incumbent, as a share of 1."""
    interval: tuple[float, float] | None = None
    """Lower and upper end of the effect's interval."""
    level: float | None = None
    """Confidence of the interval, after correction for the number of candidates."""
    hardware: str | None = None
    driver: str | None = None
    library_versions: Mapping[str, str] = field(default_factory=dict)
    planner: str | None = None
    trial_ids: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the block that this version does not know, kept as they came."""

    def __post_init__(self) -> None:
        for name in ("seeds", "trial_ids", "interval"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        self._check_texts()
        self._check_numbers()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Provenance:
        """Build from the `provenance` block of an entry.

        Raises:
            DecideError: a key holds the wrong kind of value.
        """
        if not isinstance(data, Mapping):
            raise DecideError(f"provenance is {shorten(data)}; it must be a mapping")
        known = {key: value for key, value in data.items() if key in _KEYS}
        extra = {str(key): value for key, value in data.items() if key not in _KEYS}
        return cls(**{key: value for key, value in known.items() if value is not None}, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """Return the block as plain values, without what is unknown."""
        plain = {name: getattr(self, name) for name in _KEYS}
        plain["library_versions"] = dict(sorted(self.library_versions.items()))
        for name in ("seeds", "trial_ids", "interval"):
            plain[name] = None if plain[name] is None else list(plain[name])
        return {key: value for key, value in plain.items() if value not in (None, [], {})} | dict(self.extra)

    def _check_texts(self) -> None:
        for name in _TEXTS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise DecideError(f"provenance.{name} is {shorten(value)}; it must be a string: quote it")
        versions = self.library_versions
        fine = isinstance(versions, Mapping) and all(
            isinstance(key, str) and isinstance(value, str) for key, value in versions.items()
        )
        if not fine:
            raise DecideError(
                f"provenance.library_versions is {shorten(versions)}; it must map names to quoted strings"
            )
        if not isinstance(self.trial_ids, tuple) or not all(isinstance(item, str) for item in self.trial_ids):
            raise DecideError(
                f"provenance.trial_ids is {shorten(self.trial_ids)}; it must be a list of quoted strings"
            )

    def _check_numbers(self) -> None:
        if not isinstance(self.seeds, tuple) or not all(_is_whole(seed) for seed in self.seeds):
            raise DecideError(
                f"provenance.seeds is {shorten(self.seeds)}; it must be a list of whole numbers"
            )
        if self.n_items is not None and not (_is_whole(self.n_items) and self.n_items >= 0):
            raise DecideError(f"provenance.n_items is {self.n_items!r}; it must be a whole number from 0")
        if self.effect is not None and not _is_finite(self.effect):
            raise DecideError(f"provenance.effect is {self.effect!r}; it must be a finite number")
        if self.level is not None and not (_is_finite(self.level) and 0 < self.level < 1):
            raise DecideError(f"provenance.level is {self.level!r}; it must lie between 0 and 1")
        ends = self.interval
        if ends is None:
            return
        if not (
            isinstance(ends, tuple) and len(ends) == 2 and all(map(_is_finite, ends)) and ends[0] <= ends[1]
        ):
            raise DecideError(
                f"provenance.interval is {shorten(ends)}; it must be [low, high], finite, low <= high"
            )


_KEYS: Final = tuple(item.name for item in fields(Provenance) if item.name != "extra")
_TEXTS: Final = (
    "commit",
    "recipe_digest",
    "data_digest",
    "base_model",
    "base_model_digest",
    "hardware",
    "driver",
    "planner",
)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def shorten(value: object) -> str:
    """Return the repr of a value that came in, cut to what a message can carry."""
    text = repr(value)
    return text if len(text) <= 120 else text[:119] + "…"
