"""The environment that `make` keeps: made once, mended when broken, cut off or moved."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
Install = Callable[[Path, Path], bool]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("environment", ROOT / ".ci" / "environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


environment = load()


def copy_sources(root: Path) -> Path:
    for name in environment.SOURCES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, root / name)
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose environment was made, under a name with a space in it."""
    root = copy_sources(tmp_path_factory.mktemp("a b") / "checkout")
    assert environment.ensure(root, Installs()) == 0
    return root


@pytest.fixture
def checkout(made: Path, tmp_path: Path) -> Path:
    """A copy of it, up to date in its new place."""
    root = tmp_path / "a b" / "checkout"
    shutil.copytree(made, root, symlinks=True)
    assert environment.ensure(root, Installs()) == 0
    return root


class Installs:
    """Stands for pip, which needs an index: counts its calls and leaves a file where packages go."""

    def __init__(self, *, succeeds: bool = True) -> None:
        self.count = 0
        self._succeeds = succeeds

    def __call__(self, root: Path, python: Path) -> bool:
        self.count += 1
        where = "import sysconfig; print(sysconfig.get_path('purelib'))"
        done = subprocess.run([python, "-I", "-c", where], capture_output=True, text=True, check=True)
        site = Path(done.stdout.strip())
        assert site.is_relative_to(root)
        (site / "installed.txt").write_text(f"{self.count}\n", encoding="utf-8")
        return self._succeeds


def test_an_environment_that_is_up_to_date_is_left_alone(checkout: Path) -> None:
    installs = Installs()
    assert environment.ensure(checkout, installs) == 0
    assert installs.count == 0


def test_an_install_that_failed_or_was_killed_is_taken_up_again_in_the_same_environment(
    checkout: Path,
) -> None:
    (checkout / ".venv" / ".installed").unlink()
    assert environment.ensure(checkout, Installs(succeeds=False)) == 1
    kept = checkout / ".venv" / "kept.txt"
    kept.touch()

    def killed(root: Path, python: Path) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        environment.ensure(checkout, killed)
    installs = Installs()
    assert environment.ensure(checkout, installs) == 0
    assert installs.count == 1
    assert kept.exists()


def test_a_changed_pin_and_a_moved_checkout_are_installed_anew(checkout: Path) -> None:
    installs = Installs()
    with (checkout / "constraints.txt").open("a", encoding="utf-8") as file:
        file.write("another==1.0\n")
    environment.ensure(checkout, installs)
    assert installs.count == 1
    moved = checkout.with_name("moved")
    checkout.rename(moved)
    environment.ensure(moved, installs)
    environment.ensure(moved, installs)
    assert installs.count == 2


def gone_interpreter(venv: Path) -> None:
    python = venv / "bin" / "python"
    python.unlink()
    python.symlink_to(venv / "no-such-python")


def lost_pip(venv: Path) -> None:
    (site,) = venv.glob("lib/python3*/site-packages")
    shutil.rmtree(site / "pip")


def file_in_its_place(venv: Path) -> None:
    shutil.rmtree(venv)
    venv.write_text("no folder\n", encoding="utf-8")


def torn_stamp(venv: Path) -> None:
    (venv / ".installed").write_text('{"root": ', encoding="utf-8")


@pytest.mark.parametrize("damage", [gone_interpreter, lost_pip, file_in_its_place, torn_stamp])
def test_a_damaged_environment_is_mended(checkout: Path, damage: Callable[[Path], None]) -> None:
    damage(checkout / ".venv")
    installs = Installs()
    assert environment.ensure(checkout, installs) == 0
    assert installs.count == 1
    assert environment.probe(checkout / ".venv" / "bin" / "python") is not None


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_a_python_without_venv_leaves_nothing_and_names_the_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "The virtual environment was not created successfully because ensurepip is not\\navailable."
    debian = script(tmp_path / "python3", f'mkdir -p "$4/bin"; printf "{said}"; exit 1')
    venv = tmp_path / ".venv"
    assert not environment.make(venv, str(debian))
    assert not venv.exists()
    assert "apt install python3-venv" in capsys.readouterr().err


def test_an_interpreter_that_is_too_old_is_of_no_use(tmp_path: Path) -> None:
    assert environment.probe(script(tmp_path / "old", "echo 3 9 True")) is None
    assert environment.probe(script(tmp_path / "new", "echo 3 13 True")) == "3.13"
    assert environment.probe(script(tmp_path / "mute", "exit 0")) is None


def make(*arguments: str, cwd: Path, path: str) -> subprocess.CompletedProcess[str]:
    # Nothing of a make that runs these tests may reach the one that they start.
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "PYTHON"))
    }
    return subprocess.run(
        ["make", *arguments], cwd=cwd, env=kept | {"PATH": path}, capture_output=True, text=True, check=False
    )


def test_make_says_which_python_it_needs_where_there_is_only_an_old_one(tmp_path: Path) -> None:
    checkout = copy_sources(tmp_path / "checkout")
    shutil.copyfile(ROOT / "Makefile", checkout / "Makefile")
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("make", "sh", "head", "echo"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    old = script(folder / "python3", '[ "$1" = --version ] && echo "Python 3.9.6" && exit 0; exit 1')
    done = make("demo", cwd=checkout, path=str(folder))
    assert done.returncode != 0
    assert "needs Python 3.11 or newer; 'python3' is not one: Python 3.9.6" in done.stderr
    assert "make demo PYTHON=" in done.stderr
    named = make("demo", f"PYTHON={old}", cwd=checkout, path=str(folder))
    assert f"'{old}' is not one: Python 3.9.6" in named.stderr
    assert not (checkout / ".venv").exists()


def test_make_takes_a_newer_python_where_python3_is_old(tmp_path: Path) -> None:
    checkout = copy_sources(tmp_path / "checkout")
    shutil.copyfile(ROOT / "Makefile", checkout / "Makefile")
    folder = tmp_path / "bin"
    folder.mkdir()
    script(folder / "python3", "exit 1")
    (folder / "python3.12").symlink_to(sys.executable)
    done = make("--dry-run", "env", cwd=checkout, path=f"{folder}{os.pathsep}{os.environ['PATH']}")
    assert '"python3.12" -P .ci/environment.py' in done.stdout
