"""The incumbent: the best recipe so far, with the trials that measured it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agent.locks import Locks
from agent.records import CandidateRecord, Record, TrialRecord
from tools.errors import TaskError
from tools.files import write_json_atomic
from tools.recipe import TrainRecipe

INCUMBENT = "incumbent"
INCUMBENT_NAME = "incumbent.json"
"""Its file, in the lineage folder."""


class Incumbent(Record):
    """The best recipe so far, its trials, and the ground that they were measured on."""

    recipe: dict[str, Any]
    trials: tuple[TrialRecord, ...]
    since: str
    """The iteration that made it the incumbent."""
    locks: Locks
    base_dev: float | None = None
    base_selection: float | None = None
    """Scores of the untrained base model, for the reader: no verdict rests on them."""
    start_trials: tuple[TrialRecord, ...] = ()
    """The trials of the recipe that the workspace started with."""

    @property
    def train_recipe(self) -> TrainRecipe:
        return TrainRecipe.from_dict(self.recipe)

    @property
    def trial_id(self) -> str:
        return self.trials[0].trial_id

    @property
    def selection(self) -> float | None:
        """Mean selection score over its seeds."""
        scores = [trial.selection for trial in self.trials if trial.selection is not None]
        return sum(scores) / len(scores) if scores else None

    def as_candidate(self) -> CandidateRecord:
        """Return the incumbent in the shape of a candidate, to train it on a further seed."""
        return CandidateRecord(
            candidate_id=INCUMBENT,
            patch={},
            recipe=self.recipe,
            changes=(),
            hypothesis="the best recipe so far",
        )


def load_incumbent(path: Path) -> Incumbent | None:
    """Return the incumbent written at path, or None where there is none.

    Raises:
        TaskError: the file is not one that this project wrote.
    """
    try:
        return parse_incumbent(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def parse_incumbent(text: str) -> Incumbent:
    """Return the incumbent that a file's text holds.

    Raises:
        TaskError: the text is not one that this project wrote.
    """
    try:
        return Incumbent.model_validate(json.loads(text))
    except ValueError as err:
        raise TaskError(
            f"lineage/incumbent.json is damaged ({err}); restore it from git, or delete it to measure anew"
        ) from err


def save_incumbent(path: Path, incumbent: Incumbent) -> None:
    """Write the incumbent, whole or not at all."""
    write_json_atomic(path, incumbent.model_dump(mode="json"))


def still_holds(incumbent: Incumbent, recipe: TrainRecipe, locks: Locks) -> bool:
    """Say whether its scores were measured on this recipe, task and data."""
    return incumbent.train_recipe.digest == recipe.digest and incumbent.locks == locks
