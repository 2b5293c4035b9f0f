"""Commands of the person who reads the decisions next morning: review list, show, approve, reject."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.options import AsJson, Where
from agent.cli.output import CONSOLE, points, print_json, table
from tools.commit_message import fold_line
from tools.errors import RepoError
from tools.workspace import Workspace

if TYPE_CHECKING:
    from agent.review.commits import BakeCommit, Branch

Iteration = Annotated[str, typer.Argument(help="An iteration such as i0001.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask; for a person without a terminal.")]


def register(app: typer.Typer) -> None:
    """Add the commands to app."""
    group = typer.Typer(no_args_is_help=True)
    group.command(name="list")(list_pending)
    for command in (show, approve, reject):
        group.command()(command)
    app.add_typer(group, name="review", help="List, show, approve and reject what the flywheel committed.")


def list_pending(where: Where = Path("."), as_json: AsJson = False) -> None:
    """List the commits of the bakeoff branch that your branch does not have yet."""
    from agent.review.commits import pending_commits

    branch = _branch(Workspace.find(where))
    commits = pending_commits(branch)
    if as_json:
        print_json({"branch": branch.name, "into": branch.repo.branch, "commits": list(commits)})
        return
    if not commits:
        CONSOLE.print(f"nothing to review: {branch.name} is merged", markup=False)
        return
    rows = [(c.name, c.at[:16], c.planner, gain_text(c), _decision(c)) for c in commits]
    columns = ("commit", "at", "planner", "gain in points", "decision")
    CONSOLE.print(table(f"{branch.name}: not merged yet", columns, rows))
    names = [c.name for c in commits if c.kind == "iteration"] or ["i0001"]
    CONSOLE.print(f"`bakehouse review show {names[-1]}` has the evidence", markup=False)


def show(iteration: Iteration, where: Where = Path("."), as_json: AsJson = False) -> None:
    """Show what an iteration changed, on what evidence, and where its report and plots lie."""
    from agent.review.commits import find_iteration
    from agent.review.details import read_details

    workspace = Workspace.find(where)
    branch = _branch(workspace)
    found = read_details(workspace, branch, find_iteration(branch, iteration))
    if as_json:
        print_json(found)
        return
    commit = found.commit
    lines = [
        f"{commit.name}  {commit.sha[:12]}  {commit.at}  planner {commit.planner or 'unknown'}",
        _decision(commit),
        f"gain in points: {gain_text(commit)}",
        f"recipe: {', '.join(found.recipe_changes) or 'unchanged'}",
    ]
    CONSOLE.print("\n".join(lines), markup=False, highlight=False)
    rows = [(f.candidate, f.verdict, ", ".join(f.changes), fold_line(f.evidence)) for f in found.findings]
    CONSOLE.print(table("evidence", ("candidate", "verdict", "change", "why"), rows))
    costs = [(f.candidate, fold_line(text)) for f in found.findings for text in f.secondary]
    if costs:
        CONSOLE.print(table("beside the score, deciding nothing", ("candidate", "cost"), costs))
    measured = [
        (name, fold_line(str(value))) for name, value in (found.provenance or {}).items() if value is not None
    ]
    CONSOLE.print(table("measured on", ("what", "value"), measured))
    if found.background_additions:
        CONSOLE.print("\nits planner would add to BACKGROUND.md, and nobody has checked it:", markup=False)
        for line in found.background_additions.splitlines():
            # A planner's words must not steer the terminal.
            CONSOLE.print(f"  > {fold_line(line)}", markup=False, highlight=False, soft_wrap=True)
        CONSOLE.print()
    for line in (*found.files, f"report: {found.report}", f"plots:  {found.plots}"):
        CONSOLE.print(line, markup=False, highlight=False, soft_wrap=True)


def approve(
    iteration: Annotated[str, typer.Argument(help="Merge up to this iteration.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Merge the whole branch.")] = False,
    yes: Yes = False,
    where: Where = Path("."),
    as_json: AsJson = False,
) -> None:
    """Merge the bakeoff branch into the branch that you are on, with your name as reviewer."""
    from agent.review import approval

    if everything == bool(iteration):
        raise typer.BadParameter("name an iteration, or --all for the whole branch")
    branch = _branch(Workspace.find(where))
    plan = approval.plan_approval(branch, iteration or None)
    if plan.commits:
        what = ", ".join(c.name for c in plan.commits)
        _ask_person(f"Merge {what} of {branch.name} into {plan.into}?", yes)
    done = approval.approve(branch.repo, plan)
    if as_json:
        print_json(done)
    elif done.commit is None:
        CONSOLE.print(f"already merged into {done.into}", markup=False)
    else:
        told = f"{', '.join(done.merged)} merged into {done.into} as {done.commit[:12]}"
        CONSOLE.print(f"{told}, reviewed by {done.reviewer}", markup=False, highlight=False)


def reject(
    iteration: Iteration,
    reason: Annotated[str, typer.Option(help="Why; it is kept beside the lineage.")],
    yes: Yes = False,
    abandon: Annotated[bool, typer.Option(help="Close an iteration that was cut off on top of it.")] = False,
    where: Where = Path("."),
    as_json: AsJson = False,
) -> None:
    """Take a decision back on the bakeoff branch; its trials stay in the lineage."""
    from agent.review import rejection

    workspace = Workspace.find(where)
    _ask_person(f"Reject {iteration}?", yes)
    done = rejection.reject(workspace, iteration, reason, abandon=abandon)
    if as_json:
        print_json(done)
        return
    state = "was already rejected" if done.already else "rejected"
    back = "" if done.restored is None else f"; recipe.yaml changes back: {done.restored}"
    CONSOLE.print(f"{done.iteration} {state} by {done.commit[:12]}: {done.reason}{back}", markup=False)


def gain_text(commit: BakeCommit) -> str:
    """Return the deciding gain with its interval, in points."""
    if commit.gain is None:
        return "–"
    if commit.low is None or commit.high is None:
        return points(commit.gain)
    return f"{points(commit.gain)} ({points(commit.low)} to {points(commit.high)})"


def _decision(commit: BakeCommit) -> str:
    told = commit.decision or commit.problem or commit.subject
    # A decision may quote a planner, whose words must not steer the terminal.
    return fold_line(told if commit.rejected is None else f"REJECTED ({commit.rejected}). {told}")


def _branch(workspace: Workspace) -> Branch:
    from agent.review.commits import open_branch
    from tools.repo import find_repo

    return open_branch(find_repo(workspace.root), workspace.load_task())


def _ask_person(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise RepoError("a review is a person's: run it on a terminal, or say --yes")
    typer.confirm(question, abort=True, err=True)
