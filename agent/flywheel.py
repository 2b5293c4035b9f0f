"""The flywheel: iterations until the target, the planned number or the budget is reached."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from agent.attempts import Retries
from agent.bench import Bench
from agent.budget.amounts import Amounts
from agent.budget.ledger import Ledger
from agent.faults import named_faults
from agent.gathering import check_teacher
from agent.heartbeat_files import FlywheelHeartbeat, keep_heartbeat
from agent.ideas.bookkeeping import offer_ideas
from agent.ideas.queue import open_queue
from agent.incumbent import Incumbent
from agent.iteration import run_iteration
from agent.locks import Locks, take_locks
from agent.plan import BudgetLeft
from agent.planner_context import build_context
from agent.planners.planner import PlanContext, Planner, costs_of
from agent.planners.registry import open_planner
from agent.progress import Event
from agent.records import IterationRecord
from agent.runs import MOST_BROKEN, FlywheelRun, count_broken, enter_run, leave_run
from agent.start import establish_incumbent
from agent.trials import TrialRunner
from agent.validation import check_data, check_recipe
from agent.workers import RunWorker, opened_worker
from tools.clock import Clock, utc_now
from tools.errors import BudgetError, PlannerError, TaskError
from tools.hardware import detect
from tools.hardware.machine import visible_gpus
from tools.journal import Journal
from tools.lock import hold_workspace
from tools.repo import ITERATION_TRAILER, Worktree, ensure_worktree, find_repo
from tools.task import BudgetCaps, Task
from tools.workspace import Workspace

NO_CAPS: Final = BudgetCaps()
StopReason = Literal["target", "iterations", "budget", "planner", "error storm"]


@dataclass(frozen=True)
class FlywheelResult:
    """What a flywheel did: its iterations, the incumbent after them and why it stopped."""

    branch: str
    records: tuple[IterationRecord, ...]
    incumbent: Incumbent | None
    """None where the budget ended before the starting recipe was measured."""
    stopped_by: StopReason
    reason: str
    spent: Amounts
    """By the whole run, the times before it was cut off included."""
    left: BudgetLeft


def run_flywheel(
    workspace: Workspace,
    *,
    iterations: int | None = None,
    planner: Planner | None = None,
    run_worker: RunWorker | None = None,
    clock: Clock = utc_now,
    notify: Callable[[Event], None] = lambda _: None,
) -> FlywheelResult:
    """Run bakeoffs on a workspace and commit each on the branch `bakehouse/<task>`.

    An iteration that was cut off is finished first, and of a run that was cut off only the
    iterations that it lacks are run. The user's own branch, index and working
    tree are never touched.

    Args:
        iterations: How many to run; None takes the task's number.
        planner: Proposes patches; None opens the one that the task names.
        run_worker: Runs a worker specification; None runs them on this machine, the base loaded once.
    Raises:
        LockHeldError: another flywheel runs on this workspace.
        DiskFullError, GpuLostError: the machine cannot go on; once it is mended, the same call does.
        BakehouseError: the workspace is not fit to start; nothing was spent.
    """
    with (
        hold_workspace(workspace.state_dir, what="flywheel"),
        keep_heartbeat(workspace.state_dir, clock) as heartbeat,
        named_faults(workspace.state_dir),
        opened_worker(run_worker) as worker,
    ):
        caps = workspace.load_task().budget
        bench = open_bench(workspace, planner, worker, clock, heartbeat.watched(notify), caps=caps)
        check_prices(bench.task, bench.planner)
        check_teacher(bench.task)
        wanted = iterations or bench.task.bakeoff.iterations
        run = enter_run(bench.journal, wanted)
        bench.ledger.enter(run.run_id)
        result = _turn(bench, run, wanted - run.n_done, heartbeat)
        leave_run(bench.journal, run)
        heartbeat.end(result.reason if result.stopped_by in ("planner", "error storm") else None)
        return result


def branch_name(task: Task) -> str:
    """Return the branch that a task's bakeoffs are committed to."""
    return f"bakehouse/{task.name}"


