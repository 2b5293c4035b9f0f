"""What a lane is: the way from a recipe to a running trainer and back to its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tools.recipe import Mode, TrainRecipe

__all__ = ["Lane", "LaunchPlan", "Outcome", "count_rows"]


@dataclass(frozen=True)
class LaunchPlan:
    """A command to execute, without a shell, and how to end what it may leave running."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment; values may be secret and are never written down."""
    stop_argv: tuple[str, ...] | None = None
    """Ends a trainer that the command's own death does not reach, one in a container."""


@dataclass(frozen=True)
class Outcome:
    """What a lane's trainer itself said about its end."""

    final_iter: int
    stopped_early: bool
    error: str | None


class Lane(Protocol):
    """One way to run a recipe. Lanes keep no state; all they know comes as arguments."""

    name: str

    def prepare(
        self, recipe: TrainRecipe, mode: Mode, run_dir: Path, *, mid_eval: Mapping[str, Any] | None = None
    ) -> LaunchPlan:
        """Write what the trainer will read into run_dir and return the command.

        Args:
            recipe: Its paths are absolute.
            mode: `smoke` or `full`.
            run_dir: Exists; may hold the checkpoints of this same run, cut short.
            mid_eval: The engine's settings for mid-run evaluations.
        Raises:
            TrainError: the lane cannot run this recipe.
        """
        ...

    def outcome(self, run_dir: Path) -> Outcome | None:
        """Return the trainer's own account of the run just ended, None where it leaves none."""
        ...


def count_rows(recipe: TrainRecipe) -> int:
    """Return how many rows the recipe's dataset holds, without reading them as JSON."""
    with Path(recipe.dataset_jsonl).open("rb") as file:
        return sum(1 for line in file if line.strip())
