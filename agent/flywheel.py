"""The flywheel: iterations until the target, the planned number or the budget is reached."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from agent.budget import Budget
from agent.heartbeat_files import FlywheelHeartbeat, keep_heartbeat
from agent.incumbent import Incumbent, load_incumbent, still_holds
from agent.iteration import Bench, run_iteration
from agent.locks import Locks, take_locks
from agent.planner_context import build_context
from agent.planners.planner import PlanContext, Planner
from agent.planners.registry import open_planner
from agent.progress import Event
from agent.publishing import INCUMBENT_FILE
from agent.records import IterationRecord
from agent.runs import enter_run, leave_run
from agent.trials import RunWorker, TrialRunner, new_trial, opened_worker
from agent.validation import check_data, check_recipe
from tools.clock import Clock, utc_now
from tools.errors import PlannerError, TaskError, TrainError
from tools.journal import Journal
from tools.lock import hold_workspace
from tools.recipe import TrainRecipe
from tools.repo import ITERATION_TRAILER, Worktree, ensure_worktree, find_repo
from tools.task import Task
from tools.workspace import Workspace

StopReason = Literal["target", "iterations", "budget", "planner", "error storm"]


@dataclass(frozen=True)
class FlywheelResult:
    """What a flywheel did: its iterations, the incumbent after them and why it stopped."""

    branch: str
    records: tuple[IterationRecord, ...]
    incumbent: Incumbent
    stopped_by: StopReason
    reason: str


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
        BakehouseError: the workspace is not fit to start; nothing was spent.
    """
    with (
        hold_workspace(workspace.state_dir, what="flywheel"),
        keep_heartbeat(workspace.state_dir, clock) as heartbeat,
        opened_worker(run_worker) as worker,
    ):
        bench = open_bench(workspace, planner, worker, clock, heartbeat.watched(notify))
        wanted = iterations or bench.task.bakeoff.iterations
        run = enter_run(bench.journal, wanted)
        result = _turn(bench, wanted - run.n_done, heartbeat)
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


def establish_incumbent(bench: Bench, iteration_id: str) -> Incumbent:
    """Return the incumbent: the committed one where its scores still hold, else one measured now.

    A step of its own, so that an iteration that is resumed after its files were written still
    compares with the incumbent that it began with.

    Raises:
        TrainError: the starting recipe cannot be trained or scored, so nothing can be compared.
    """

    def run() -> Any:
        # What a run that died or was abandoned left half written there is nobody's work.
        bench.worktree.discard_changes()
        recipe = Workspace(bench.worktree.root).load_recipe()
        committed = load_incumbent(bench.worktree.root / INCUMBENT_FILE)
        if committed is not None and still_holds(committed, recipe, bench.locks):
            return committed.model_dump(mode="json")
        return _measure_start(bench, iteration_id, recipe)

    return Incumbent.model_validate(bench.step("start", iteration_id, run))


def open_bench(
    workspace: Workspace,
    planner: Planner | None,
    run_worker: RunWorker,
    clock: Clock,
    notify: Callable[[Event], None],
) -> Bench:
    """Check a workspace and return what a run on it works with. Hold the workspace's lock first."""
    task = workspace.load_task()
    recipe = workspace.load_recipe()
    check_committed(workspace)
    if recipe.backend != "local":
        raise TaskError(
            f"{workspace.recipe_file} asks for backend {recipe.backend!r}; a bakeoff trains on the local "
            "lane alone: set backend to local, or run this recipe by itself with `bakehouse train`"
        )
    locks = take_locks(workspace, recipe.system_prompt_file)
    check_data(workspace, task)
    check_recipe(workspace, recipe)
    worktree = ensure_worktree(workspace.root, workspace.worktree_dir, branch_name(task))
    if worktree.behind:
        text = (
            f"{worktree.branch} lacks {worktree.behind} commit(s) of yours and goes on from its own; "
            "merge it, or delete it to start from your last commit"
        )
        notify(Event("start", branch_name(task), "note", text=text))
    return Bench(
        workspace=workspace,
        task=task,
        locks=locks,
        journal=Journal(workspace.journal_file, clock=clock),
        worktree=worktree,
        runner=TrialRunner(
            workspace=workspace,
            task=task,
            run_worker=run_worker,
            committed_lineage=worktree.root / "lineage",
            threads=os.cpu_count(),
        ),
        planner=planner
        or open_planner(task.bakeoff.planner, seed=task.bakeoff.planner_seed, settings=task.bakeoff),
        clock=clock,
        notify=notify,
    )


