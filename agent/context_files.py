"""AGENT_CONTEXT.md and PLAN.md: what was tried and what is thought, for people and planners."""

from __future__ import annotations

from collections.abc import Sequence

from agent.background_notes import write_additions
from agent.ideas.queue import QueueItem
from agent.lineage_view import open_lineage
from agent.records import IterationRecord
from agent.review.log import read_reviews
from tools.files import write_text_atomic
from tools.task import Task
from tools.workspace import Workspace

_RECENT = 40
_DETAILED = 6


def write_context_files(
    here: Workspace, task: Task, record: IterationRecord, waiting: Sequence[QueueItem] = ()
) -> None:
    """Write both files into a workspace folder, and the page of additions where there are any.

    Args:
        waiting: The ideas that the queue holds after the iteration.
    """
    write_text_atomic(here.root / "AGENT_CONTEXT.md", render_context(here, task, record))
    write_text_atomic(here.root / "PLAN.md", render_plan(task, record, waiting))
    write_additions(here.root, record)


def render_context(here: Workspace, task: Task, record: IterationRecord) -> str:
    """Return the history of the task: the rendered lineage, newest iteration's decision first."""
    store = open_lineage(here.lineage_dir)
    snapshot = store.render_prompt(
        for_specialist=record.planner,
        recent_n=_RECENT,
        last_m_full=_DETAILED,
        session_timestamp=record.finished_at,
    )
    rejected = [
        f"Rejected by a person: {note.iteration}, because {_one_line(note.reason)}\n\n"
        for note in read_reviews(here.root)[-_RECENT:]
    ]
    return (
        f"# What was tried on {task.name}\n\n"
        "Written by the flywheel after every iteration; changes made here are overwritten.\n\n"
        f"Last decision ({record.iteration_id}): {_one_line(record.decision)}\n\n"
        f"{''.join(rejected)}"
        f"{snapshot.rendered_prompt.rstrip()}\n"
    )


def render_plan(task: Task, record: IterationRecord, waiting: Sequence[QueueItem] = ()) -> str:
    """Return the last plan beside what came of it, and what waits to be tried."""
    lines = [
        f"# Plan of {record.iteration_id} on {task.name}",
        "",
        f"Planner: {record.planner}. Hypothesis: {_one_line(record.hypothesis)}",
        "",
        "| candidate | change | hypothesis | expected | realised | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for candidate in record.candidates:
        ruling = record.ruling(candidate.candidate_id)
        source = f" (idea {candidate.idea}, by {candidate.author})" if candidate.idea else ""
        cells = (
            candidate.candidate_id,
            ", ".join(candidate.changes),
            candidate.hypothesis + source,
            _points(candidate.expected_gain),
            _points(ruling.gain if ruling else None),
            ruling.verdict if ruling else f"refused: {candidate.rejected}",
        )
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    notes = [f"- {_one_line(note)}" for note in record.notes]
    queue = _render_queue(waiting)
    parts = [*lines, "", _one_line(record.decision), "", *notes, *([""] if notes else []), *queue]
    return "\n".join(parts)


def _render_queue(waiting: Sequence[QueueItem]) -> list[str]:
    if not waiting:
        return []
    head = [
        "Ideas that wait:",
        "",
        "| idea | what | hypothesis | expected | author |",
        "|---|---|---|---|---|",
    ]
    rows = [
        (item.id, str(item.idea), item.idea.hypothesis, _points(item.idea.expected_gain), item.author)
        for item in waiting[:_RECENT]
    ]
    return [*head, *("| " + " | ".join(map(_cell, row)) + " |" for row in rows), ""]


def _points(gain: float | None) -> str:
    return "unknown" if gain is None else f"{100 * gain:+.1f} points"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    # A planner's words must not end a cell, a row or the table.
    return _one_line(text).replace("\\", "\\\\").replace("|", "\\|")
