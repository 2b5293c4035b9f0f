"""The house: imports point one way, and importing the core costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ARROW = {"tools": set(), "agent": {"tools"}, "mcp_server": {"agent", "tools"}}
HEAVY = {"torch", "transformers", "peft", "optuna", "git", "pydantic", "yaml", "numpy", "matplotlib", "mcp"}
ENGINE_MAY_IMPORT = {"torch", "transformers", "peft", "safetensors", "tools"}


def modules_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports anywhere, inside functions and type checks included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            found.add(str(node.module).split(".")[0])
    return found


@pytest.mark.parametrize("package", ARROW)
def test_imports_point_one_way(package: str) -> None:
    forbidden = set(ARROW) - {package} - ARROW[package]
    for path in modules_of(package):
        assert not imported(path) & forbidden, f"{path} imports {imported(path) & forbidden}"


def test_the_engine_imports_only_what_a_training_container_has() -> None:
    for path in modules_of("tools/engine"):
        foreign = imported(path) - ENGINE_MAY_IMPORT - sys.stdlib_module_names
        assert not foreign, f"{path} imports {foreign}"


def test_no_module_takes_the_name_of_a_public_function() -> None:
    import tools

    stems = {path.stem for path in (ROOT / "tools").iterdir() if path.suffix == ".py" or path.is_dir()}
    functions = {name for name in tools.__all__ if callable(getattr(tools, name)) and name.islower()}
    assert not stems & functions


def test_importing_the_core_loads_nothing_heavy() -> None:
    code = "import sys, tools; print(sorted(set(sys.argv[1].split(',')) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, ",".join(sorted(HEAVY))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_children_import_our_packages_and_not_the_working_folders(tmp_path: Path) -> None:
    for package in ARROW:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    code = "import tools, agent, mcp_server; print(tools.__file__)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert Path(done.stdout.strip()).parent.parent == ROOT


@pytest.mark.parametrize("package", ARROW)
def test_every_started_interpreter_is_told_to_ignore_the_working_folder(package: str) -> None:
    for path in modules_of(package):
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            if "sys.executable," in line and "pip" not in line:
                assert '"-P"' in line, f"{path}:{number} starts Python without -P"