def _turn(bench: Bench, iterations: int, heartbeat: FlywheelHeartbeat) -> FlywheelResult:
    budget, broken = Budget(bench.task.budget), 0
    records: list[IterationRecord] = []
    while True:
        iteration_id = _iteration_to_run(bench.journal, bench.locks, bench.worktree)
        started = time.monotonic()
        incumbent = establish_incumbent(bench, iteration_id)
        heartbeat.running(iteration_id, incumbent.selection)
        # Asked again here: only now is the score of a starting recipe known.
        stop = _reason_to_stop(bench, incumbent, budget, len(records), iterations, broken)
        if stop is not None:
            return FlywheelResult(branch_name(bench.task), tuple(records), incumbent, *stop)
        try:
            context = _context_maker(bench, iteration_id, incumbent, budget)
            record, incumbent = run_iteration(bench, iteration_id, incumbent, context)
        except PlannerError as err:
            return FlywheelResult(branch_name(bench.task), tuple(records), incumbent, "planner", str(err))
        heartbeat.finished(record, incumbent)
        bench.journal.append("iteration_end", iteration_id)
        records.append(record)
        broken = 0 if any(trial.scored for trial in record.trials if trial.parent_id) else broken + 1
        budget = budget.spend(wall_s=time.monotonic() - started, trials=len(record.own_trials))
        stop = _reason_to_stop(bench, incumbent, budget, len(records), iterations, broken)
        if stop is not None:
            return FlywheelResult(branch_name(bench.task), tuple(records), incumbent, *stop)


def _reason_to_stop(
    bench: Bench, incumbent: Incumbent, budget: Budget, n_done: int, iterations: int, broken: int
) -> tuple[StopReason, str] | None:
    score = incumbent.selection
    if score is not None and score >= bench.task.target_score:
        return "target", f"the incumbent's selection score {score:.3f} reached {bench.task.target_score:.3f}"
    if n_done >= iterations:
        return "iterations", f"{n_done} iteration(s) done"
    if broken >= 2:
        return (
            "error storm",
            f"no candidate of the last {broken} iterations could be trained; read their reasons",
        )
    worst = bench.task.bakeoff.candidates + 2 * (len(bench.task.seeds) - 1)
    each = max((trial.train_s + trial.eval_s for trial in incumbent.trials), default=0.0)
    refusal = budget.refusal(wall_s=each * worst, trials=worst)
    return None if refusal is None else ("budget", refusal)


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


def _measure_start(bench: Bench, iteration_id: str, recipe: TrainRecipe) -> Any:
    """Train and score the starting recipe, and score the untrained base beside it."""
    base = bench.runner.evaluate_base(recipe, splits=("dev", "selection"), label=iteration_id)
    bench.say("start", iteration_id, f"untrained base: selection {100 * base['selection']:.1f}%")
    seed = bench.task.seeds[0]
    trial = new_trial(
        bench.workspace,
        trial_id=f"{iteration_id}-incumbent-s{seed}",
        candidate_id="incumbent",
        recipe=recipe,
        seed=seed,
        parent_id="",
    )
    (trained,) = bench.runner.train([trial], label=f"{iteration_id}-start")
    (scored,) = bench.runner.evaluate([trained], splits=("dev", "selection"), label=f"{iteration_id}-start")
    if scored.selection is None:
        raise TrainError(f"the starting recipe failed: {scored.error}; mend {bench.workspace.recipe_file}")
    bench.say("start", iteration_id, f"starting recipe: selection {100 * scored.selection:.1f}%")
    incumbent = Incumbent(
        recipe=recipe.to_dict(),
        trials=(scored,),
        since=iteration_id,
        locks=bench.locks,
        base_dev=base["dev"],
        base_selection=base["selection"],
        start_trials=(scored,),
    )
    return incumbent.model_dump(mode="json")


def _context_maker(
    bench: Bench, iteration_id: str, incumbent: Incumbent, budget: Budget
) -> Callable[[], PlanContext]:
    def make() -> PlanContext:
        return build_context(
            bench.runner,
            incumbent,
            iteration=int(iteration_id[1:]),
            budget_left=budget.left(),
            planner=bench.planner.name,
        )

    return make
