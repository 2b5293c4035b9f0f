"""The target of new rows: which file may take them, and how they are put there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.data_work.gate import Admission, has_rows, open_gate
from agent.data_work.row_file import RowFile
from tools.clock import Clock
from tools.dataset import load_dataset
from tools.errors import LockHeldError, TaskError
from tools.journal import Journal
from tools.lock import hold_workspace, workspace_holder
from tools.rows import Row
from tools.task import JUDGED_SPLITS, Task
from tools.workspace import Workspace

__all__ = ["Target", "choose_target", "note_change"]


@dataclass(frozen=True)
class Target:
    """A file that takes rows: the train split, or one of a person's choice."""

    workspace: Workspace
    task: Task
    path: Path

    @property
    def is_train(self) -> bool:
        return self.path == self.workspace.split_file(self.task, "train")

    def check_free(self) -> None:
        """Refuse early what would be refused in the end: nothing is spent then.

        Raises:
            LockHeldError: a flywheel runs, whose training rows must not change under it.
            DatasetError: the file holds something else than rows.
        """
        RowFile(self.path)
        holder = workspace_holder(self.workspace.state_dir) if self.is_train else None
        if holder is not None:
            raise LockHeldError(
                f"the workspace is held by {holder}, which trains on {self.path}; wait for its end, or "
                "give --output another file"
            )

    @contextlib.contextmanager
    def hold(self) -> Iterator[RowFile]:
        """Hold the file for a change of it.

        Raises:
            LockHeldError: a flywheel has begun meanwhile.
        """
        with contextlib.ExitStack() as held:
            if self.is_train:
                held.enter_context(hold_workspace(self.workspace.state_dir, what="data work"))
            yield RowFile(self.path)

    def known_rows(self, file: RowFile) -> tuple[Row, ...]:
        """Return the rows that need no second copy: those of the file and of the train split."""
        train = self.workspace.split_file(self.task, "train")
        others = () if self.is_train or not has_rows(train) else load_dataset(train).rows
        return (*file.rows, *others)

    def add(self, rows: Sequence[Row], *, limit: int) -> tuple[int, Admission]:
        """Append rows after a last pass through the gate, and return how many stand there now.

        Safe to call again after a crash: rows that were added before count and are not added twice.
        """
        with self.hold() as file:
            there = {row.id for row in file.rows}
            fresh = [row for row in rows if row.id not in there]
            already = len(rows) - len(fresh)
            admission = open_gate(self.workspace, self.task, self.known_rows(file)).admit(fresh)
            added = admission.admitted[: max(0, limit - already)]
            if added:
                file.append(added)
            return already + len(added), admission


def choose_target(workspace: Workspace, task: Task, output: Path | None) -> Target:
    """Return the file that takes the rows.

    Raises:
        TaskError: the file judges a result, belongs to the flywheel, or is no .jsonl.
    """
    if output is None:
        return Target(workspace, task, workspace.split_file(task, "train"))
    path = output.expanduser().resolve()
    judged = [*(workspace.split_file(task, split) for split in JUDGED_SPLITS), workspace.probe_file(task)]
    if any(path == other or _is_same(path, other) for other in judged):
        raise TaskError(
            f"{output} judges results, so no teacher writes there; write to another file, read the rows, and "
            "take over by hand those that you trust"
        )
    own = [workspace.state_dir, workspace.lineage_dir, workspace.root / ".git"]
    if path.suffix != ".jsonl" or any(path.is_relative_to(folder.resolve()) for folder in own):
        raise TaskError(f"{output} cannot take rows; name a .jsonl file outside {[f.name for f in own]}")
    return Target(workspace, task, path)


def note_change(workspace: Workspace, job_id: str, *, clock: Clock, **data: str | int) -> None:
    """Leave one line in the workspace's journal on what a job changed; again is once."""
    journal = Journal(workspace.journal_file, clock=clock)
    if journal.last("data_work", job_id) is None:
        journal.append("data_work", job_id, step=None, **data)


def _is_same(path: Path, other: Path) -> bool:
    # A hard link has another name and the same content.
    return path.exists() and other.exists() and path.samefile(other)
