"""A session of re-runs: one entry after the other while the budget lasts, through any kill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from agent.attempts import Retries
from agent.bench import Bench
from agent.budget.amounts import Amounts
from agent.budget.ledger import Ledger
from agent.faults import named_faults
from agent.flywheel import open_bench
from agent.plan import Plan, PlanContext
from agent.progress import Event
from agent.rerun.ground import check_ground
from agent.rerun.listing import Prospect, find_entry, worst_s
from agent.rerun.log import (
    RERUN_BEGIN,
    RERUN_END,
    RERUN_HOLDER,
    RERUN_PLANNER,
    enter_session,
    open_log,
    open_rerun,
)
from agent.rerun.pair import Pair, find_pair
from agent.rerun.running import RerunRecord, run_pair
from agent.workers import RunWorker, opened_worker
from tools.clock import Clock, utc_now
from tools.errors import BudgetError, PlannerError, RerunError
from tools.lock import hold_workspace
from tools.repo import ITERATION_TRAILER
from tools.task import BudgetCaps
from tools.workspace import Workspace

__all__ = ["Measured", "measure_again"]


@dataclass(frozen=True)
class Measured:
    """What became of one entry."""

    slug: str
    state: str
    """confirmed, reversed, undecided, or not run."""
    why: str
    """The decision, or what stood in the way."""
    rerun_id: str | None = None
    commit: str | None = None
    gain: float | None = None
    low: float | None = None
    high: float | None = None


def measure_again(
    workspace: Workspace,
    prospects: Sequence[Prospect],
    *,
    caps: BudgetCaps | None = None,
    run_worker: RunWorker | None = None,
    clock: Clock = utc_now,
    notify: Callable[[Event], None] = lambda _: None,
) -> tuple[Measured, ...]:
    """Run the bakeoffs behind entries again, the first first, and commit each on the bakeoff branch.

    A re-run that was cut off is finished before any other, whether it is listed or not. One whose
    worst case the caps do not cover is not started. A session that was killed and is asked for with
    the same caps again goes on with what those caps left.

    Args:
        prospects: As `list_prospects` gives them; those with an obstacle are passed through.
        caps: Of this session; None: no cap.
        run_worker: Runs a worker specification; None runs them on this machine, the base loaded once.
    Raises:
        LockHeldError: a flywheel or another session runs on this workspace.
        DiskFullError, GpuLostError: the machine cannot go on; once it is mended, the same call does.
        BakehouseError: the workspace is not fit to start; nothing was spent.
    """
    with (
        hold_workspace(workspace.state_dir, what=RERUN_HOLDER, clock=clock),
        named_faults(workspace.state_dir),
        opened_worker(run_worker) as worker,
    ):
        bench = open_bench(workspace, _Nobody(), worker, clock, notify)
        return _Session(bench, caps or BudgetCaps()).run(prospects)


class _Nobody:
    """The planner of a re-run: the pair is given, so nothing is planned."""

    name = RERUN_PLANNER

    def plan(self, context: PlanContext) -> Plan:
        raise PlannerError("a re-run measures a pair that is given; nothing is planned")


class _Session:
    def __init__(self, bench: Bench, caps: BudgetCaps) -> None:
        journal = open_log(bench.workspace, clock=bench.clock)
        ledger = Ledger(journal, caps, count_gpus=lambda: bench.ledger.gpus, clock=bench.clock)
        runner = replace(bench.runner, meter=ledger, retries=Retries(journal))
        self._bench = replace(bench, journal=journal, ledger=ledger, runner=runner)
        self._journal = journal
        self._run_id = enter_session(journal, caps)
        self._cut_off: str | None = None
        ledger.enter(self._run_id)

    def run(self, prospects: Sequence[Prospect]) -> tuple[Measured, ...]:
        """Finish what was cut off, then measure each entry; the session ends in order."""
        first = self._finish_open()
        found = [] if first is None else [first]
        found += [self._measure(one) for one in prospects if first is None or one.entry.slug != first.slug]
        self._journal.end_run(self._run_id)
        return tuple(found)

    def _finish_open(self) -> Measured | None:
        """Finish the re-run that a killed session left, or close it where its ground is gone."""
        begun = open_rerun(self._journal)
        if begun is None:
            return None
        slug = str(begun.data.get("entry"))
        try:
            pair = self._find_pair(slug)
        except RerunError as err:
            self._journal.append(RERUN_END, begun.key, abandoned=str(err))
            return Measured(slug, "not run", f"{begun.key} was cut off and cannot be finished: {err}")
        return self._finish(begun.key, pair)

    def _measure(self, prospect: Prospect) -> Measured:
        slug, pair = prospect.entry.slug, prospect.pair
        if pair is None:
            return Measured(slug, "not run", str(prospect.obstacle))
        if self._cut_off is not None:
            return Measured(slug, "not run", f"{self._cut_off} is not finished")
        rerun_id = self._next_id()
        refusal = self._bench.ledger.refusal(_worst(rerun_id, pair, self._bench.ledger.gpus))
        if refusal is not None:
            return Measured(slug, "not run", f"over the budget: {refusal}")
        self._journal.append(RERUN_BEGIN, rerun_id, entry=slug)
        return self._finish(rerun_id, pair)

    def _find_pair(self, slug: str) -> Pair:
        bench = self._bench
        pair = find_pair(bench.worktree.repo, bench.task, find_entry(bench.workspace, slug))
        check_ground(bench.workspace, bench.worktree.repo, bench.task, pair)
        return pair

    def _next_id(self) -> str:
        number = 1 + sum(event.event == RERUN_BEGIN for event in self._journal.events())
        # The branch may know re-runs that this journal does not: the state folder is not cloned.
        while self._bench.worktree.find_commit(ITERATION_TRAILER, f"v{number:04d}") is not None:
            number += 1
        return f"v{number:04d}"

    def _finish(self, rerun_id: str, pair: Pair) -> Measured:
        try:
            done = run_pair(self._bench, rerun_id, pair)
        except RerunError as err:
            self._journal.append(RERUN_END, rerun_id, abandoned=str(err))
            return Measured(pair.entry.slug, "not run", str(err))
        except BudgetError as err:
            # Left open: what it has measured is kept for a session with more to spend.
            self._cut_off = rerun_id
            told = f"{err}; {rerun_id} goes on when the command is given more"
            return Measured(pair.entry.slug, "not run", told, rerun_id)
        self._journal.append(RERUN_END, rerun_id, outcome=done.outcome)
        return _measured(pair, rerun_id, done)


def _worst(rerun_id: str, pair: Pair, gpus: int) -> Amounts:
    names = tuple(f"{rerun_id}-{number}" for number in range(pair.n_trials))
    wall_s = worst_s(pair)
    return Amounts(wall_s=wall_s, gpu_s=None if wall_s is None else gpus * wall_s, trials=names)


def _measured(pair: Pair, rerun_id: str, done: RerunRecord) -> Measured:
    ruling = done.ruling
    return Measured(
        pair.entry.slug,
        done.outcome,
        done.record.decision,
        rerun_id,
        done.commit,
        ruling.gain if ruling else None,
        ruling.low if ruling else None,
        ruling.high if ruling else None,
    )
