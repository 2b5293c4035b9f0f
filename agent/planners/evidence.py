"""The evidence that a planner may page through: lineage, dev failures, decisions. All of it read only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.planners.quoting import cut, quote
from tools.decisions import decide
from tools.errors import DecideError
from tools.evaluation.scores import ScoreRow, error_kind
from tools.lineage import Trial

__all__ = ["PlannerEvidence"]

_PAGE_ROWS: Final = 20
_CELL_CHARS: Final = 600


@dataclass(frozen=True)
class PlannerEvidence:
    """What the read-only tools of a planner look at. Of judged splits it holds dev alone."""

    trials: tuple[Trial, ...] = ()
    """Rows of the lineage, oldest first."""
    dev_rows: tuple[ScoreRow, ...] = ()
    """The incumbent's answers to dev."""
    entry_dirs: tuple[Path, ...] | None = None
    """Folders of the decision corpus; None is the shipped and the user's own."""

    @property
    def dev_failures(self) -> tuple[ScoreRow, ...]:
        """Dev rows that the incumbent answers wrongly, forbidden outputs first, then the worst."""
        wrong = (row for row in self.dev_rows if row.score < 1 or row.forbidden)
        return tuple(sorted(wrong, key=lambda row: (not row.forbidden, row.score, row.item_id, row.seed)))

    def failure_counts(self) -> dict[str, int]:
        """Return how many dev failures there are of each kind of error, the most frequent first."""
        counts = Counter(_kind(row) for row in self.dev_failures)
        return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))

    def read_lineage(self, *, page: int = 1, status: str | None = None) -> str:
        """Return a page of the lineage, newest first, a trial a line."""
        found = [trial for trial in reversed(self.trials) if status in (None, trial.status.value)]
        return _page([_trial_line(trial) for trial in found], page, "trials")

    def read_dev_failures(self, *, page: int = 1, kind: str | None = None, limit: int = _PAGE_ROWS) -> str:
        """Return a page of dev failures, a row a line."""
        found = [row for row in self.dev_failures if kind in (None, _kind(row))]
        noun = "dev failures" if kind is None else f"dev failures of kind {quote(kind)}"
        return _page([_failure_line(row) for row in found], page, noun, limit)

    def look_up_decision(self, *, question: str, optimize_for: str, context: Mapping[str, str]) -> str:
        """Return what the decision corpus says on a question, or what it has instead."""
        try:
            pick = decide(question, context=dict(context), optimize_for=optimize_for, dirs=self.entry_dirs)
        except DecideError as err:
            return f"no decision: {quote(cut(str(err), 2000))}"
        found = {"entry": pick.entry.slug, "pick": pick.pick, "evidence": cut(pick.evidence, 2000)}
        return quote({**found, "context": dict(pick.context)})


def _page(lines: list[str], page: int, noun: str, limit: int = _PAGE_ROWS) -> str:
    pages = max(1, -(-len(lines) // limit))
    number = min(max(1, page), pages)
    shown = lines[(number - 1) * limit : number * limit]
    return "\n".join([f"{len(lines)} {noun}, page {number} of {pages}:", *shown])


def _trial_line(trial: Trial) -> str:
    told: dict[str, Any] = {
        "trial": trial.exp_id,
        "planner": trial.specialist,
        "status": trial.status.value,
        "selection": trial.core_metric,
        "gain": trial.delta_vs_best,
        "expected": trial.expected_delta or None,
        "train_s": trial.train_s,
        "hypothesis": cut(trial.hypothesis, _CELL_CHARS),
        "notes": cut(trial.notes, _CELL_CHARS),
    }
    return quote(told)


def _failure_line(row: ScoreRow) -> str:
    told: dict[str, Any] = {
        "item": row.item_id,
        "error": row.error,
        "score": row.score,
        "prompt": cut(row.prompt or "", _CELL_CHARS),
        "expected": cut(row.expected or "", _CELL_CHARS),
        "output": cut(row.output or "", _CELL_CHARS),
    }
    return quote(told | ({"forbidden": True} if row.forbidden else {}))


def _kind(row: ScoreRow) -> str:
    if row.error:
        return error_kind(row.error)
    return "forbidden" if row.forbidden else "partly right"