def check_committed(workspace: Workspace) -> None:
    """Refuse a recipe that the last commit does not hold: the bakeoff branch starts there.

    Raises:
        TaskError: recipe.yaml is not committed, or was changed since.
    """
    committed = find_repo(workspace.root).read_file("HEAD", "recipe.yaml")
    if committed is None or committed.strip() != workspace.recipe_file.read_text(encoding="utf-8").strip():
        state = "is not committed" if committed is None else "has changes that are not committed"
        raise TaskError(
            f"{workspace.recipe_file} {state}; commit it first: candidates are compared with the "
            "recipe that the bakeoff branch starts from, and that is the committed one"
        )


def open_bench(
    workspace: Workspace,
    planner: Planner | None,
    run_worker: RunWorker,
    clock: Clock,
    notify: Callable[[Event], None],
    *,
    caps: BudgetCaps = NO_CAPS,
) -> Bench:
    """Check a workspace and return what a run on it works with. Hold the workspace's lock first.

    Args:
        caps: What may be spent with it. Its ledger belongs to no run until it enters one.
    """
    task = workspace.load_task()
    recipe = workspace.load_recipe()
    check_committed(workspace)
    if recipe.backend != "local":
        raise TaskError(
            f"{workspace.recipe_file} asks for backend {recipe.backend!r}; a bakeoff trains on the local "
            "lane alone: set backend to local, or run this recipe by itself with `bakehouse train`"
        )
    locks = take_locks(workspace, recipe.system_prompt_file)
    check_data(workspace, task, recipe)
    check_recipe(workspace, recipe)
    worktree = ensure_worktree(workspace.root, workspace.worktree_dir, branch_name(task))
    if worktree.behind:
        text = (
            f"{worktree.branch} lacks {worktree.behind} commit(s) of yours and goes on from its own; "
            "merge it, or delete it to start from your last commit"
        )
        notify(Event("start", branch_name(task), "note", text=text))
    journal = Journal(workspace.journal_file, clock=clock)
    ledger = Ledger(journal, caps, count_gpus=_count_gpus, clock=clock)
    return Bench(
        workspace=workspace,
        task=task,
        locks=locks,
        journal=journal,
        worktree=worktree,
        runner=TrialRunner(
            workspace=workspace,
            task=task,
            run_worker=run_worker,
            committed_lineage=worktree.root / "lineage",
            threads=os.cpu_count(),
            meter=ledger,
            retries=Retries(journal),
        ),
        ledger=ledger,
        planner=planner
        or open_planner(task.bakeoff.planner, seed=task.bakeoff.planner_seed, settings=task.bakeoff),
        clock=clock,
        notify=notify,
    )


def _count_gpus() -> int:
    return 0 if detect().kind == "cpu" else max(1, len(visible_gpus()))


def check_prices(task: Task, planner: Planner) -> None:
    """Refuse a cap on dollars that could not be kept, before anything is spent.

    Raises:
        BudgetError: a model is asked whose price nobody says.
    """
    costs, work = costs_of(planner), task.bakeoff
    unpriced = []
    if costs is not None and costs.prices is None:
        unpriced.append(f"{planner.name} (bakeoff.planner_prices)")
    if work.data_work and work.teacher.prices is None:
        unpriced.append("the teacher (bakeoff.teacher.prices)")
    if task.budget.dollars is not None and unpriced:
        raise BudgetError(
            f"budget.dollars is {task.budget.dollars:g}, but what {' and '.join(unpriced)} costs is unknown; "
            "set its prices in task.yaml, in dollars per million tokens, or cap budget.tokens instead"
        )


