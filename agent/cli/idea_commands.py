"""Commands on ideas: ideate asks for some, queue lists and drops them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.option_groups import TeacherOptions, spread_groups
from agent.cli.options import AsJson, Where
from agent.cli.output import CONSOLE, points, print_json
from tools.commit_message import fold_line
from tools.errors import IdeaError
from tools.workspace import Workspace

if TYPE_CHECKING:
    from agent.ideas.ideator import Ideation
    from agent.ideas.queue import QueueItem

_TEACHER = TeacherOptions(max_calls=8, max_tokens=200_000)
_SHOWN = 500


def register(app: typer.Typer) -> None:
    """Add the commands to app."""
    app.command()(spread_groups(ideate))
    group = typer.Typer(invoke_without_command=True, help="List the ideas that wait, and drop one.")
    group.callback()(queue)
    group.command()(drop)
    app.add_typer(group, name="queue")


def ideate(
    n: Annotated[int, typer.Option(min=1, max=32, help="Proposals to ask for.")] = 5,
    print_brief: Annotated[
        bool, typer.Option("--print-brief", help="Print what a model would be asked, and ask nobody.")
    ] = False,
    source: Annotated[
        str | None, typer.Option("--from", help="Take proposals from a .json or .yaml file, - for stdin.")
    ] = None,
    author: Annotated[str, typer.Option(help="Who wrote that file.")] = "a person",
    teacher: TeacherOptions = _TEACHER,
    where: Where = Path("."),
    as_json: AsJson = False,
) -> None:
    """Ask what to try next, on which grounds; what may be tried joins the queue."""
    from agent.ideas.ideator import open_ideator, read_proposals
    from agent.ideas.queue import open_queue

    workspace = Workspace.find(where)
    if source is not None and not print_brief:
        # Read first: an unreadable file is told before the workspace is gone through.
        proposals = read_proposals(_read(source), name=source)
        found = open_ideator(workspace, open_queue(workspace)).take(proposals, author=author)
    elif print_brief:
        brief = open_ideator(workspace, open_queue(workspace)).brief(n)
        if as_json:
            print_json({"system": brief.head, "question": brief.state})
        else:
            CONSOLE.out(str(brief), highlight=False)
        return
    else:
        asked = teacher.open()
        ideator = open_ideator(workspace, open_queue(workspace))
        with CONSOLE.status(f"asking {asked.name}"):
            found = ideator.ask(asked, n=n, caps=teacher.caps)
    if as_json:
        print_json(found)
    else:
        _print_ideation(found)


def queue(
    context: typer.Context,
    everything: Annotated[
        bool, typer.Option("--all", help="Also what is over, and what was refused.")
    ] = False,
    where: Where = Path("."),
    as_json: AsJson = False,
) -> None:
    """List the ideas that wait or are being tried."""
    from agent.ideas.queue import open_queue

    if context.invoked_subcommand is not None:
        return
    found = open_queue(Workspace.find(where))
    items = [item for item in found.items() if everything or item.state in ("queued", "taken")]
    refused = found.refusals() if everything else ()
    if as_json:
        print_json({"items": items, "refused": refused, "problems": found.problems})
        return
    _print_items(items)
    for one in refused:
        _print_line(f"refused, by {one.author}: {one.reason}")
        _print_line("       ", one.proposal)
    for problem in found.problems:
        CONSOLE.print(problem, markup=False, highlight=False, soft_wrap=True)
    if not items and not everything:
        CONSOLE.print("no idea waits; `bakehouse ideate` asks for some, --all lists those of before")


def drop(
    item: Annotated[str, typer.Argument(help="An idea such as q0003.")],
    reason: Annotated[str, typer.Option(help="Why; it is kept.")],
    where: Where = Path("."),
    as_json: AsJson = False,
) -> None:
    """Take an idea that waits out of the queue."""
    from agent.ideas.queue import open_queue

    dropped = open_queue(Workspace.find(where)).drop(item, reason)
    if as_json:
        print_json(dropped)
    else:
        CONSOLE.print(f"{dropped.id} is dropped: {fold_line(dropped.reason)}", markup=False, highlight=False)


def _read(source: str) -> str:
    try:
        return sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise IdeaError(f"{source} cannot be read: {err}") from err


def _print_ideation(found: Ideation) -> None:
    _print_items(found.queued)
    for one in found.refused:
        _print_line(f"refused: {one.reason}")
    lines = [f"{len(found.queued)} idea(s) queued, {len(found.refused)} refused"]
    if found.calls:
        lines.append(f"{found.calls} calls, {found.tokens} tokens")
    if found.note:
        lines.append(found.note)
    for line in lines:
        CONSOLE.print(line, markup=False, highlight=False)


def _print_items(items: Sequence[QueueItem]) -> None:
    for item in items:
        gain = f", expected {points(item.idea.expected_gain)} points" if item.idea.expected_gain else ""
        CONSOLE.print(f"{item.id}  {item.state}{gain}  ", style="bold", end="", highlight=False)
        _print_line(str(item.idea))
        for name, text in (("why", item.idea.hypothesis), ("on", _grounds(item)), ("now", _outcome(item))):
            if text:
                _print_line(f"       {name}: ", text)


def _grounds(item: QueueItem) -> str:
    return "; ".join(str(reference) for reference in item.idea.references) or f"asked by {item.author}"


def _print_line(*parts: str) -> None:
    # What a model wrote must not steer the terminal, nor begin a line of its own.
    text = "".join(part if part.isspace() or part.startswith("  ") else fold_line(part) for part in parts)
    CONSOLE.print(text[:_SHOWN], markup=False, highlight=False, soft_wrap=True)


def _outcome(item: QueueItem) -> str:
    told = [f"{item.iteration}-{item.candidate}" if item.candidate else item.iteration or ""]
    told += [item.verdict or "", points(item.gain) if item.gain is not None else "", item.reason]
    return " ".join(part for part in told if part)
