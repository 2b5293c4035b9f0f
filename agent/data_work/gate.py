"""The gate of new rows: scorer, forbidden answers, repetition, and leaks from the judged splits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tools.dataset import Dataset, load_dataset
from tools.errors import ScorerError
from tools.evaluation.scorers import Scorer, get_scorer, is_forbidden
from tools.leakage import Leak, LeakGate
from tools.rows import Row
from tools.task import JUDGED_SPLITS, Task
from tools.wording import fold_words, squeeze_words
from tools.workspace import Workspace

__all__ = ["Admission", "Refusal", "RefusalReason", "RowGate", "load_judged", "open_gate", "tied_ids"]

RefusalReason = Literal["schema", "scorer", "forbidden", "duplicate", "leak"]


@dataclass(frozen=True)
class Refusal:
    """A row that was not admitted. A leak's detail holds no judged text."""

    row_id: str
    reason: RefusalReason
    detail: str


@dataclass(frozen=True)
class Admission:
    """What became of some rows."""

    admitted: tuple[Row, ...]
    refusals: tuple[Refusal, ...]
    leaks: tuple[Leak, ...]
    """The pairs themselves, with both texts: for a report on this machine, for nobody's prompt."""


class RowGate:
    """Lets rows pass that teach what the task scores, say something new, and give nothing away.

    Args:
        known: Rows that need no second copy. What is admitted becomes known.
    """

    def __init__(
        self, scorer: Scorer, forbidden: Sequence[str], leak_gate: LeakGate, known: Iterable[Row]
    ) -> None:
        self._scorer = scorer
        self._forbidden = tuple(forbidden)
        self._leak_gate = leak_gate
        self._known = {prompt_key(row) for row in known}

    def admit(self, rows: Sequence[Row]) -> Admission:
        """Check rows in their order and remember those that pass."""
        refusals: list[Refusal] = []
        left: list[Row] = []
        seen: set[str] = set()
        for row in rows:
            refusal = self.answer_problem(row) or self._repetition(row, seen)
            if refusal is None:
                seen.add(prompt_key(row))
                left.append(row)
            else:
                refusals.append(refusal)
        leaks = self._leak_gate.find(left)
        tied = {leak.train_id: leak for leak in leaks}
        refusals += [Refusal(leak.train_id, "leak", leak_words(leak)) for leak in tied.values()]
        admitted = tuple(row for row in left if row.id not in tied)
        self._known |= {prompt_key(row) for row in admitted}
        return Admission(admitted, tuple(refusals), leaks)

    def answer_problem(self, row: Row) -> Refusal | None:
        """Return why a row's own answer would not pass the task's scorer, or None."""
        if is_forbidden(row.expected, self._forbidden):
            return Refusal(row.id, "forbidden", "its answer is one of the task's forbidden outputs")
        try:
            outcome = self._scorer(row.expected, row.expected)
        except ScorerError as err:
            return Refusal(row.id, "scorer", str(err))
        if outcome.score < 1.0:
            return Refusal(row.id, "scorer", f"its answer scores {outcome.score:g} against itself")
        return None

    def _repetition(self, row: Row, seen: set[str]) -> Refusal | None:
        if prompt_key(row) in self._known or prompt_key(row) in seen:
            return Refusal(row.id, "duplicate", "the same is asked by another row")
        return None


def open_gate(workspace: Workspace, task: Task, known: Iterable[Row]) -> RowGate:
    """Return the gate of a workspace, its judged splits read now."""
    custom = task.scorer.name == "custom"
    scorer = get_scorer(
        task.scorer.name,
        ignore=task.scorer.ignore,
        scorer_file=workspace.inside("scorer.py") if custom else None,
    )
    return RowGate(scorer, task.forbidden_outputs, LeakGate(load_judged(workspace, task)), known)


def load_judged(workspace: Workspace, task: Task) -> dict[str, Dataset]:
    """Return the judged splits that have rows: a new workspace may have none yet."""
    files = {split: workspace.split_file(task, split) for split in JUDGED_SPLITS}
    return {split: load_dataset(path) for split, path in files.items() if has_rows(path)}


def has_rows(path: Path) -> bool:
    """Say whether a file is there and holds more than white space."""
    return path.is_file() and bool(path.read_bytes().strip())


def tied_ids(rows: Sequence[Row], judged: Mapping[str, Dataset]) -> dict[str, Leak]:
    """Return the leak of each row that is tied to a judged one, by the row's id."""
    return {leak.train_id: leak for leak in LeakGate(judged).find(rows)} if rows else {}


def prompt_key(row: Row) -> str:
    """Return what a row asks, so that two ways of writing the same thing are equal."""
    text = "\n".join(turn.content for turn in row.prompt if turn.role != "system")
    return squeeze_words(fold_words(text)) or text.strip()


def leak_words(leak: Leak) -> str:
    """Return a leak in words that give none of the judged row away."""
    return f"{leak.kind} of a row of {leak.split}"
