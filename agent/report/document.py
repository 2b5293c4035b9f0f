"""The report of an iteration on disk: report.html and report.png."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from agent.locks import Locks
from agent.records import IterationRecord
from agent.report.evidence import EvidenceReader
from agent.report.facts import Facts, gather_facts
from agent.report.page import render_page
from tools.files import write_bytes_atomic, write_text_atomic
from tools.task import Task
from tools.versions import library_versions
from tools.workspace import Workspace

__all__ = ["ReportFiles", "write_report"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportFiles:
    """What was written."""

    html: Path
    png: Path | None
    """None where matplotlib, the extra `report`, is not installed."""


def write_report(
    record: IterationRecord,
    *,
    task: Task,
    workspace: Workspace,
    folder: Path,
    base_selection: float | None,
    locks: Locks | None = None,
) -> ReportFiles:
    """Write the report of an iteration into folder and return its files.

    Equal input gives equal bytes. A trial whose files are missing or damaged is reported on
    the page and harms nothing else.

    Args:
        record: The iteration.
        task: The task that it was judged by.
        workspace: Where the trials' score rows and metrics lie.
        folder: `lineage/<iteration>`, made when missing; the trials' committed files are
            looked for beside it when the workspace's state folder has none.
        base_selection: Selection score of the untrained base model, when known.
        locks: Digests to show beside the recipe's.
    """
    facts = gather_facts(
        record,
        task=task,
        reader=EvidenceReader(workspace, folder.parent),
        base_selection=base_selection,
        digests={} if locks is None else {"data": locks.data_digest, "task": locks.task},
        versions=library_versions(),
    )
    return ReportFiles(
        html=write_text_atomic(folder / "report.html", render_page(facts)),
        png=_write_picture(facts, folder / "report.png"),
    )


def _write_picture(facts: Facts, path: Path) -> Path | None:
    try:
        from agent.report.picture import draw_picture
    except ImportError as err:
        _LOG.warning(
            "no report.png, only the page: %s; install the extra with pip install 'bakehouse[report]'", err
        )
        return None
    return write_bytes_atomic(path, draw_picture(facts))
