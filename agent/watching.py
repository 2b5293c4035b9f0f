"""A flywheel seen from outside: read from its files, holding and changing nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import TypeAdapter, ValidationError

from agent.budget.account import read_account
from agent.budget.amounts import Amounts
from agent.budget.limits import what_is_left
from agent.heartbeat_files import HEARTBEAT_FILE
from agent.incumbent import Incumbent
from agent.plan import BudgetLeft
from agent.records import IterationRecord, TrialRecord
from agent.rerun.log import RERUN_BEGIN, RERUN_HOLDER, open_log, read_caps
from tools.clock import Clock, utc_now
from tools.errors import JobError, JournalError
from tools.jobs import JobRecord, list_jobs
from tools.journal import Journal, JournalEvent
from tools.lock import workspace_holder
from tools.poll import METRICS, read_progress
from tools.task import BudgetCaps
from tools.workspace import Workspace

__all__ = ["DecisionView", "FlywheelView", "StepView", "TrialView", "Watcher"]

RunState = Literal["starting", "running", "completed", "error", "cut off", "idle"]
StepState = Literal["done", "running", "failed", "cut off"]

_TRIALS: Final = TypeAdapter(tuple[TrialRecord, ...])
_TRIAL_STEPS: Final = ("train", "evaluate", "train.look2", "evaluate.look2")
_SHOWN_DECISIONS: Final = 5
_WAITING_S: Final = 60.0
_WATCHED_JOBS: Final = ("flywheel", "refresh")


@dataclass(frozen=True)
class StepView:
    """One step of the iteration."""

    name: str
    state: StepState
    wall_s: float | None
    error: str | None = None


@dataclass(frozen=True)
class TrialView:
    """One trial of the iteration. What is not known is None."""

    trial_id: str
    state: str
    """training, trained, scored, smoke run, not finished, or how it failed."""
    step: int | None
    loss: float | None
    tokens_per_s: float | None
    mid_score: float | None
    """Score of the last evaluation on the way, on a few dev rows."""
    dev: float | None
    selection: float | None
    quiet_s: float | None
    """Seconds since its last line of metrics."""


@dataclass(frozen=True)
class DecisionView:
    """What an iteration came to."""

    iteration: str
    promoted: str | None
    decision: str


@dataclass(frozen=True)
class FlywheelView:
    """All that the disk says about a workspace's flywheel at one moment."""

    at: str
    task: str
    state: RunState
    holder: str | None
    """Who holds the workspace."""
    job: str | None
    """The newest detached flywheel or re-run and its status."""
    iteration: str | None
    accuracy: float | None
    """The incumbent's selection score."""
    error: str | None
    steps: tuple[StepView, ...]
    trials: tuple[TrialView, ...]
    decisions: tuple[DecisionView, ...]
    problems: tuple[str, ...]
    spent: Amounts
    """By the run that goes on, or went last, up to the last step that ended."""
    left: BudgetLeft
    """Of its budget; what a running step may cost at worst is taken off already."""

    @property
    def alive(self) -> bool:
        """Whether something will change by itself."""
        return self.state in ("starting", "running")


class Watcher:
    """Looks at one workspace again and again; the journal is read on where the last look ended."""

    def __init__(self, workspace: Workspace, *, clock: Clock = utc_now) -> None:
        self._workspace = workspace
        self._clock = clock
        task = workspace.load_task()
        self._task, self._caps = task.name, task.budget
        self._journal = Journal(workspace.journal_file, clock=clock)
        self._reruns = open_log(workspace, clock=clock)

    def look(self) -> FlywheelView:
        """Return what the disk says now; what is torn or missing makes the answer poorer, not wrong."""
        holder = workspace_holder(self._workspace.state_dir)
        measures_again = holder is not None and holder.what == RERUN_HOLDER
        events, problems = _read_events(self._reruns if measures_again else self._journal)
        beat = _read_heartbeat(self._workspace.state_dir / HEARTBEAT_FILE)
        job = self._newest_job()
        state = _run_state(holder is not None, job, beat)
        begun = [event.key for event in events if event.event in ("iteration_begin", RERUN_BEGIN)]
        mine = [event for event in events if begun and event.key == begun[-1]]
        now = self._clock()
        steps = _steps(mine, now, running=holder is not None)
        working = any(step.state == "running" for step in steps)
        account = read_account(events)
        return FlywheelView(
            at=now,
            task=self._task,
            state=state,
            holder=None if holder is None else str(holder),
            job=None if job is None else f"{job.id} {job.status}",
            iteration=begun[-1] if begun else None,
            accuracy=_number(beat.get("accuracy")),
            error=_reason(job, beat) if state == "error" else None,
            steps=steps,
            trials=self._trials(begun[-1], mine, working) if begun else (),
            decisions=_decisions(events),
            problems=problems,
            spent=account.spent,
            left=what_is_left(_caps_of(events) if measures_again else self._caps, account.committed),
        )

    def _newest_job(self) -> JobRecord | None:
        try:
            jobs = [job for job in list_jobs(self._workspace.jobs_dir) if job.kind in _WATCHED_JOBS]
        except (JobError, OSError):
            return None
        return max(jobs, key=lambda job: job.id, default=None)

    def _trials(
        self, iteration_id: str, events: Sequence[JournalEvent], working: bool
    ) -> tuple[TrialView, ...]:
        known = _known_trials(events)
        try:
            folders = {path.name for path in self._workspace.runs_dir.glob(f"{iteration_id}-*")}
        except OSError:
            folders = set()
        return tuple(self._trial(name, known.get(name), working) for name in sorted(folders | known.keys()))

    def _trial(self, trial_id: str, record: TrialRecord | None, working: bool) -> TrialView:
        run_dir = self._workspace.runs_dir / trial_id / "runs-full"
        found = read_progress(run_dir)
        quiet_s = _age_s(run_dir / METRICS) if record is None and working else None
        state = _trial_state(trial_id, record, working=working)
        if quiet_s is not None and quiet_s > _WAITING_S and found.step == found.latest_iter:
            # All that it has done is saved, so it is the others that one waits for.
            state, quiet_s = f"{state}, saved", None
        return TrialView(
            trial_id=trial_id,
            state=state,
            step=found.step,
            loss=found.loss,
            tokens_per_s=found.tokens_per_s,
            mid_score=found.eval_score,
            dev=record.dev if record else None,
            selection=record.selection if record else None,
            quiet_s=quiet_s,
        )


