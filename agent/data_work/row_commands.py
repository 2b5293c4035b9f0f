"""The commands that make rows: generate from the documents, patch a described gap, augment failures."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from agent.data_work.failures import Failure, group_failures, read_failures
from agent.data_work.prompts import quote_data
from agent.data_work.row_request import RowRequest
from agent.data_work.target import choose_target
from tools.errors import DatasetError
from tools.task import Task
from tools.workspace import Workspace

__all__ = ["augment_request", "generate_request", "patch_request"]

ROWS_PER_FAILURE_KIND: Final = 20
_MOST_BY_DEFAULT: Final = 200
_FAILURES_SHOWN: Final = 8
_MAX_DESCRIPTION: Final = 4000


def generate_request(
    workspace: Workspace, *, n: int, batch_size: int, concurrency: int, output: Path | None
) -> RowRequest:
    """Ask for rows over the whole range of the task."""
    target = choose_target(workspace, workspace.load_task(), output)
    gap = "Cover the whole range of the task: the common cases, the edge cases and the hard ones."
    return RowRequest("generate", n, (gap,), target, batch_size, concurrency)


def patch_request(
    workspace: Workspace,
    description: str,
    *,
    n: int,
    batch_size: int,
    concurrency: int,
    output: Path | None,
) -> RowRequest:
    """Ask for rows that fill a gap which a person describes.

    Raises:
        DatasetError: the description is empty or far too long.
    """
    text = description.strip()
    if not text or len(text) > _MAX_DESCRIPTION:
        raise DatasetError(f"the description has {len(text)} characters; 1 to {_MAX_DESCRIPTION} are allowed")
    target = choose_target(workspace, workspace.load_task(), output)
    return RowRequest(
        "patch", n, (f"All rows should be about this: {text}",), target, batch_size, concurrency
    )


def augment_request(
    workspace: Workspace, *, n: int | None, batch_size: int, concurrency: int, output: Path | None
) -> RowRequest:
    """Ask for rows aimed at what the best recipe so far gets wrong on dev, and on no other split.

    Args:
        n: Rows in all; None takes some for each kind of failure.
    Raises:
        EvidenceError: there are no dev scores to work on, or none that are wrong.
    """
    task = workspace.load_task()
    groups = group_failures(read_failures(workspace, task))
    target = choose_target(workspace, task, output)
    wanted = n or min(_MOST_BY_DEFAULT, ROWS_PER_FAILURE_KIND * len(groups))
    total = sum(len(group) for _, group in groups)
    gaps = tuple(_failure_gap(task, kind, group, total) for kind, group in groups)
    # Each kind of failure must get a batch before any gets a second one.
    size = min(batch_size, max(1, -(-wanted // len(gaps))))
    return RowRequest("augment", wanted, gaps, target, size, concurrency)


def _failure_gap(task: Task, kind: str, failures: tuple[Failure, ...], total: int) -> str:
    shown = [failure.shown() for failure in failures[:_FAILURES_SHOWN]]
    return (
        f"A model trained on {task.name} still gets one kind of message wrong ({len(failures)} of {total} "
        f"failures): {kind}. Examples of what it was asked, what was right, and what it answered:\n"
        f"{quote_data(shown)}\n"
        "Write rows that teach the distinction it misses, with answers that are right. Use other words, "
        "values and situations: a row that repeats or rewords one of these messages is thrown away."
    )
