"""The log of re-runs: a journal of its own, for a flywheel's may wait in the workspace to be gone on with."""

from __future__ import annotations

from typing import Final

from tools.clock import Clock
from tools.journal import Journal, JournalEvent
from tools.task import BudgetCaps
from tools.workspace import Workspace

__all__ = [
    "RERUN_BEGIN",
    "RERUN_END",
    "RERUN_HOLDER",
    "RERUN_PLANNER",
    "enter_session",
    "open_log",
    "open_rerun",
    "read_caps",
]

RERUN_BEGIN: Final = "rerun_begin"
RERUN_END: Final = "rerun_end"
RERUN_HOLDER: Final = "re-run"
"""What a process that measures again says it does, in the lock of the workspace."""
RERUN_PLANNER: Final = "re-run"
"""Who stands in a record of one in the place of a planner: the pair is given, nothing is planned."""
_FILE: Final = "reruns.jsonl"


def open_log(workspace: Workspace, *, clock: Clock) -> Journal:
    """Return the journal of a workspace's re-runs."""
    return Journal(workspace.state_dir / _FILE, clock=clock)


def enter_session(journal: Journal, caps: BudgetCaps) -> str:
    """Go on with the session that was cut off under the same caps, or begin one; return its name."""
    wanted = caps.model_dump(mode="json", exclude_none=True)
    for name in journal.open_runs():
        begun = journal.last("run_begin", name)
        if begun is not None and begun.data.get("caps") == wanted:
            journal.begin_run(name)
            return name
        journal.end_run(name, abandoned="other caps were asked for")
    name = f"s{1 + sum(event.event == 'run_begin' for event in journal.events()):04d}"
    journal.begin_run(name, caps=wanted)
    return name


def open_rerun(journal: Journal) -> JournalEvent | None:
    """Return the beginning of the re-run that was cut off, or None."""
    begun = journal.last(RERUN_BEGIN)
    return None if begun is None or journal.last(RERUN_END, begun.key) is not None else begun


def read_caps(event: JournalEvent) -> BudgetCaps:
    """Return the caps that a session began with."""
    caps = event.data.get("caps")
    return BudgetCaps.model_validate(caps) if isinstance(caps, dict) else BudgetCaps()
