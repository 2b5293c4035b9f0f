"""Cleaning: rows that a teacher wrote are taken out of the train split again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agent.data_work.gate import prompt_key
from agent.data_work.job_log import data_work_dir, hold_data_work, open_job
from agent.data_work.materials import SEED_FILE, read_seed_rows
from agent.data_work.origin import is_generated
from agent.data_work.row_file import RowFile
from agent.data_work.target import choose_target, note_change
from tools.clock import Clock, utc_now
from tools.errors import TaskError
from tools.rows import Row
from tools.workspace import Workspace

__all__ = ["Cleaned", "clean_rows"]


@dataclass(frozen=True)
class Cleaned:
    """What was taken out, and where it is kept."""

    removed: int
    left: int
    file: Path
    log: Path | None
    """Holds every removed row; None when none was."""


def clean_rows(workspace: Workspace, *, keep_seed: bool = False, clock: Clock = utc_now) -> Cleaned:
    """Take generated rows out of the train split; rows of people stay, with a teacher's corrections.

    Args:
        keep_seed: Keep only rows that stand in data/seed.jsonl as well.
    Raises:
        TaskError: keep_seed without data/seed.jsonl.
        LockHeldError: a flywheel trains on the rows, or another data command runs.
    """
    target = choose_target(workspace, workspace.load_task(), None)
    with hold_data_work(workspace), target.hold() as file:
        wanted = _wanted(workspace, file, keep_seed)
        removed = [row for row, keep in zip(file.rows, wanted, strict=True) if not keep]
        if not removed:
            return Cleaned(0, len(file.rows), file.path, None)
        log = open_job(data_work_dir(workspace), "clean", {"rows": file.digest}, clock=clock)
        for row in removed:
            log.note("removed", row=row.to_dict())
        after = file.keep(wanted)
        note_change(
            workspace,
            log.job_id,
            clock=clock,
            command="clean",
            target=str(file.path),
            removed=len(removed),
            before=file.digest,
            after=after.digest,
        )
        log.mark_written(removed=len(removed))
        return Cleaned(len(removed), len(after.rows), file.path, log.path)


def _wanted(workspace: Workspace, file: RowFile, keep_seed: bool) -> list[bool]:
    if not keep_seed:
        return [not is_generated(row) for row in file.rows]
    seeds = read_seed_rows(workspace)
    if seeds is None:
        raise TaskError(
            f"there is no {SEED_FILE} in {workspace.root}; put the rows there that should stay, or clean "
            "without --keep-seed, which keeps every row that no teacher wrote"
        )
    known = {_content(row) for row in seeds}
    return [_content(row) in known for row in file.rows]


def _content(row: Row) -> tuple[str, str]:
    return prompt_key(row), row.expected
