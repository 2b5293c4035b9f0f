"""How far a job is and what it has come to, read from the files that it leaves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.budget.account import RESERVED, SETTLED, read_account
from agent.budget.limits import describe_left, what_is_left
from agent.launch import load_result, option_of
from agent.score_sets import run_dir_of
from tools.child import tail
from tools.clock import utc_now
from tools.errors import BakehouseError
from tools.jobs import JobRecord
from tools.journal import Journal
from tools.poll import RunProgress, read_progress
from tools.workspace import Workspace

_METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class JobState:
    """A job's progress. What is not known is None."""

    phase: str | None = None
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    score: float | None = None
    """Of an evaluation, or of the newest evaluation in a training run."""
    n_items: int | None = None
    adapter: Path | None = None
    """The checkpoint to go on with: the best one where the run measured itself, else the newest."""
    result: str | None = None
    """What an ended job came to, in words."""


def look_at_job(workspace: Workspace, job: JobRecord) -> JobState:
    """Return a job's progress; a file that is missing or torn only makes the answer poorer."""
    try:
        if job.kind == "train":
            return _training(read_progress(run_dir_of(workspace, job)), job)
        if job.kind == "eval":
            return _evaluation(load_result(job))
        if job.kind == "probe":
            return _probe(job)
        if job.kind == "flywheel":
            return _flywheel(workspace, job)
    except BakehouseError as err:
        return JobState(phase=f"its progress cannot be read: {err}")
    if job.kind == "merge":
        return _merge(workspace, load_result(job))
    if job.kind == "refresh":
        return _refresh(load_result(job))
    return JobState()


def metrics_file(workspace: Workspace, job: JobRecord) -> Path | None:
    """Return where a training job writes its metrics, None for another kind."""
    return run_dir_of(workspace, job) / _METRICS_FILE if job.kind == "train" else None


def _training(found: RunProgress, job: JobRecord) -> JobState:
    beat = found.heartbeat
    # A heartbeat from before the job speaks of an earlier run into the same folder.
    mine = beat is not None and job.started_at is not None and beat.started_at >= job.started_at
    if not mine and not job.ended:
        return JobState(phase="starting")
    number = found.best_iter or found.latest_iter
    adapter = found.run_dir / f"iter_{number:07d}" if number else None
    result = None
    if job.status == "succeeded":
        result = f"trained to iteration {found.latest_iter}; the checkpoint to use is {number}"
    return JobState(
        phase=beat.state if beat is not None else None,
        step=max(found.step or 0, found.latest_iter),
        total_steps=beat.max_iters if beat is not None else None,
        loss=found.loss,
        score=found.eval_score,
        adapter=adapter,
        result=result,
    )


def _evaluation(result: Mapping[str, Any] | None) -> JobState:
    if result is None:
        return JobState()
    text = f"{result['split']} mean {result['mean']:.4f} over {result['n']} items, kept as {result['scores']}"
    return JobState(score=float(result["mean"]), n_items=int(result["n"]), result=text)


def _probe(job: JobRecord) -> JobState:
    out = option_of(job, "--out")
    if out is None or not Path(out).is_file():
        return JobState()
    try:
        report = json.loads(Path(out).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return JobState()
    facts = report.get("overall") or {"mean_score": report.get("mean_score"), "total": report.get("total")}
    return JobState(result=_as_text(facts))


def _merge(workspace: Workspace, result: Mapping[str, Any] | None) -> JobState:
    if result is None:
        return JobState()
    folder = Path(str(result["merged_hf_dir"]))
    root = workspace.root.resolve()
    shown = folder.relative_to(root) if folder.is_relative_to(root) else folder
    text = f"checkpoint {result['source_iter']} is merged and exported to {shown}"
    return JobState(result=f"{text}; {result.get('parity_in_words') or 'not compared with the adapter'}")


def _flywheel(workspace: Workspace, job: JobRecord) -> JobState:
    result = load_result(job)
    if result is not None:
        lines = [f"{one['iteration']}: {one['decision']}" for one in result.get("decisions", ())]
        return JobState(result="\n".join([*lines, f"stopped: {result.get('stopped_by')}"]))
    try:
        event = json.loads(tail(workspace.journal_file, lines=1))
        # The debits of a step are written while it runs.
        word = "start" if event["event"] in (RESERVED, SETTLED) else event["event"]
        phase = f"{event['key']}: {event['step'] or event['event']} ({word})"
        left = read_account(Journal(workspace.journal_file, clock=utc_now).events()).committed
        told = what_is_left(workspace.load_task().budget, left)
        return JobState(phase=f"{phase}; left of the budget: {describe_left(told)}")
    except (ValueError, KeyError, TypeError, OSError):
        return JobState()


def _refresh(result: Mapping[str, Any] | None) -> JobState:
    if result is None:
        return JobState()
    lines = [f"{one['slug']}: {one['state']}: {one['why']}" for one in result.get("measured", ())]
    return JobState(result="\n".join(lines) or "nothing is stale")


def _as_text(facts: Mapping[str, Any] | None) -> str | None:
    if not facts:
        return None
    return ", ".join(f"{key} {value}" for key, value in facts.items() if value is not None)
