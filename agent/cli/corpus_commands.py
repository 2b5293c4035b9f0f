"""Commands on what was learned: lineage, decide, refresh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.options import AsJson, Where
from agent.cli.output import CONSOLE, ERROR_CONSOLE, duration, percent, points, print_json, table
from agent.cli.run_commands import report_job
from agent.launch import save_result, start_rerun
from agent.score_sets import newest
from tools.commit_message import fold_line
from tools.errors import TaskError
from tools.workspace import Workspace

if TYPE_CHECKING:
    from tools.freshness import StalenessReport
    from tools.task import BudgetCaps


# What the other columns of the table take where gains and times are large.
_LINEAGE_WIDTH = 70


def register(app: typer.Typer) -> None:
    """Add the commands to app."""
    for command in (lineage, decide, refresh):
        app.command()(command)


def lineage(
    where: Where = Path("."),
    last: Annotated[int, typer.Option(min=0, help="Rows to show; 0 shows all.")] = 30,
    markdown: Annotated[bool, typer.Option(help="Print what a planner is shown.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show every trial so far, those of unmerged bakeoffs included."""
    from agent.lineage_view import open_lineage

    workspace = Workspace.find(where)
    store = open_lineage(newest(workspace).lineage_dir)
    trials = store.all_trials()[-last:] if last else store.all_trials()
    if markdown:
        snapshot = store.render_prompt(for_specialist="reader", recent_n=last)
        CONSOLE.out(snapshot.rendered_prompt, highlight=False)
    elif as_json:
        print_json([dict(zip(type(trial).header(), trial.to_row(), strict=True)) for trial in trials])
    else:
        rows = [
            (
                t.exp_id,
                t.status.value,
                percent(t.core_metric),
                points(t.delta_vs_best),
                duration(t.total_s),
                _cut(t.hypothesis),
            )
            for t in trials
        ]
        shown = table("lineage", ("trial", "status", "selection", "gain", "wall", "hypothesis"), rows)
        # Whatever else a narrow terminal folds, a name stays one that can be copied.
        shown.columns[0].no_wrap = True
        CONSOLE.print(shown)


def _cut(text: str) -> str:
    """Return a hypothesis in what a row has left for it; --json and --markdown have the whole."""
    room = max(10, CONSOLE.width - _LINEAGE_WIDTH)
    line = fold_line(text)
    return line if len(line) <= room else f"{line[: room - 1]}…"


def decide(
    question: Annotated[str, typer.Argument(help="What is asked, such as `recipe` or `train_backend`.")],
    optimize_for: Annotated[str, typer.Option(help="What the answer should be best at.")],
    context: Annotated[list[str] | None, typer.Option(help="key=value that the entry must match.")] = None,
    where: Where = Path("."),
    as_json: AsJson = False,
) -> None:
    """Ask the decision corpus: approved entries of this workspace, then yours, then the shipped ones."""
    from agent.corpus import entry_dirs
    from tools import decisions

    asked = dict(_pair(text) for text in context or ())
    pick = decisions.decide(question, context=asked, optimize_for=optimize_for, dirs=entry_dirs(_find(where)))
    if as_json:
        print_json(
            {
                "pick": pick.pick,
                "evidence": pick.evidence,
                "entry": pick.entry.slug,
                "created": pick.entry.created,
                "context": dict(pick.context),
                "path": pick.entry_path,
            }
        )
        return
    CONSOLE.print(f"{pick.pick}: {pick.evidence}", markup=False)
    CONSOLE.print(
        f"from {pick.entry.slug}, {pick.entry.created}, {pick.entry_path}", markup=False, soft_wrap=True
    )


