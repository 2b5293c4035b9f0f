"""Putting an iteration on the bakeoff branch: recipe, entry, lineage, scores, report, one commit."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path

from agent.background_notes import ADDITIONS_FILE
from agent.context_files import write_context_files
from agent.ideas.queue import open_queue
from agent.incumbent import INCUMBENT, INCUMBENT_NAME, Incumbent, save_incumbent
from agent.published_rows import publish_rows
from agent.records import CandidateRecord, IterationRecord, RulingRecord, TrialRecord
from agent.report.document import write_report
from agent.rerun.log import RERUN_PLANNER
from agent.secondary import describe_secondary
from tools.decisions import DecideEntry, DecideFinding, Provenance, write_entry
from tools.errors import DecideError
from tools.evaluation.scores import read_scores, write_scores
from tools.files import write_bytes_atomic
from tools.hardware import detect
from tools.lineage import FailureLabel, LineageStore, Trial
from tools.model_digest import digest_base_model
from tools.repo import ITERATION_TRAILER, Worktree
from tools.task import Task
from tools.versions import library_versions
from tools.workspace import Workspace

INCUMBENT_FILE = f"lineage/{INCUMBENT_NAME}"
_LABELS = {
    "keep": FailureLabel.KEEP,
    "discard": FailureLabel.DISCARD,
    # The lineage's vocabulary is fixed and has no word for an open verdict; the note says it.
    "inconclusive": FailureLabel.DISCARD,
}
_UNSCORED = {
    "train_overrun": FailureLabel.TRAIN_BUDGET_OVERRUN,
    "eval_overrun": FailureLabel.EVAL_BUDGET_OVERRUN,
}


def publish(
    *, workspace: Workspace, task: Task, worktree: Worktree, record: IterationRecord, incumbent: Incumbent
) -> str:
    """Write an iteration's files into the worktree, commit them and return the commit's id.

    Safe to call again after a crash: what a killed call left in the worktree is thrown away, half
    written files among it, and an iteration that is already committed is found by its trailer.
    """
    worktree.discard_changes()
    present = worktree.find_commit(ITERATION_TRAILER, record.iteration_id)
    if present is not None:
        return present
    root = worktree.root
    here = Workspace(root)
    incumbent.train_recipe.to_yaml(here.recipe_file)
    save_incumbent(root / INCUMBENT_FILE, incumbent)
    for trial in record.trials:
        write_trial(workspace, here, trial)
    append_lineage(here, task, record)
    rows = publish_rows(workspace, here, record, incumbent)
    base = digest_base_model(incumbent.train_recipe.resolve(workspace.root).base_model)
    found = build_entry(task, record, incumbent, commit=worktree.head, base_model_digest=base)
    entry = write_entry(found, here.entries_dir, replace=True)
    write_context_files(here, task, record, open_queue(workspace).waiting())
    report = write_report(
        record,
        task=task,
        workspace=workspace,
        folder=here.lineage_dir / record.iteration_id,
        base_selection=incumbent.base_selection,
        locks=incumbent.locks,
    )
    copy_report(workspace, record, [path for path in (report.html, report.png) if path is not None])
    return worktree.commit(
        [*_paths(root, record, entry), *rows],
        subject=_subject(record),
        body=record.decision,
        trailers=_trailers(record, incumbent, entry),
    )


def append_lineage(here: Workspace, task: Task, record: IterationRecord) -> None:
    """Append a row for every trial that has none yet."""
    store = LineageStore(here.lineage_dir, lower_is_better=False)
    for trial in record.trials:
        store.append_once(_lineage_row(task, record, trial))


def build_entry(
    task: Task,
    record: IterationRecord,
    incumbent: Incumbent,
    *,
    commit: str | None = None,
    base_model_digest: str | None = None,
) -> DecideEntry:
    """Return the decision as an entry of the corpus: what was asked, found, and on what evidence."""
    best = _deciding_ruling(record)
    trials = [trial.trial_id for trial in record.trials]
    seeds = sorted({trial.seed for trial in record.trials if trial.scored})
    interval = (best.low, best.high) if best and best.low is not None and best.high is not None else None
    machine = detect()
    provenance = Provenance(
        commit=commit,
        recipe_digest=incumbent.train_recipe.digest,
        data_digest=incumbent.locks.data_digest,
        base_model=incumbent.train_recipe.base_model,
        base_model_digest=base_model_digest,
        seeds=tuple(seeds),
        n_items=best.n_items if best else None,
        effect=best.gain if best else None,
        interval=interval,
        level=best.level if best else None,
        hardware=machine.name,
        driver=machine.driver,
        library_versions=library_versions(),
        planner=record.planner,
        trial_ids=tuple(trials),
    )
    return DecideEntry(
        slug=f"{record.finished_at[:10]}-{task.name}-{record.iteration_id}",
        lifecycle="active",
        created=_date(record.finished_at),
        question="recipe",
        context={"task": task.name, "base_model": incumbent.train_recipe.base_model},
        findings=tuple(_findings(task, record)),
        sources=(f"lineage/{record.iteration_id}/report.html",),
        notes=record.decision,
        provenance=provenance,
    )


def _findings(task: Task, record: IterationRecord) -> Iterable[DecideFinding]:
    pick = f"{record.iteration_id}-{record.promoted}" if record.promoted else INCUMBENT
    yield DecideFinding(optimize_for=f"{task.scorer.name}_accuracy", pick=pick, evidence=record.decision)
    for candidate in record.candidates:
        ruling = record.ruling(candidate.candidate_id)
        evidence = ruling.reason if ruling else f"refused: {candidate.rejected}"
        yield DecideFinding(
            optimize_for=f"{task.scorer.name}_accuracy",
            pick=pick if candidate.candidate_id == record.promoted else INCUMBENT,
            evidence=evidence,
            extra={
                "candidate": candidate.candidate_id,
                "verdict": ruling.verdict if ruling else "refused",
                "changes": list(candidate.changes),
                **({"secondary": list(map(describe_secondary, ruling.secondary))} if ruling else {}),
            },
        )


def _deciding_ruling(record: IterationRecord) -> RulingRecord | None:
    """Return the ruling that the decision rests on: the kept one, else the nearest to it."""
    if record.promoted is not None:
        return record.ruling(record.promoted)
    with_gain = [ruling for ruling in record.rulings if ruling.gain is not None]
    return max(with_gain, key=lambda ruling: ruling.gain or 0.0, default=None)


def _lineage_row(task: Task, record: IterationRecord, trial: TrialRecord) -> Trial:
    candidate = _candidate(record, trial.candidate_id)
    ruling = record.ruling(trial.candidate_id)
    label, note = _status(trial, ruling)
    if record.planner == RERUN_PLANNER and label is FailureLabel.KEEP:
        # It won again, and became nothing: the incumbent stays what it is.
        label = FailureLabel.DISCARD
    return Trial(
        exp_id=trial.trial_id,
        timestamp=record.finished_at,
        specialist=(candidate.author or record.planner) if candidate else "baseline",
        parent_exp=trial.parent_id if candidate else "",
        baseline_exp=record.trials[0].trial_id,
        domain=task.name,
        hypothesis=candidate.hypothesis if candidate else "the recipe to beat",
        expected_delta=""
        if candidate is None or candidate.expected_gain is None
        else f"{candidate.expected_gain:+.4f}",
        status=label,
        core_metric=trial.selection,
        val_bpb=None,
        delta_vs_best=ruling.gain if ruling else None,
        train_s=trial.train_s,
        total_s=round(trial.train_s + trial.eval_s, 3),
        job_name=record.iteration_id,
        snapshot_path=f"lineage/{trial.trial_id}",
        notes=note,
    )


def _status(trial: TrialRecord, ruling: RulingRecord | None) -> tuple[FailureLabel, str]:
    if trial.status == "halted":
        return FailureLabel.DISCARD, f"discard: {trial.error}"
    if not trial.scored:
        label = _UNSCORED.get(trial.status, FailureLabel.CRASH)
        return label, trial.error or "failed without a reason"
    if ruling is None:
        return FailureLabel.BASELINE, "incumbent"
    return _LABELS[ruling.verdict], f"{ruling.verdict}: {ruling.reason}"


def _candidate(record: IterationRecord, candidate_id: str) -> CandidateRecord | None:
    return next((c for c in record.candidates if c.candidate_id == candidate_id), None)


def write_trial(workspace: Workspace, here: Workspace, trial: TrialRecord) -> None:
    """Write a trial's recipe, score rows and metrics; of selection only the scores leave."""
    folder = here.lineage_dir / trial.trial_id
    trial.train_recipe.to_yaml(folder / "recipe.yaml")
    metrics = workspace.root / trial.run_dir / "metrics.jsonl"
    if metrics.is_file():
        write_bytes_atomic(folder / "metrics.jsonl", metrics.read_bytes())
    if trial.scores_dir is None:
        return
    for split in ("dev", "selection"):
        source = workspace.root / trial.scores_dir / f"{split}.jsonl"
        if source.is_file():
            write_scores(folder / f"{split}.jsonl", read_scores(source), redact=split != "dev")


