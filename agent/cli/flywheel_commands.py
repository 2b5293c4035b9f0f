"""Commands that turn the flywheel and show what it found: bakeoff, flywheel, status, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli.options import AsJson, Where
from agent.cli.output import CONSOLE, ERROR_CONSOLE, duration, percent, points, print_json, table
from agent.launch import save_result, start_flywheel
from tools.workspace import Workspace

if TYPE_CHECKING:
    from agent.budget.account import Account
    from agent.flywheel import FlywheelResult
    from agent.records import IterationRecord, TrialRecord

Planner = Annotated[str | None, typer.Option(help="optuna, claude or fixed; the task's by default.")]
PlanFile = Annotated[
    Path | None, typer.Option("--plan", help="YAML list of patches for the planner `fixed`.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to app."""
    for command in (bakeoff, flywheel, status, report):
        app.command()(command)


def bakeoff(
    where: Where = Path("."), planner: Planner = None, plan_file: PlanFile = None, as_json: AsJson = False
) -> None:
    """Run one iteration: plan, train the candidates together, compare, decide, commit."""
    _turn(where, 1, planner, plan_file, as_json)


def flywheel(
    where: Where = Path("."),
    iterations: Annotated[
        int | None, typer.Option("--iters", min=1, help="The task's number by default.")
    ] = None,
    planner: Planner = None,
    plan_file: PlanFile = None,
    detach: Annotated[bool, typer.Option(help="Run it unattended and return a job id.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run iterations until the target, the planned number or the budget is reached."""
    if not detach:
        _turn(where, iterations, planner, plan_file, as_json)
        return
    job = start_flywheel(Workspace.find(where), iterations=iterations, planner=planner, plan_file=plan_file)
    if as_json:
        print_json({"id": job.id, "status": job.status, "log": job.log_path})
    else:
        told = f"{job.id}: {job.status}; `bakehouse watch` shows it, `bakehouse poll {job.id}` its log"
        CONSOLE.print(told, markup=False, soft_wrap=True)


def status(where: Where = Path("."), as_json: AsJson = False) -> None:
    """Show the incumbent, what runs now and what is committed but not yet merged."""
    from agent.budget.limits import describe_left, describe_spent, what_is_left
    from agent.flywheel import branch_name
    from agent.ideas.queue import open_queue
    from agent.incumbent import parse_incumbent
    from agent.publishing import INCUMBENT_FILE
    from tools.lock import workspace_holder
    from tools.repo import find_repo

    workspace = Workspace.find(where)
    task = workspace.load_task()
    branch = branch_name(task)
    repo = find_repo(workspace.root)
    tip = repo.branch_tip(branch)
    text = None if tip is None else repo.read_file(branch, INCUMBENT_FILE)
    incumbent = None if text is None else parse_incumbent(text)
    holder = workspace_holder(workspace.state_dir)
    account = _account(workspace)
    left = None if account is None else what_is_left(task.budget, account.committed)
    facts: dict[str, Any] = {
        "task": task.name,
        "branch": branch,
        "unmerged_commits": 0 if tip is None else repo.count_between("HEAD", branch),
        "incumbent": None if incumbent is None else incumbent.trial_id,
        "selection": None if incumbent is None else incumbent.selection,
        "base_selection": None if incumbent is None else incumbent.base_selection,
        "target_score": task.target_score,
        "running": None if holder is None else str(holder),
        "ideas_waiting": len(open_queue(workspace).waiting()),
    }
    if as_json:
        run, spent = (None, None) if account is None else (account.run_id, account.spent)
        print_json({**facts, "budget": {"run": run, "spent": spent, "left": left}})
    else:
        shown = {
            **facts,
            "selection": percent(facts["selection"]),
            "base_selection": percent(facts["base_selection"]),
            "spent by the last run": describe_spent(account.spent) if account else "unknown",
            "left of its budget": describe_left(left) if left else "unknown",
        }
        CONSOLE.print(table(task.name, ("what", "now"), list(shown.items())))


def _account(workspace: Workspace) -> Account | None:
    """Return what the last run has spent; None where the journal cannot say it."""
    from agent.budget.account import read_account
    from tools.clock import utc_now
    from tools.errors import JournalError
    from tools.journal import Journal

    try:
        return read_account(Journal(workspace.journal_file, clock=utc_now).events())
    except (JournalError, OSError) as err:
        ERROR_CONSOLE.print(str(err), markup=False, highlight=False, soft_wrap=True)
        return None


def report(
    where: Where = Path("."),
    open_test: Annotated[bool, typer.Option(help="Open the sealed test split; the look is counted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say where the last bakeoff's report lies; with --open-test also score the sealed split."""
    from agent.cli.live import LiveView
    from agent.sealed import open_test_split

    workspace = Workspace.find(where)
    # By time: the names of re-runs and of iterations are counted apart.
    pages = sorted(workspace.reports_dir.glob("*/report.html"), key=lambda page: page.stat().st_mtime)
    facts: dict[str, Any] = {"reports": pages, "test": None}
    if open_test:
        view = LiveView(ERROR_CONSOLE)
        try:
            look = open_test_split(workspace, run_worker=view, notify=view.notify)
        finally:
            view.close()
        facts["test"] = {"look": look.number, "scores": list(look.scores)}
    if as_json:
        print_json(facts)
        return
    if open_test:
        rows = [
            (s.name, percent(s.mean), f"{percent(s.low)} to {percent(s.high)}", s.n_items, s.n_seeds)
            for s in look.scores
        ]
        columns = ("model", "test", "95% interval", "items", "seeds")
        CONSOLE.print(table(f"sealed test split, look {look.number}", columns, rows))
    newest = pages[-1] if pages else "none yet; run `bakehouse bakeoff`"
    CONSOLE.print(f"report: {newest}", markup=False, highlight=False, soft_wrap=True)


def _turn(
    where: Path, iterations: int | None, planner: str | None, plan_file: Path | None, as_json: bool
) -> None:
    from agent.cli.live import LiveView
    from agent.flywheel import run_flywheel
    from agent.planners.registry import open_planner

    workspace = Workspace.find(where)
    settings = workspace.load_task().bakeoff
    name = planner or ("fixed" if plan_file else settings.planner)
    view = LiveView(ERROR_CONSOLE if as_json else CONSOLE)
    try:
        result = run_flywheel(
            workspace,
            iterations=iterations,
            planner=open_planner(name, seed=settings.planner_seed, plan_file=plan_file, settings=settings),
            run_worker=view,
            notify=view.notify,
        )
    finally:
        view.close()
    decisions = [{"iteration": record.iteration_id, "decision": record.decision} for record in result.records]
    save_result({"branch": result.branch, "stopped_by": result.reason, "decisions": decisions})
    if as_json:
        print_json(
            {
                "branch": result.branch,
                "stopped_by": result.stopped_by,
                "reason": result.reason,
                "iterations": list(result.records),
                "budget": {"spent": result.spent, "left": result.left},
            }
        )
    else:
        show_result(workspace, result)


def show_result(workspace: Workspace, result: FlywheelResult) -> None:
    """Print the trials, the decisions, the commit and where the report lies."""
    from agent.budget.limits import describe_left, describe_spent
    from tools.repo import find_repo

    repo = find_repo(workspace.root)
    for record in result.records:
        CONSOLE.print()
        columns = ("trial", "dev", "selection (95%)", "gain", "verdict", "wall")
        trials = table(
            f"{record.iteration_id}: trials", columns, [_row(workspace, record, t) for t in record.trials]
        )
        # Whatever else a narrow terminal folds, a name stays one that can be copied.
        trials.columns[0].no_wrap = True
        CONSOLE.print(trials)
        for candidate in record.candidates:
            told = ", ".join(candidate.changes) or f"refused: {candidate.rejected}"
            CONSOLE.print(f"{candidate.candidate_id}: {told}", markup=False, highlight=False)
        CONSOLE.print(f"\nDecision: {record.decision}\n", markup=False)
    if result.records:
        CONSOLE.print(f"$ git log --oneline {result.branch}", style="bold", markup=False)
        CONSOLE.print(repo.log(result.branch, 5), markup=False, highlight=False, soft_wrap=True)
        CONSOLE.print(f"\n$ git show --stat {result.branch}", style="bold", markup=False)
        CONSOLE.print(repo.show(result.branch), markup=False, highlight=False, soft_wrap=True)
        page = workspace.reports_dir / result.records[-1].iteration_id / "report.html"
        CONSOLE.print(f"\nreport: {page}", markup=False, highlight=False, soft_wrap=True)
    CONSOLE.print(f"stopped: {result.reason}", markup=False)
    told = f"spent by this run: {describe_spent(result.spent)}; left: {describe_left(result.left)}"
    CONSOLE.print(told, markup=False, highlight=False, soft_wrap=True)


def _row(workspace: Workspace, record: IterationRecord, trial: TrialRecord) -> tuple[object, ...]:
    candidate = next((c for c in record.candidates if c.candidate_id == trial.candidate_id), None)
    ruling = record.ruling(trial.candidate_id)
    return (
        trial.trial_id,
        percent(trial.dev),
        _with_interval(workspace, trial),
        points(ruling.gain if ruling else None),
        ruling.verdict if ruling else ("failed" if candidate else "incumbent"),
        duration(trial.train_s + trial.eval_s),
    )


def _with_interval(workspace: Workspace, trial: TrialRecord) -> str:
    from tools.comparison import Scores, interval
    from tools.evaluation.scores import read_scores

    if trial.scores_dir is None:
        return "–"
    path = workspace.root / trial.scores_dir / "selection.jsonl"
    if not path.is_file():
        return percent(trial.selection)
    found = interval(Scores.from_rows(read_scores(path)))
    return f"{percent(found.mean)} ({100 * found.low:.0f} to {100 * found.high:.0f})"
