"""The command `watch`: a running flywheel, seen from another terminal."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from agent.budget.limits import describe_left, describe_spent
from agent.cli.options import AsJson, Where
from agent.cli.output import CONSOLE, duration, percent, print_json, table
from tools.commit_message import fold_line
from tools.workspace import Workspace

if TYPE_CHECKING:
    from agent.watching import FlywheelView, TrialView

_STATES = {
    "starting": "starting",
    "running": "running",
    "completed": "ended in order",
    "error": "ended with an error",
    "cut off": "cut off; the same command goes on where it stopped",
    "idle": "nothing has run here yet",
}


def register(app: typer.Typer) -> None:
    """Add the command to app."""
    app.command()(watch)


def watch(
    where: Where = Path("."),
    once: Annotated[bool, typer.Option(help="Print what is now, and end.")] = False,
    every_s: Annotated[float, typer.Option(min=0.2, max=3600, help="Seconds between two looks.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Watch a running flywheel, detached or in another terminal, until it ends."""
    from agent.watching import Watcher

    watcher = Watcher(Workspace.find(where))
    view = watcher.look()
    if as_json:
        print_json(view)
        return
    if once or not CONSOLE.is_terminal or not view.alive:
        CONSOLE.print(render(view))
        return
    with (
        contextlib.suppress(KeyboardInterrupt),
        Live(render(view), console=CONSOLE, auto_refresh=False, transient=False) as live,
    ):
        while view.alive:
            time.sleep(every_s)
            view = watcher.look()
            live.update(render(view), refresh=True)


def render(view: FlywheelView) -> RenderableType:
    """Return a view as what a terminal shows."""
    head = [f"{view.task}: {_STATES[view.state]}", f"incumbent {percent(view.accuracy)} on selection"]
    if view.holder is not None:
        head.append(view.holder)
    if view.job is not None:
        head.append(f"job {view.job}")
    parts: list[RenderableType] = [Text(fold_line(" · ".join(head)), style="bold")]
    if view.iteration is not None:
        parts.append(Text(f"spent: {describe_spent(view.spent)} · left: {describe_left(view.left)}"))
    if view.error is not None:
        parts.append(Text(f"error: {fold_line(view.error)}", style="red"))
    if view.steps:
        rows = [(s.name, s.state, duration(s.wall_s), fold_line(s.error or "")) for s in view.steps]
        parts.append(table(f"{view.iteration}: steps", ("step", "state", "wall", "error"), rows))
    if view.trials:
        columns = ("trial", "state", "step", "loss", "mid", "dev", "selection")
        trials = table(f"{view.iteration}: trials", columns, [_trial_row(t) for t in view.trials])
        # Whatever else a narrow terminal folds, a name stays one that can be copied.
        trials.columns[0].no_wrap = True
        parts.append(trials)
    parts += [Text(f"{found.iteration}: {fold_line(found.decision)}") for found in view.decisions]
    parts += [Text(fold_line(problem), style="yellow") for problem in view.problems]
    return Group(*parts)


def _trial_row(trial: TrialView) -> tuple[object, ...]:
    quiet = "" if trial.quiet_s is None or trial.quiet_s < 60 else f", quiet for {duration(trial.quiet_s)}"
    return (
        trial.trial_id,
        fold_line(f"{trial.state}{quiet}"),
        trial.step,
        None if trial.loss is None else f"{trial.loss:.3f}",
        percent(trial.mid_score),
        percent(trial.dev),
        percent(trial.selection),
    )
