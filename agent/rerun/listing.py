"""Which decisions a re-run would measure again, at what cost, and why not the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from agent.rerun.ground import check_ground
from agent.rerun.outcome import RECHECK_QUESTION, RERUN_OF
from agent.rerun.pair import Pair, find_pair
from agent.score_sets import newest
from tools.decisions import DecideEntry, scan_entries
from tools.errors import DecideError, RerunError
from tools.freshness import StalenessReport
from tools.repo import find_repo
from tools.workspace import Workspace

__all__ = ["Prospect", "find_entry", "list_prospects", "worst_s"]

_MARGIN = 2.0
_OVERHEAD_S = 120.0


@dataclass(frozen=True)
class Prospect:
    """An entry to be measured again, or one that cannot be."""

    entry: DecideEntry
    reasons: tuple[str, ...]
    """Why it is stale; none for a fresh one that was asked for by name."""
    pair: Pair | None
    obstacle: str | None
    """Why it is not measured again; None where it can be."""


def list_prospects(
    workspace: Workspace,
    reports: Iterable[StalenessReport],
    *,
    named: Sequence[str] = (),
    is_stale: Callable[[DecideEntry], bool],
) -> tuple[Prospect, ...]:
    """Return the stale active entries, or those named, each with its pair or what stands in the way.

    Args:
        reports: Every entry of the corpus, as `tools.freshness.refresh` gives them.
        named: Slugs to look at, fresh ones too; none: all that are stale.
        is_stale: Judges an entry that is not in the reports: a re-run that nobody has reviewed yet.
    Raises:
        DecideError: a name that the corpus does not have.
    """
    known = {report.entry.slug: report for report in reports}
    unknown = [slug for slug in named if slug not in known]
    if unknown:
        raise DecideError(f"no entry is named {unknown}; `bakehouse refresh` lists what there is")
    wanted = [known[slug] for slug in dict.fromkeys(named)] if named else list(known.values())
    if not named:
        wanted = [report for report in wanted if report.stale and _is_asked_about(report.entry)]
    done = {} if named else _reruns(workspace, is_stale)
    return tuple(_look_at(workspace, report, done.get(report.entry.slug)) for report in wanted)


def find_entry(workspace: Workspace, slug: str) -> DecideEntry:
    """Return an active entry of the workspace.

    Raises:
        RerunError: there is none of that name any more.
    """
    for entry in scan_entries([workspace.entries_dir]).entries:
        if entry.slug == slug and entry.lifecycle == "active":
            return entry
    raise RerunError(f"{workspace.entries_dir} holds no active entry {slug!r} any more")


def worst_s(pair: Pair) -> float | None:
    """Return the most that a re-run is reckoned to take; None where the old times are not on record.

    Twice what the same trials took then, and two minutes for loading and the smoke run.
    """
    return None if pair.recorded_s is None else _MARGIN * pair.recorded_s + _OVERHEAD_S


def _is_asked_about(entry: DecideEntry) -> bool:
    return entry.lifecycle == "active" and entry.question != RECHECK_QUESTION


def _look_at(workspace: Workspace, report: StalenessReport, done: DecideEntry | None) -> Prospect:
    entry = report.entry
    try:
        if not _is_asked_about(entry):
            raise RerunError(f"it is {entry.lifecycle}, or itself the record of a re-run")
        if done is not None:
            raise RerunError(
                f"{done.slug} measured it on {done.created} ({done.extra.get('outcome')}); name it with "
                "--entry to measure it once more"
            )
        task, repo = workspace.load_task(), find_repo(workspace.root)
        pair = find_pair(repo, task, entry)
        check_ground(workspace, repo, task, pair)
    except RerunError as err:
        return Prospect(entry, report.reasons, None, str(err))
    return Prospect(entry, report.reasons, pair, None)


def _reruns(workspace: Workspace, is_stale: Callable[[DecideEntry], bool]) -> dict[str, DecideEntry]:
    """Return the fresh re-runs on record by the entry that they measured, unmerged ones included."""
    dirs = [newest(workspace).entries_dir, workspace.entries_dir]
    return {
        str(entry.extra[RERUN_OF]): entry
        for entry in scan_entries(dirs).entries
        if RERUN_OF in entry.extra and entry.lifecycle == "active" and not is_stale(entry)
    }
