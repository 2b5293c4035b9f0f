"""The work of a bakeoff benchmark: what every contender is given, as one JSON file.

Imported by all parts of the benchmark, some of which run in an environment with nothing of this
project: the standard library alone.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

__all__ = ["ABSENT", "Job", "Measured", "Recipe", "Work", "rate_at", "write_measured"]

ABSENT: Final = 3
"""Exit code of a contender whose packages are not there; the reason is its last line on stderr."""


@dataclass(frozen=True)
class Recipe:
    """What distinguishes one run of the bakeoff from the next."""

    name: str
    learning_rate: float
    rank: int
    alpha: int
    seed: int
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Work:
    """The same for all contenders."""

    model: str
    """Folder of the base in Hugging Face layout."""
    rows: str
    """JSONL of conversations."""
    tokens: str
    """The same rows as token ids and masks: the contenders that are not ours need not tokenise."""
    device: str
    rows_per_step: int
    steps: int
    warm_steps: int
    """First steps of a process that do not count for tokens/s."""
    recipes: tuple[Recipe, ...]
    system_prompt: str | None = None
    dev: str | None = None
    """JSONL of the rows that a decision rests on."""
    dev_tokens: str | None = None
    """The same rows as prompt tokens and expected answers."""

    @classmethod
    def of(cls, data: dict[str, Any]) -> Work:
        recipes = tuple(Recipe(**{**item, "targets": tuple(item["targets"])}) for item in data["recipes"])
        return cls(**{**data, "recipes": recipes})

    def token_rows(self) -> list[dict[str, list[int]]]:
        """Return the rows, each with input_ids and completion_mask."""
        return _list_in(self.tokens)

    def dev_questions(self) -> list[dict[str, Any]]:
        """Return the dev rows, each with prompt_ids and expected."""
        assert self.dev_tokens is not None
        return _list_in(self.dev_tokens)


def _list_in(path: str) -> list[Any]:
    rows = json.loads(Path(path).read_text(encoding="utf-8"))
    assert isinstance(rows, list)
    return rows


@dataclass(frozen=True)
class Job:
    """What one process is asked to do."""

    work: Work
    contender: str
    recipes: tuple[int, ...]
    folder: str
    """Where the process leaves its adapters and `measured.json`."""

    @classmethod
    def read(cls, path: str) -> Job:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(Work.of(data["work"]), data["contender"], tuple(data["recipes"]), data["folder"])

    def write(self) -> Path:
        path = Path(self.folder) / "job.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path

    @property
    def chosen(self) -> tuple[Recipe, ...]:
        return tuple(self.work.recipes[i] for i in self.recipes)


@dataclass(frozen=True)
class Measured:
    """What one process found."""

    tokens_per_s: float
    """Real tokens a second, without the first steps."""
    tokens_per_cpu_s: float
    """Real tokens a second of processor time: what other work on the machine changes least."""
    tokens: int
    """Real tokens of all steps."""
    losses: dict[str, float]
    """Mean training loss of each recipe: contenders that do the same work have about the same."""
    peak_bytes: int
    versions: dict[str, str]
    scores: dict[str, float] | None = None
    """Dev score of each recipe, where a decision was asked for."""


def rate_at(peak: float, step: int, total: int) -> float:
    """Return the learning rate of a step counted from 0: a cosine to zero, without warm-up."""
    return peak * (1 + math.cos(math.pi * step / total)) / 2


def peak_bytes(device: str) -> int:
    """Return the peak of this process: of the allocator on CUDA, of its whole memory elsewhere."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True)
class Speed:
    """Tokens a second: of the clock on the wall, and of all processors' work."""

    wall: float
    cpu: float


class Stopwatch:
    """Seconds and tokens after the first steps; the device is waited for at both ends alone."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._started: tuple[float, float] | None = None
        self._tokens_before = 0

    def start(self, tokens_before: int) -> None:
        self._started, self._tokens_before = self._now(), tokens_before

    def speed(self, tokens: int) -> Speed:
        """Return the speed from start until now."""
        assert self._started is not None, "fewer steps than warm-up steps"
        done = tokens - self._tokens_before
        wall_s, cpu_s = (now - then for now, then in zip(self._now(), self._started, strict=True))
        return Speed(done / wall_s, done / cpu_s)

    def _now(self) -> tuple[float, float]:
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()


def write_measured(job: Job, measured: Measured) -> None:
    (Path(job.folder) / "measured.json").write_text(json.dumps(asdict(measured)), encoding="utf-8")


def versions_of(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of the packages that are there."""
    from importlib import metadata

    found = {"python": sys.version.split()[0]}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def n_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