def copy_report(workspace: Workspace, record: IterationRecord, files: Sequence[Path]) -> None:
    """Put an iteration's report where it is found without the worktree."""
    folder = workspace.reports_dir / record.iteration_id
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copyfile(path, folder / path.name)


def _paths(root: Path, record: IterationRecord, entry: Path) -> list[str]:
    folders = [f"lineage/{trial.trial_id}" for trial in record.trials] + [f"lineage/{record.iteration_id}"]
    return [
        "recipe.yaml",
        "AGENT_CONTEXT.md",
        "PLAN.md",
        *([ADDITIONS_FILE] if record.background_additions.strip() else []),
        "lineage/results.tsv",
        INCUMBENT_FILE,
        str(entry.relative_to(root)),
        *(folder for folder in folders if (root / folder).is_dir()),
    ]


def _subject(record: IterationRecord) -> str:
    if record.promoted is None:
        return f"{record.iteration_id}: keep the incumbent, {len(record.candidates)} candidate(s) tried"
    ruling, winner = record.ruling(record.promoted), _candidate(record, record.promoted)
    points = f"{100 * ruling.gain:+.1f} points" if ruling and ruling.gain is not None else "kept"
    return f"{record.iteration_id}: {points}, {', '.join(winner.changes) if winner else ''}"[:120]


def _trailers(record: IterationRecord, incumbent: Incumbent, entry: Path) -> dict[str, str]:
    return {
        ITERATION_TRAILER: record.iteration_id,
        "Trial": ", ".join(trial.trial_id for trial in record.trials),
        "Decision": entry.stem,
        "Recipe-Digest": incumbent.train_recipe.digest,
        "Data-Digest": incumbent.locks.data_digest,
        "Planner": record.planner,
        "Cost": describe_cost(record),
    }


def describe_cost(record: IterationRecord) -> str:
    """Return what an iteration cost, as the trailer of its commit says it."""
    usage = record.planner_usage
    if usage is None:
        return f"{record.wall_s:.0f} s"
    dollars = "unknown dollars" if usage.dollars is None else f"${usage.dollars:.4f}"
    return f"{record.wall_s:.0f} s, {usage.tokens} planner tokens, {dollars}"


def _date(stamp: str) -> date:
    try:
        return date.fromisoformat(stamp[:10])
    except ValueError as err:
        raise DecideError(f"{stamp!r} is no ISO time") from err
