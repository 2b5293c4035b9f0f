"""Commands on what was learned: lineage, decide, refresh."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agent.cli.options import AsJson, Where
from agent.cli.output import CONSOLE, duration, percent, points, print_json, table
from agent.score_sets import newest
from tools.errors import TaskError
from tools.workspace import Workspace


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
    from tools.lineage import LineageStore

    workspace = Workspace.find(where)
    store = LineageStore(newest(workspace).lineage_dir, lower_is_better=False)
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
                t.hypothesis,
            )
            for t in trials
        ]
        CONSOLE.print(table("lineage", ("trial", "status", "selection", "gain", "wall", "hypothesis"), rows))


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
    as_json: AsJson = False,
) -> None:
    """List the corpus by age and say which entries are stale, and why."""
    from agent.corpus import current_environment, entry_dirs
    from tools import freshness

    workspace = _find(where)
    reports = freshness.refresh(
        dirs=entry_dirs(workspace),
        freshness_days=freshness_days,
        environment=current_environment(workspace),
    )
    if as_json:
        print_json(
            [
                {"slug": r.entry.slug, "age_days": r.age_days, "stale": r.stale, "reasons": list(r.reasons)}
                for r in reports
            ]
        )
        return
    rows = [
        (r.entry.slug, r.entry.lifecycle, r.age_days, "stale" if r.stale else "fresh", "; ".join(r.reasons))
        for r in reports
    ]
    CONSOLE.print(table("decisions, oldest first", ("entry", "lifecycle", "days", "state", "why"), rows))


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
