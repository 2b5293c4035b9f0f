"""Requested rows: what a flywheel has made for the oldest request that waits, as a data set to try."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from agent.data_work.fulfilment import data_request_of, request_gap, rows_made_for
from agent.data_work.gate import prompt_key
from agent.data_work.origin import GENERATED, is_generated
from agent.data_work.row_file import RowFile
from agent.data_work.row_making import make_rows
from agent.data_work.row_request import RowRequest
from agent.data_work.target import Target
from agent.ideas.queue import IdeaQueue, QueueItem
from agent.teachers.meter import Caps
from agent.teachers.teacher import Teacher
from agent.training_rows import find_rows, save_rows
from tools.clock import Clock
from tools.commit_paths import DEFAULT_MAX_BYTES
from tools.errors import BakehouseError
from tools.rows import Row
from tools.secret_scan import find_secrets
from tools.task import Task
from tools.workspace import Workspace

__all__ = ["RequestedRows", "make_requested_rows", "next_request", "note_requested"]

_BATCH: Final = 25
_SPARE_CALLS: Final = 4
_MOST_OF_BASE: Final = 2
"""The new rows are at most one for so many of the data set that they join: the debit of a training
allows for twice its rows, and a data set that is mostly made up is another task."""


class RequestedRows(BaseModel):
    """What came of a request: a data set, or why there is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    item: str
    dataset: str | None = None
    """Under which a recipe trains on it; None where there is nothing to try."""
    n_rows: int = 0
    hypothesis: str = ""
    expected_gain: float | None = None
    author: str = ""
    why: str = ""
    """Why there is nothing to try."""
    is_over: bool = False
    """Whether asking again would bring nothing either."""


def next_request(queue: IdeaQueue, iteration: str) -> QueueItem | None:
    """Return the request that an iteration works on: the one that it took, else the oldest that waits."""
    requests = [item for item in queue.items() if item.idea.data_request is not None]
    mine = [item for item in requests if item.state == "taken" and item.iteration == iteration]
    return next(iter([*mine, *(item for item in requests if item.state == "queued")]), None)


def make_requested_rows(
    workspace: Workspace, task: Task, dataset: str, item: QueueItem, teacher: Teacher, *, clock: Clock
) -> RequestedRows:
    """Have the rows of a request made, and join them with a data set. Called again it goes on.

    The split file stays as it is. Every row passes the gate of all data work first; what cannot be
    committed (too large, a credential in it) is not tried either.

    Args:
        dataset: What the incumbent's recipe trains on.
    """
    try:
        base = find_rows(workspace, dataset)
        made, unfinished = _make(workspace, task, base, item, teacher, clock)
        found, problem = (None, unfinished) if unfinished and not made else _join(workspace, base, made, item)
    except BakehouseError as err:
        return RequestedRows(item=item.id, why=str(err))
    return RequestedRows(
        item=item.id,
        dataset=found,
        n_rows=len(made),
        hypothesis=item.idea.hypothesis,
        expected_gain=item.idea.expected_gain,
        author=item.author,
        why=problem,
        is_over=found is None and not unfinished,
    )


def note_requested(queue: IdeaQueue, iteration: str, found: RequestedRows) -> None:
    """Say in the queue that rows are tried, or that nothing came of asking for them."""
    if found.dataset is not None:
        queue.take(found.item, iteration)
    elif found.is_over:
        queue.finish(found.item, iteration=iteration, reason=found.why, rows=found.n_rows)


def _make(
    workspace: Workspace, task: Task, base: Path, item: QueueItem, teacher: Teacher, clock: Clock
) -> tuple[tuple[Row, ...], str]:
    """Return the rows, and why there are no more of them where a cap came in between."""
    known = RowFile(base).rows
    asked = data_request_of(item)
    wanted = min(asked.rows, task.bakeoff.teacher.rows, max(1, len(known) // _MOST_OF_BASE))
    path = workspace.state_dir / "rows" / f"{item.id}.jsonl"
    already, unfinished = rows_made_for(item, path), ""
    if already < wanted:
        request = RowRequest(
            "generate",
            wanted - already,
            (request_gap(asked),),
            Target(workspace, task, path),
            min(_BATCH, wanted),
            1,
            item.origin_name,
        )
        caps = Caps(calls=_SPARE_CALLS + 3 * -(-wanted // request.batch_size))
        made = make_rows(request, teacher, caps=caps, clock=clock)
        unfinished = made.reason if made.stopped_by == "cap" else ""
    own = (row for row in RowFile(path).rows if is_generated(row))
    seen = {prompt_key(row) for row in known}
    found = [
        row
        for row in own
        if row.meta[GENERATED].get("request") == item.origin_name and prompt_key(row) not in seen
    ]
    return tuple(found[:wanted]), unfinished


def _join(workspace: Workspace, base: Path, rows: Sequence[Row], item: QueueItem) -> tuple[str | None, str]:
    if not rows:
        return None, "no usable row came of it"
    lines = [line for line in base.read_bytes().split(b"\n") if line.strip()]
    lines += [json.dumps(row.to_dict(), ensure_ascii=False, allow_nan=False).encode() for row in rows]
    whole = b"\n".join(lines)
    if len(whole) + 1 > DEFAULT_MAX_BYTES:
        return (
            None,
            f"with its rows the data set has {len(whole)} bytes; {DEFAULT_MAX_BYTES} can be committed",
        )
    if secrets := list(find_secrets(whole)):
        return None, f"the data set with its rows holds what looks like a credential: {secrets[0]}"
    return save_rows(workspace, item.id, lines), ""
