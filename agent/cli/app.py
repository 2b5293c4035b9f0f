"""The command `bakehouse` and its boundary: errors become one readable line and an exit code."""

from __future__ import annotations

import logging
import sys
from importlib.metadata import entry_points

import typer

from agent.cli import (
    corpus_commands,
    data_commands,
    export_commands,
    flywheel_commands,
    hardware_commands,
    idea_commands,
    pretrain_commands,
    review_commands,
    run_commands,
    watch_commands,
    workspace_commands,
)
from agent.cli.entry import COMMAND_GROUP
from agent.cli.output import ERROR_CONSOLE
from tools.errors import BakehouseError

app = typer.Typer(
    name="bakehouse",
    help="A flywheel for fine-tuning: candidates train together, evidence decides, git remembers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)
for module in (
    workspace_commands,
    data_commands,
    idea_commands,
    pretrain_commands,
    run_commands,
    export_commands,
    flywheel_commands,
    watch_commands,
    review_commands,
    corpus_commands,
    hardware_commands,
):
    module.register(app)
for plug in entry_points(group=COMMAND_GROUP):
    plug.load()(app)


def main() -> None:
    """Run the command line; exit 1 on an error that the project raises on purpose."""
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    try:
        app()
    except BakehouseError as err:
        ERROR_CONSOLE.print(f"[bold red]error[/] ({type(err).__name__}): ", end="")
        ERROR_CONSOLE.print(str(err), markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        ERROR_CONSOLE.print("interrupted; what was finished is kept, and the same command goes on from there")
        sys.exit(130)
