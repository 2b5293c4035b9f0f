"""Putting a re-run on the bakeoff branch: its trials, scores, report and entry, in one commit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agent.bench import Bench
from agent.context_files import render_context
from agent.publishing import append_lineage, copy_report, describe_cost, write_trial
from agent.records import CandidateRecord, IterationRecord
from agent.report.document import write_report
from agent.rerun.outcome import RERUN_OF, Outcome, build_entry
from agent.rerun.pair import DECISION_TRAILER, Pair
from tools.decisions import scan_entries, write_entry
from tools.files import write_text_atomic
from tools.model_digest import digest_base_model
from tools.repo import ITERATION_TRAILER
from tools.workspace import Workspace

__all__ = ["publish_rerun"]


def publish_rerun(
    bench: Bench, pair: Pair, record: IterationRecord, outcome: Outcome, sides: Sequence[CandidateRecord]
) -> str:
    """Commit a re-run and return the commit's id. The recipe and the incumbent stay as they are.

    Safe to call again after a crash: what a killed call left in the worktree is thrown away, and a
    re-run that is already committed is found by its trailer.
    """
    worktree = bench.worktree
    present = worktree.find_commit(ITERATION_TRAILER, record.iteration_id)
    if present is not None:
        return present
    worktree.discard_changes()
    here = Workspace(worktree.root)
    for trial in record.trials:
        write_trial(bench.workspace, here, trial)
    append_lineage(here, bench.task, record)
    kept = sides[1] if record.promoted is not None else sides[0]
    entry = build_entry(
        pair,
        record,
        outcome,
        recipe_digest=kept.train_recipe.digest,
        base_model=kept.train_recipe.base_model,
        base_model_digest=digest_base_model(kept.train_recipe.resolve(bench.workspace.root).base_model),
        task_name=bench.task.name,
        commit=worktree.head,
        earlier=_earlier(here, pair, kept.train_recipe.base_model),
    )
    path = write_entry(entry, here.entries_dir, replace=True)
    write_text_atomic(here.root / "AGENT_CONTEXT.md", render_context(here, bench.task, record))
    report = write_report(
        record,
        task=bench.task,
        workspace=bench.workspace,
        folder=here.lineage_dir / record.iteration_id,
        base_selection=None,
        locks=bench.locks,
    )
    copy_report(bench.workspace, record, [file for file in (report.html, report.png) if file is not None])
    return worktree.commit(
        _paths(here.root, record, path),
        subject=f"{record.iteration_id}: {outcome}, {pair.entry.slug} measured again"[:120],
        body=record.decision,
        trailers={
            ITERATION_TRAILER: record.iteration_id,
            "Trial": ", ".join(trial.trial_id for trial in record.trials),
            DECISION_TRAILER: path.stem,
            "Measures-Again": pair.entry.slug,
            "Recipe-Digest": kept.train_recipe.digest,
            "Data-Digest": bench.locks.data_digest,
            "Planner": record.planner,
            "Cost": describe_cost(record),
        },
    )


def _earlier(here: Workspace, pair: Pair, base_model: str) -> list[str]:
    """Return the re-runs of the same entry on the same base model that stand on the branch."""
    return [
        entry.slug
        for entry in scan_entries([here.entries_dir]).entries
        if entry.extra.get(RERUN_OF) == pair.entry.slug
        and entry.lifecycle == "active"
        and entry.context.get("base_model") == base_model
    ]


def _paths(root: Path, record: IterationRecord, entry: Path) -> list[str]:
    folders = [f"lineage/{trial.trial_id}" for trial in record.trials] + [f"lineage/{record.iteration_id}"]
    listed = ["AGENT_CONTEXT.md", "lineage/results.tsv", *folders]
    return [str(entry.relative_to(root)), *(name for name in listed if (root / name).exists())]
