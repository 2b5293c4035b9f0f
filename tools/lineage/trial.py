"""One trial: the seventeen columns of a row of results.tsv."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final

from tools.errors import LineageError


class FailureLabel(StrEnum):
    """How a trial ended. The value is the word in the `status` column."""

    KEEP = "keep"
    """Ran to its end and became the best."""
    DISCARD = "discard"
    """Ran to its end and did not."""
    CRASH = "crash"
    """Died while it ran."""
    EVAL_BUDGET_OVERRUN = "eval_budget_overrun"
    """Trained within its budget; the evaluation did not finish within its own."""
    TRAIN_BUDGET_OVERRUN = "train_budget_overrun"
    """Training did not finish within its budget."""
    SIZE_BLOCKED = "size_blocked"
    """Stopped because what it produced is too large."""
    PREFLIGHT_CRASH = "preflight_crash"
    """Died before it began: the machine's fault, not the idea's."""
    HARNESS_ABORT = "harness_abort"
    """Killed by whoever keeps the books; says nothing about the idea."""
    DISQUALIFIED = "disqualified"
    """Ran to its end and failed a gate that no metric makes up for."""
    BASELINE = "baseline"
    """What every search starts from."""

    @property
    def is_informational(self) -> bool:
        """Whether the outcome says something about the idea: all but `harness_abort` do."""
        return self is not FailureLabel.HARNESS_ABORT

    @property
    def can_be_best(self) -> bool:
        """Whether a metric beside this status may be believed and built upon."""
        return self not in _NEVER_BEST


_NEVER_BEST: Final = frozenset(
    {
        FailureLabel.CRASH,
        FailureLabel.PREFLIGHT_CRASH,
        FailureLabel.HARNESS_ABORT,
        FailureLabel.DISQUALIFIED,
    }
)
# A plain dict is several times faster than calling the enum, which matters at 100,000 rows.
_STATUSES: Final = {label.value: label for label in FailureLabel}


@dataclass(frozen=True, slots=True)
class Trial:
    """A row of results.tsv; the fields are the columns, in order.

    `core_metric` is what the search sorts on, `val_bpb` the same number where the task is
    language modelling. None is an empty cell: not measured.
    """

    exp_id: str
    timestamp: str
    specialist: str
    parent_exp: str
    baseline_exp: str
    domain: str
    hypothesis: str
    expected_delta: str
    status: FailureLabel
    core_metric: float | None
    val_bpb: float | None
    delta_vs_best: float | None
    train_s: float | None
    total_s: float | None
    job_name: str
    snapshot_path: str
    notes: str

    @classmethod
    def header(cls) -> tuple[str, ...]:
        """Return the column names in order."""
        return COLUMNS

    def to_row(self) -> list[str]:
        """Return the cells in the order of the header; None is an empty cell."""
        values = [getattr(self, name) for name in COLUMNS]
        return ["" if value is None else str(value) for value in values]

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> Trial:
        """Build a trial from a row by column name; a missing text or number is empty.

        Raises:
            LineageError: the status is unknown or a number is none.
        """
        return cls.from_cells([row.get(name, DEFAULT_CELLS[name]) for name in COLUMNS])

    @classmethod
    def from_cells(cls, cells: list[str]) -> Trial:
        """Build a trial from seventeen cells in the order of the header.

        Raises:
            LineageError: the status is unknown or a number is none.
        """
        (exp_id, timestamp, specialist, parent, baseline, domain, hypothesis, expected) = cells[:8]
        (status, core, bpb, delta, train_s, total_s, job_name, snapshot, notes) = cells[8:]
        label = _STATUSES.get(status)
        if label is None:
            raise LineageError(f"status is {status!r}; allowed: {sorted(_STATUSES)}")
        return cls(
            exp_id,
            timestamp,
            specialist,
            parent,
            baseline,
            domain,
            hypothesis,
            expected,
            label,
            _number("core_metric", core),
            _number("val_bpb", bpb),
            _number("delta_vs_best", delta),
            _number("train_s", train_s),
            _number("total_s", total_s),
            job_name,
            snapshot,
            notes,
        )

    @property
    def rank_metric(self) -> float | None:
        """Return `core_metric` if this trial may be ranked by it, else None."""
        metric = self.core_metric
        if metric is None or not self.status.can_be_best or not math.isfinite(metric):
            return None
        return metric


def _number(column: str, cell: str) -> float | None:
    if not cell:
        return None
    try:
        return float(cell)
    except ValueError as err:
        raise LineageError(f"{column} is {cell!r}; it must be a number or empty") from err


COLUMNS: Final = tuple(item.name for item in fields(Trial))
_NUMBERS: Final = ("core_metric", "val_bpb", "delta_vs_best", "train_s", "total_s")
DEFAULT_CELLS: Final = dict.fromkeys(COLUMNS, "") | {"status": FailureLabel.DISCARD.value}
"""What a row has in the columns that its file has not."""


def build_trials(cells: Sequence[str]) -> list[Trial]:
    """Build trials from the cells of whole rows laid end to end: `Trial.from_cells`, but faster.

    Raises:
        ValueError, KeyError: a cell is no number or no status; `from_cells` says which.
    """
    # A frozen dataclass sets every field through a call of its own. A column at a time, through
    # the slots' own setters, the loop stays in C.
    width = len(COLUMNS)
    trials = [object.__new__(Trial) for _ in range(len(cells) // width)]
    for index, name in enumerate(COLUMNS):
        column: Sequence[object] = cells[index::width]
        if name == "status":
            column = [_STATUSES[cell] for cell in cells[index::width]]
        elif name in _NUMBERS:
            column = [float(cell) if cell else None for cell in cells[index::width]]
        deque(map(getattr(Trial, name).__set__, trials, column), maxlen=0)
    return trials


def empty_trial() -> Trial:
    """Return the trial that stands where a store has none."""
    return Trial.from_row({"status": FailureLabel.BASELINE.value})
