"""What is shipped: versions that agree, pins that hold, and a wheel that works by itself."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
TRAINS = ("torch", "transformers", "peft", "safetensors", "gguf")


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pin_lines() -> list[str]:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if not line.startswith("#")]


def pins() -> dict[str, str]:
    parted = [line.partition("==") for line in pin_lines()]
    return {canonicalize_name(name): version for name, _, version in parted}


def direct_requirements() -> list[Requirement]:
    data = project()
    groups = [data["project"]["dependencies"], *data["project"]["optional-dependencies"].values()]
    texts = [text for group in [*groups, *data["dependency-groups"].values()] for text in group]
    return [found for text in texts if (found := Requirement(text)).name != "bakehouse"]


def needed(name: str, extras: Sequence[str], seen: set[tuple[str, str]]) -> Iterator[str]:
    """Names of all that an installed distribution needs here, itself included."""
    yield name
    for text in importlib.metadata.requires(name) or ():
        found = Requirement(text)
        holds = found.marker is None or any(found.marker.evaluate({"extra": e}) for e in ("", *extras))
        key = (canonicalize_name(found.name), ",".join(sorted(found.extras)))
        if holds and key not in seen:
            seen.add(key)
            yield from needed(key[0], sorted(found.extras), seen)


def test_every_pin_is_one_public_version_in_alphabetical_order() -> None:
    lines = pin_lines()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    names = [canonicalize_name(line.partition("==")[0]) for line in lines]
    assert names == sorted(set(names))


def test_uv_is_told_the_same_pins_as_pip() -> None:
    assert project()["tool"]["uv"]["constraint-dependencies"] == pin_lines()


@pytest.mark.parametrize("requirement", direct_requirements(), ids=str)
def test_what_the_project_asks_for_is_pinned_within_what_it_asks_for(requirement: Requirement) -> None:
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_nothing_that_the_tests_run_on_is_unpinned() -> None:
    groups = [Requirement(text) for text in project()["dependency-groups"]["dev"]]
    found = {
        canonicalize_name(name)
        for requirement in groups
        for name in needed(requirement.name, sorted(requirement.extras), set())
    }
    assert found - {"bakehouse"} <= set(pins())


def test_the_version_is_the_same_wherever_it_stands() -> None:
    version = project()["project"]["version"]
    assert importlib.metadata.version("bakehouse") == version
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version


def test_the_licence_is_there_and_is_the_one_that_is_named() -> None:
    assert project()["project"]["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n                           Version 2.0" in text
    assert project()["project"]["license-files"] == ["LICENSE"]


def test_ci_runs_the_command_of_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").splitlines()[-1] == "exec make test"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, unpacked where nothing of the checkout is near."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-P", "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run_wheel(site: Path, code: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(site), "HOME": str(cwd), "BAKEHOUSE_CACHE": str(cwd / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


COMMAND = "from agent.cli import main; main()"
# Finds everything but what the extra brings, as in an environment without it.
WITHOUT_EXTRA = f"""
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {TRAINS} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
{COMMAND}
"""


def test_the_wheel_holds_every_file_of_the_packages_and_the_decisions(unpacked: Path) -> None:
    for package in ("tools", "agent", "mcp_server"):
        here = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        there = {path.relative_to(unpacked).as_posix() for path in (unpacked / package).rglob("*")}
        assert here <= there
    shipped = {path.name for path in (unpacked / "tools" / "decide-entries").glob("*.yaml")}
    assert shipped == {path.name for path in (ROOT / "decide-entries").glob("*.yaml")}
    assert shipped


def test_the_wheel_finds_its_own_decisions(unpacked: Path, tmp_path: Path) -> None:
    code = "from tools.decisions import SEED_ENTRIES_DIR; print(SEED_ENTRIES_DIR)"
    done = run_wheel(unpacked, code, cwd=tmp_path)
    assert Path(done.stdout.strip()) == unpacked / "tools" / "decide-entries", done.stderr


def test_the_command_works_without_the_extras(unpacked: Path, tmp_path: Path) -> None:
    for arguments in (
        ("--help",),
        ("init", "w"),
        ("decide", "train_backend", "--optimize-for", "wall_clock", "--json"),
        ("status", "--workspace", "w"),
        ("refresh", "--json"),
    ):
        done = run_wheel(unpacked, WITHOUT_EXTRA, *arguments, cwd=tmp_path)
        assert done.returncode == 0, (arguments, done.stderr)
    assert (tmp_path / "w" / "task.yaml").is_file()


@pytest.mark.parametrize("arguments", [("inspect",), ("fetch", "smollm2-135m-instruct-q4_1"), ("eval",)])
def test_a_command_that_lacks_an_extra_says_what_to_install(
    unpacked: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    assert run_wheel(unpacked, COMMAND, "init", "w", cwd=tmp_path).returncode == 0
    model = tmp_path / "w" / "model"
    model.mkdir()
    (model / "config.json").write_text("{}", encoding="utf-8")
    recipe = tmp_path / "w" / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(re.sub(r"base_model: \S+", "base_model: model", text), encoding="utf-8")
    done = run_wheel(unpacked, WITHOUT_EXTRA, *arguments, cwd=tmp_path / "w")
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "Traceback" not in said
    assert "install the extra `train`: pip install 'bakehouse[train]'" in said