def refresh(
    where: Where = Path("."),
    freshness_days: Annotated[int, typer.Option(min=0, help="Entries older than this are stale.")] = 180,
    rerun: Annotated[bool, typer.Option("--rerun", help="Measure the stale ones again.")] = False,
    entry: Annotated[
        list[str] | None, typer.Option(help="With --rerun: this entry alone, fresh or stale; repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --rerun: say what would run.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="With --rerun: return a job id.")] = False,
    budget_hours: Annotated[float | None, typer.Option(min=0.001, help="With --rerun: wall clock.")] = None,
    budget_gpu_hours: Annotated[float | None, typer.Option(min=0.001, help="With --rerun: GPU time.")] = None,
    budget_trials: Annotated[int | None, typer.Option(min=1, help="With --rerun: trainings.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the corpus by age and say which entries are stale, and why; with --rerun measure them again."""
    from agent.corpus import corpus_reports

    workspace = Workspace.find(where) if rerun else _find(where)
    caps = {"hours": budget_hours, "gpu-hours": budget_gpu_hours, "trials": budget_trials}
    if not rerun and (entry or dry_run or detach or any(caps.values())):
        raise typer.BadParameter("--entry, --dry-run, --detach and --budget-* go with --rerun")
    if detach and workspace is not None and not dry_run:
        report_job(
            start_rerun(workspace, entries=entry or (), freshness_days=freshness_days, caps=caps), as_json
        )
        return
    reports = corpus_reports(workspace, freshness_days)
    if rerun and workspace is not None:
        _rerun(workspace, reports, entry or [], caps, freshness_days, dry_run=dry_run, as_json=as_json)
        return
    if as_json:
        print_json(
            [
                {"slug": r.entry.slug, "age_days": r.age_days, "stale": r.stale, "reasons": list(r.reasons)}
                for r in reports
            ]
        )
        return
    shown = table(
        "decisions, oldest first",
        ("entry", "state", "why"),
        [(r.entry.slug, _state(r), "; ".join(r.reasons)) for r in reports],
    )
    # Whatever else a narrow terminal folds, a name stays one that can be copied.
    shown.columns[0].no_wrap = True
    CONSOLE.print(shown)


def _state(report: StalenessReport) -> str:
    lifecycle = "" if report.entry.lifecycle == "active" else f"{report.entry.lifecycle}, "
    return f"{lifecycle}{'stale' if report.stale else 'fresh'}, {report.age_days} d"


def _rerun(
    workspace: Workspace,
    reports: Sequence[StalenessReport],
    named: Sequence[str],
    caps: Mapping[str, float | None],
    freshness_days: int,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    from agent.cli.live import LiveView
    from agent.cli.rerun_view import describe_prospect, show_measured, show_prospects
    from agent.corpus import entry_is_stale
    from agent.flywheel import branch_name
    from agent.rerun.listing import list_prospects
    from agent.rerun.session import measure_again

    prospects = list_prospects(
        workspace, reports, named=named, is_stale=entry_is_stale(workspace, freshness_days)
    )
    if dry_run:
        if as_json:
            print_json([describe_prospect(prospect) for prospect in prospects])
        else:
            show_prospects(prospects)
        return
    view = LiveView(ERROR_CONSOLE if as_json else CONSOLE)
    try:
        measured = measure_again(
            workspace, prospects, caps=_as_caps(caps), run_worker=view, notify=view.notify
        )
    finally:
        view.close()
    save_result({"measured": [{"slug": one.slug, "state": one.state, "why": one.why} for one in measured]})
    if as_json:
        print_json(list(measured))
    else:
        show_measured(measured, branch_name(workspace.load_task()))


def _find(where: Path) -> Workspace | None:
    try:
        return Workspace.find(where)
    except TaskError:
        # Outside a workspace the corpus still answers.
        return None


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise typer.BadParameter(f"came {text!r}; allowed: key=value")
    return key, value


def _as_caps(caps: Mapping[str, float | None]) -> BudgetCaps:
    from tools.task import BudgetCaps

    hours = caps["hours"]
    return BudgetCaps.model_validate(
        {
            "wall_s": None if hours is None else 3600 * hours,
            "gpu_hours": caps["gpu-hours"],
            "trials": caps["trials"],
        }
    )
