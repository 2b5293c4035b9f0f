"""The documents: their links lead somewhere, their commands exist, their tables are the code's."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner

from agent.cli.app import app
from tools.patch_space import DEFAULT_SPACE
from tools.recipe import TrainRecipe
from tools.task import Task
from tools.yaml_text import parse_yaml

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
COMMANDS: dict[str, click.Command] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
# Put together from parts, so that this file does not hold what it looks for.
FORBIDDEN = [
    "/" + r"root\b",
    "/" + "work/(main|shared)",
    "/" + "tmp/(w|plan)/",
    "/" + "opt/(pypi|wheels)",
    "pypi" + r"\.org",
    "python" + r"hosted\.org",
    r"download\." + r"pytorch\.org",
    r"-----BEGIN [A-Z ]*PRIVATE " + "KEY",
]


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def shell_lines(path: Path) -> Iterator[str]:
    for block in re.findall(r"^```sh\n(.*?)^```$", text_of(path), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield from (part.strip() for part in line.partition("#")[0].split("&&"))


def table_rows(path: Path) -> dict[str, list[str]]:
    """The rows of a document's tables by the name in their first cell; a name comes once."""
    rows: dict[str, list[str]] = {}
    for line in text_of(path).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        found = re.fullmatch(r"`([a-z_.]+)`", cells[0])
        if line.startswith("|") and found:
            assert found[1] not in rows
            rows[found[1]] = cells[1:]
    return rows


def written(cell: str) -> Any:
    """The value that a table gives as a default, which is written as in YAML."""
    return parse_yaml(cell.strip("`"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_link_inside_the_repository_leads_to_a_file(path: Path) -> None:
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text_of(path)):
        if not target.startswith(("https://", "#")):
            assert (path.parent / target.partition("#")[0]).exists(), target


def test_every_page_is_reached_from_the_index() -> None:
    index = text_of(ROOT / "docs" / "index.md")
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages - {"index.md"} if f"({page})" not in index} == set()


def test_a_kept_output_of_the_demo_is_shown_in_the_readme() -> None:
    assert (ROOT / "docs" / "demo-output.txt").exists() == (
        "(docs/demo-output.txt)" in text_of(ROOT / "README.md")
    )


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_make_target_that_a_document_names_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    named = {word for line in shell_lines(path) for word in re.findall(r"^make (\S+)", line)}
    assert named | set(re.findall(r"`make ([a-z]+)", text_of(path))) <= targets


def test_the_readme_lists_every_command_and_no_other() -> None:
    listed = re.findall(r"^\| `bakehouse (\S+)`", text_of(ROOT / "README.md"), re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert "usage" in shown.output.lower()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_command_line_in_a_document_would_be_accepted(path: Path) -> None:
    spans = re.findall(r"`(bakehouse [^`]+)`", text_of(path))
    for line in [*shell_lines(path), *spans]:
        words = shlex.split(line)
        if words and words[0].endswith("bakehouse"):
            assert words[1] in COMMANDS or words[1] == "--help", line
        # A command named in a sentence may leave out its arguments.
        if line not in spans and len(words) > 1 and words[1] in COMMANDS:
            COMMANDS[words[1]].make_context(words[1], words[2:])


def members(command: click.Command) -> list[click.Command]:
    """The commands of a group; a command alone is its own."""
    return list(getattr(command, "commands", {"": command}).values())


def offers_json(command: click.Command) -> bool:
    return any("--json" in parameter.opts for parameter in command.params)


def test_json_is_offered_by_the_commands_that_the_readme_says() -> None:
    without = {n for n, c in COMMANDS.items() if not all(map(offers_json, members(c)))}
    said = re.search(r"All but (.*?) take `--json`", text_of(ROOT / "README.md"))
    assert said is not None
    assert set(re.findall(r"`(\w+)`", said[1])) == without


def test_the_recipe_page_has_every_field_with_its_default() -> None:
    rows = table_rows(ROOT / "docs" / "recipe.md")
    fields = {field.name: field for field in dataclasses.fields(TrainRecipe)}
    assert rows.keys() == fields.keys()
    needed: dict[str, Any] = {"base_model": "b", "dataset_jsonl": "d", "output_dir": "o"}
    defaults = TrainRecipe(**needed).to_dict()
    for field, (default, *_) in rows.items():
        if field in needed:
            assert default == "required"
        else:
            assert written(default) == defaults[field], field


def test_the_recipe_page_marks_the_fields_that_a_patch_may_set() -> None:
    rows = table_rows(ROOT / "docs" / "recipe.md")
    assert {field for field, cells in rows.items() if cells[-1]} == set(DEFAULT_SPACE.ranges)
    for field, rule in DEFAULT_SPACE.ranges.items():
        words = rows[field][-1].replace(",", "")
        if rule.kind in ("number", "whole"):
            low, high = re.findall(r"[0-9.]+", words)[:2]
            assert (float(low), float(high)) == (rule.low, rule.high), field
            assert ("null" in words) == rule.nullable, field


def flattened(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from flattened(field.annotation, f"{prefix}{key}.")
        else:
            yield prefix + key, field


def test_the_task_page_has_every_key_with_its_default() -> None:
    rows = table_rows(ROOT / "docs" / "task.md")
    keys = dict(flattened(Task))
    assert rows.keys() == keys.keys()
    for key, field in keys.items():
        if field.is_required():
            assert rows[key][0] == "required"
        else:
            default = field.get_default(call_default_factory=True)
            assert written(rows[key][0]) == json.loads(json.dumps(default)), key


def test_the_functions_that_the_decision_page_names_exist() -> None:
    page = text_of(ROOT / "docs" / "how-a-decision-is-made.md")
    loop = ast.parse(text_of(ROOT / "agent" / "iteration.py"))
    functions = {node.name for node in loop.body if isinstance(node, ast.FunctionDef)}
    assert set(re.findall(r"^\*\*\w+\*\* \(`(\w+)`", page, re.MULTILINE)) <= functions
    for dotted in re.findall(r"`((?:agent|tools)\.[\w.]+)`", page):
        assert names_something(dotted), dotted


def names_something(dotted: str) -> bool:
    """Whether a dotted name is a module of this tree or something that is defined in one."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:cut])
        source = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
        if source.is_file():
            rest = parts[cut:]
            return all(re.search(rf"\b(?:def|class) {part}\b", text_of(source)) for part in rest)
    return False


def tracked() -> list[Path]:
    """Files of the tree: those that git tracks, in an unpacked archive all of them."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    listed = [ROOT / path for path in done.stdout.split("\0") if path] or ROOT.rglob("*")
    kept = (p for p in listed if not {".venv", ".demo", "__pycache__"} & set(p.relative_to(ROOT).parts))
    return [path for path in kept if path.is_file()]


def test_no_file_names_a_machine_path_or_the_host_of_a_registry() -> None:
    pattern = re.compile("|".join(FORBIDDEN))
    found = []
    for path in tracked():
        try:
            lines = text_of(path).splitlines()
        except UnicodeDecodeError:
            continue
        found += [f"{name(path)}:{n}: {line}" for n, line in enumerate(lines, 1) if pattern.search(line)]
    assert found == []