def _read_events(journal: Journal) -> tuple[tuple[JournalEvent, ...], tuple[str, ...]]:
    try:
        return journal.events(), journal.problems
    except (JournalError, OSError) as err:
        return (), (str(err),)


def _caps_of(events: Sequence[JournalEvent]) -> BudgetCaps:
    begun = [event for event in events if event.event == "run_begin"]
    return read_caps(begun[-1]) if begun else BudgetCaps()


def _run_state(held: bool, job: JobRecord | None, beat: dict[str, Any]) -> RunState:
    if held:
        return "running"
    if job is not None and job.status in ("starting", "running"):
        # A detached flywheel holds the workspace only once it has loaded.
        return "starting"
    if _failed_early(job, beat):
        return "error"
    status = beat.get("status")
    if status == "running":
        return "cut off"
    return status if status in ("completed", "error") else "idle"


def _failed_early(job: JobRecord | None, beat: dict[str, Any]) -> bool:
    """Return whether the newest job failed before its flywheel could write a heartbeat."""
    if job is None or job.status not in ("failed", "lost") or job.started_at is None:
        return False
    return (_text(beat.get("timestamp")) or "") < job.started_at


def _reason(job: JobRecord | None, beat: dict[str, Any]) -> str | None:
    if job is not None and _failed_early(job, beat):
        return job.log_tail(3).strip() or job.error or f"its log is {job.log_path}"
    return _text(beat.get("error"))


def _steps(events: Iterable[JournalEvent], now: str, *, running: bool) -> tuple[StepView, ...]:
    started: dict[str, str] = {}
    steps: dict[str, StepView] = {}
    for event in events:
        if event.step is None:
            continue
        if event.event == "start":
            started[event.step] = event.at
            steps[event.step] = StepView(
                event.step, "running" if running else "cut off", _seconds(event.at, now) if running else None
            )
        elif event.event in ("done", "failed", "interrupted"):
            state: StepState = "done" if event.event == "done" else "failed"
            wall_s = _seconds(started.get(event.step, event.at), event.at)
            error = _text(event.data.get("error"))
            steps[event.step] = StepView(event.step, state, wall_s, error)
    return tuple(steps.values())


def _known_trials(events: Iterable[JournalEvent]) -> dict[str, TrialRecord]:
    """Return the trials as the last finished step left them."""
    known: dict[str, TrialRecord] = {}
    for event in events:
        if event.event == "done" and event.step in ("start", *_TRIAL_STEPS):
            result = event.data.get("result")
            try:
                measured = event.step == "start"
                trials = (
                    Incumbent.model_validate(result).trials if measured else _TRIALS.validate_python(result)
                )
            except ValidationError:
                # Written by another version; what lies in the run folders is still shown.
                continue
            known |= {trial.trial_id: trial for trial in trials}
    return known


def _trial_state(trial_id: str, record: TrialRecord | None, *, working: bool) -> str:
    if record is None:
        kind = "smoke run" if "-smoke-" in trial_id else "training"
        return kind if working or kind == "smoke run" else "not finished"
    if record.status == "failed":
        return f"failed: {record.error}"
    return "scored" if record.scored else "trained"


def _decisions(events: Iterable[JournalEvent]) -> tuple[DecisionView, ...]:
    found: list[DecisionView] = []
    for event in events:
        if event.event == "done" and event.step == "decide":
            try:
                record = IterationRecord.model_validate(event.data.get("result"))
            except ValidationError:
                continue
            found.append(DecisionView(record.iteration_id, record.promoted, record.decision))
    return tuple(found[-_SHOWN_DECISIONS:])


def _read_heartbeat(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _seconds(start: str, end: str) -> float | None:
    try:
        return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
    except (ValueError, TypeError):
        return None


def _age_s(path: Path) -> float | None:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
