"""Groups of options: spread over a command's own, with the defaults that the command gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from agent.cli.option_groups import TeacherOptions, spread_groups


@dataclass(frozen=True)
class Oven:
    oven: Annotated[str, typer.Option(help="Which one.")] = "left"
    heat_c: Annotated[int, typer.Option("--heat", min=50, help="How hot.")] = 180


def bake(loaf: Annotated[str, typer.Argument()], oven: Oven = Oven(heat_c=220), salt: bool = False) -> None:
    """Bake one loaf."""
    typer.echo(f"{loaf} {oven} {salt}")


def run(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(spread_groups(bake))
    done = CliRunner().invoke(app, list(arguments))
    return " ".join(done.output.split())


def test_options_of_a_group_stand_beside_the_commands_own_with_its_defaults() -> None:
    assert run("rye") == "rye Oven(oven='left', heat_c=220) False"
    assert run("rye", "--oven", "right", "--heat", "90", "--salt") == "rye Oven(oven='right', heat_c=90) True"


def test_rules_and_help_of_a_groups_options_hold() -> None:
    assert "to 50" in run("rye", "--heat", "40")
    shown = run("--help")
    for words in ("Bake one loaf.", "Which one.", "How hot.", "--heat", "--salt"):
        assert words in shown


def test_a_teachers_options_become_its_choice_and_caps() -> None:
    options = TeacherOptions(max_calls=3, max_tokens=50)
    assert (options.caps.calls, options.caps.tokens) == (3, 50)
