"""The runs that a sidecar mirrors, as frozen records and as JSON, and what is remembered of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tools.files import write_json_atomic
from tools.recipe import TrainRecipe
from tools.secret_scan import find_secrets

__all__ = ["Mark", "ScoreFile", "SidecarSpec", "TrackedRun", "describe_recipe", "load_mark", "save_mark"]

FOLDER: Final = "trackers"


@dataclass(frozen=True)
class ScoreFile:
    """Where the scores of a split will appear, and the mark of the file that lies there before."""

    split: str
    path: str
    before: tuple[int, int] | None = None

    @classmethod
    def expected(cls, split: str, path: Path) -> ScoreFile:
        """Return the file as it is now: only one written later than this counts."""
        return cls(split, str(path), file_mark(path))

    @property
    def is_new(self) -> bool:
        found = file_mark(Path(self.path))
        return found is not None and found != self.before


@dataclass(frozen=True)
class TrackedRun:
    """A training, or the scoring of one, under the name that it has in a tracker."""

    name: str
    run_dir: str
    recipe: Mapping[str, Any] | None = None
    """What may be told of it; None where only scores are told: the run is known by its folder."""
    recipe_digest: str | None = None
    member: str = "run"
    """Its trial id in the worker's result."""
    scores: tuple[ScoreFile, ...] = ()

    @classmethod
    def of(cls, recipe: TrainRecipe, *, name: str, run_dir: str | Path, member: str = "run") -> TrackedRun:
        """Return the run of a recipe. This record is written to disk, and holds no secret of it."""
        return cls(name, str(run_dir), describe_recipe(recipe.to_dict()), recipe.digest, member)


@dataclass(frozen=True)
class SidecarSpec:
    """What one sidecar mirrors."""

    runs: tuple[TrackedRun, ...]
    result_path: str | None = None
    """Where the worker says how each member ended."""

    def write(self, path: Path) -> Path:
        """Write the spec as JSON."""
        return write_json_atomic(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> SidecarSpec:
        """Read what `write` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        runs = []
        for entry in data["runs"]:
            files = [
                ScoreFile(one["split"], one["path"], None if one["before"] is None else tuple(one["before"]))
                for one in entry.pop("scores")
            ]
            runs.append(TrackedRun(**entry, scores=tuple(files)))
        return cls(tuple(runs), data["result_path"])


@dataclass(frozen=True)
class Mark:
    """How far a tracker has been told of a run, kept beside the run so that a resumed one goes on."""

    identity: str | None
    run_id: str
    step: int = 0
    eval_step: int = 0
    is_open: bool = False
    """The tracker may know the run already."""
    extra: Mapping[str, str] = field(default_factory=dict)


def load_mark(run: TrackedRun, tracker: str) -> Mark | None:
    """Return what is remembered of a run; None for one that is new, or another in the same folder."""
    try:
        found = Mark(**json.loads(mark_file(run, tracker).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return found if run.recipe_digest in (None, found.identity) else None


def save_mark(run: TrackedRun, tracker: str, mark: Mark) -> None:
    """Remember how far the tracker is."""
    write_json_atomic(mark_file(run, tracker), asdict(mark))


def mark_file(run: TrackedRun, tracker: str) -> Path:
    """Return the file in which a tracker's mark of a run lies."""
    return Path(run.run_dir) / FOLDER / f"{tracker}.json"


def describe_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a tracker may be told of a recipe: of `extra_env` only the names."""
    shown = {**recipe, "extra_env": sorted(recipe.get("extra_env") or {})}
    return {key: value for key, value in shown.items() if not find_secrets(json.dumps(value))}


def file_mark(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file is replaced; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