def _turn(bench: Bench, run: FlywheelRun, iterations: int, heartbeat: FlywheelHeartbeat) -> FlywheelResult:
    records: list[IterationRecord] = []
    incumbent: Incumbent | None = None

    def end(stopped_by: StopReason, reason: str) -> FlywheelResult:
        spent, left = bench.ledger.account.spent, bench.ledger.left()
        return FlywheelResult(
            branch_name(bench.task), tuple(records), incumbent, stopped_by, reason, spent, left
        )

    while True:
        iteration_id = _iteration_to_run(bench.journal, bench.locks, bench.worktree)
        try:
            incumbent = establish_incumbent(bench, iteration_id)
            heartbeat.running(iteration_id, incumbent.selection)
            # Asked again here: only now is the score of a starting recipe known.
            stop = _reason_to_stop(bench, run, incumbent, len(records), iterations)
            if stop is not None:
                return end(*stop)
            _check_room(bench, iteration_id, incumbent)
            context = _context_maker(bench, iteration_id, incumbent)
            record, incumbent = run_iteration(bench, iteration_id, incumbent, context)
        except PlannerError as err:
            return end("planner", str(err))
        except BudgetError as err:
            # Nothing was trained, so there is nothing to decide on and nothing to commit.
            bench.journal.append("iteration_end", iteration_id, abandoned=str(err))
            return end("budget", f"{err}; {iteration_id} ends without a commit")
        heartbeat.finished(record, incumbent)
        bench.journal.append("iteration_end", iteration_id)
        records.append(record)
        stop = _reason_to_stop(bench, run, incumbent, len(records), iterations)
        if stop is None:
            refusal = bench.ledger.refusal(_least_worst(bench, incumbent))
            stop = None if refusal is None else ("budget", f"no room for another iteration: {refusal}")
        if stop is not None:
            return end(*stop)


def _reason_to_stop(
    bench: Bench, run: FlywheelRun, incumbent: Incumbent, n_done: int, iterations: int
) -> tuple[StopReason, str] | None:
    score = incumbent.selection
    if score is not None and score >= bench.task.target_score:
        return "target", f"the incumbent's selection score {score:.3f} reached {bench.task.target_score:.3f}"
    if n_done >= iterations:
        return "iterations", f"{n_done} iteration(s) done"
    broken = count_broken(bench.journal, run)
    if broken >= MOST_BROKEN:
        return (
            "error storm",
            f"no candidate of the last {broken} iterations could be trained; read their reasons",
        )
    return None


def _check_room(bench: Bench, iteration_id: str, incumbent: Incumbent) -> None:
    """Refuse an iteration before it is planned where the budget does not cover one candidate.

    Raises:
        BudgetError: it does not.
    """
    # What an iteration that goes on may still do is asked at each of its steps.
    if bench.journal.attempts("plan", iteration_id):
        return
    refusal = bench.ledger.refusal(_least_worst(bench, incumbent))
    if refusal is not None:
        raise BudgetError(f"no room for a candidate: {refusal}")


def _least_worst(bench: Bench, incumbent: Incumbent) -> Amounts:
    """Return the worst case of the smallest iteration: one candidate like the incumbent."""
    pace = bench.pace(incumbent)
    like = incumbent.trials[0].model_copy(update={"trial_id": "one more"})
    asked = Amounts(turns=int(costs_of(bench.planner) is not None))
    return pace.training([like]) + pace.scoring([like]) + asked


def _iteration_to_run(journal: Journal, locks: Locks, worktree: Worktree) -> str:
    """Return the iteration that was cut off, or a new one.

    One that was cut off on other data or another task is closed: its results no longer compare.
    """
    opened = journal.last("iteration_begin")
    if opened is not None and journal.last("iteration_end", opened.key) is None:
        if opened.data["locks"] == locks.model_dump(mode="json"):
            return opened.key
        journal.append("iteration_end", opened.key, abandoned="the task or its data changed")
    number = 1 + sum(event.event == "iteration_begin" for event in journal.events())
    # The branch may know iterations that this journal does not: the state folder is not cloned.
    while worktree.find_commit(ITERATION_TRAILER, f"i{number:04d}") is not None:
        number += 1
    iteration_id = f"i{number:04d}"
    journal.append("iteration_begin", iteration_id, locks=locks.model_dump(mode="json"))
    return iteration_id


def _context_maker(bench: Bench, iteration_id: str, incumbent: Incumbent) -> Callable[[], PlanContext]:
    def make() -> PlanContext:
        context = build_context(
            bench.runner,
            incumbent,
            iteration=int(iteration_id[1:]),
            budget_left=bench.ledger.left(),
            planner=bench.planner.name,
        )
        return offer_ideas(open_queue(bench.workspace, clock=bench.clock), context, iteration_id)

    return make
