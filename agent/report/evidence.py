"""What an iteration left on disk, read for the report: score rows, and training curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.records import TrialRecord
from tools.comparison import Interval, Scores, interval
from tools.errors import EvidenceError
from tools.evaluation.scores import ScoreRow, read_scores
from tools.files import read_jsonl
from tools.workspace import Workspace

__all__ = ["Curve", "Evidence", "EvidenceReader", "Point"]

Point = tuple[int, float]


@dataclass(frozen=True)
class Curve:
    """How one trial went: a point per step of training, and per mid-run evaluation."""

    trial_id: str
    seed: int
    losses: tuple[Point, ...]
    scores: tuple[Point, ...]


@dataclass(frozen=True)
class Evidence:
    """All that is on disk about one recipe."""

    selection: Interval | None
    """Mean selection score over its trials; None where it has no interval."""
    dev_rows: tuple[ScoreRow, ...]
    curves: tuple[Curve, ...]


class EvidenceReader:
    """Reads what trials left, and keeps a sentence on whatever could not be read.

    A fresh clone has no state folder, so the committed lineage is the second place to look.
    """

    def __init__(self, workspace: Workspace, lineage: Path) -> None:
        self._workspace = workspace
        self._lineage = lineage
        self._problems: list[str] = []

    @property
    def problems(self) -> tuple[str, ...]:
        """What could not be read, without the machine's own paths."""
        return tuple(dict.fromkeys(self._problems))

    def read(self, name: str, trials: Sequence[TrialRecord], level: float) -> Evidence:
        """Return what the trials of one recipe left.

        Args:
            name: What to call the recipe where something is amiss.
            trials: Its trials, a seed each.
            level: Of the interval around its selection score.
        """
        return Evidence(
            selection=self._selection(name, trials, level),
            dev_rows=tuple(row for trial in trials for row in self._scores(trial, "dev")),
            curves=tuple(self._curve(trial) for trial in trials),
        )

    def _selection(self, name: str, trials: Sequence[TrialRecord], level: float) -> Interval | None:
        rows = [row for trial in trials for row in self._scores(trial, "selection")]
        if not rows:
            return None
        try:
            return interval(Scores.from_rows(rows), level)
        except EvidenceError as err:
            self._note(f"{name} has no interval on selection: {err}")
            return None

    def _curve(self, trial: TrialRecord) -> Curve:
        path = self._find(trial, trial.run_dir, "metrics.jsonl")
        # A line that is torn or foreign costs itself alone.
        rows = [row for row in read_jsonl(path).rows if isinstance(row, dict)] if path else []
        return Curve(trial.trial_id, trial.seed, _points(rows, "loss"), _points(rows, "eval_score"))

    def _scores(self, trial: TrialRecord, split: str) -> tuple[ScoreRow, ...]:
        if not trial.scored:
            return ()
        path = self._find(trial, trial.scores_dir, f"{split}.jsonl")
        if path is None:
            self._note(f"the {split} scores of {trial.trial_id} are missing")
            return ()
        try:
            rows = read_scores(path)
        except EvidenceError as err:
            self._note(f"the {split} scores of {trial.trial_id} are damaged: {err}")
        except OSError as err:
            self._note(f"the {split} scores of {trial.trial_id} cannot be read: {err.strerror}")
        else:
            # Of a judged split only scores may reach a page.
            return rows if split == "dev" else tuple(row.redacted() for row in rows)
        return ()

    def _find(self, trial: TrialRecord, folder: str | None, name: str) -> Path | None:
        places = [self._lineage / trial.trial_id / name]
        if folder is not None:
            places.insert(0, self._workspace.root / folder / name)
        return next((place for place in places if place.is_file()), None)

    def _note(self, problem: str) -> None:
        shown = problem
        for root in (self._workspace.root, self._lineage.parent):
            shown = shown.replace(f"{root}/", "")
        self._problems.append(shown)


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[Point, ...]:
    """Return (step, value) in the order of steps; a step told of twice counts as last told."""
    found = {
        int(row["step"]): float(row[key])
        for row in rows
        if _is_finite(row.get("step")) and _is_finite(row.get(key))
    }
    return tuple(sorted(found.items()))


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
