"""Make or mend `.venv`, the checkout's environment: plain venv and pip, nothing else.

Run by the Makefile with any Python 3.11 or newer. What was installed is noted in a stamp, written
last, so that a run that was cut off is taken up again and a finished one costs nothing and needs
no network.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

OLDEST = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "constraints.txt", ".ci/environment.py")
# An interpreter without pip cannot be installed into.
PROBE = "import sys, importlib.util as u; print(*sys.version_info[:2], u.find_spec('pip') is not None)"


def main() -> int:
    """Bring `.venv` up to date; return an exit code."""
    with Path(__file__).open() as lock:
        # Two commands started at once install one after the other.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return ensure(ROOT, install)


def ensure(root: Path, install: Callable[[Path, Path], bool]) -> int:
    """Make the environment of a checkout unless its stamp says that it is up to date.

    Args:
        install: Fills the environment of root by its interpreter; False where that failed.
    """
    venv = root / ".venv"
    python, stamp = venv / "bin" / "python", venv / ".installed"
    found = probe(python)
    if found is not None and read(stamp) == state(root, found):
        return 0
    if found is None:
        if os.path.lexists(venv):
            say("the .venv that is here does not work (broken, too old or cut off); making it anew")
        # The Python that runs this may be .venv's own: a person who activated it runs make too.
        if not make(venv, getattr(sys, "_base_executable", None) or sys.executable):
            return 1
        found = probe(python)
        if found is None:
            say(f"{python} does not run after it was made; remove .venv and name another PYTHON")
            return 1
    stamp.unlink(missing_ok=True)
    if not install(root, python):
        return 1
    # pip may have been replaced on the way; the stamp is about the environment as it is now.
    write(stamp, state(root, found))
    return 0


def probe(python: Path) -> str | None:
    """Return the version of an environment's interpreter, None where it is of no use."""
    try:
        done = subprocess.run([python, "-I", "-c", PROBE], capture_output=True, text=True, check=True)
        major, minor, has_pip = done.stdout.split()
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None
    usable = (int(major), int(minor)) >= OLDEST and has_pip == "True"
    return f"{major}.{minor}" if usable else None


def state(root: Path, version: str) -> dict[str, str]:
    """Return what the environment is made from. It holds the checkout's place, so a moved one differs."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((root / name).read_bytes())
    return {"root": str(root), "python": version, "sources": digest.hexdigest()}


def make(venv: Path, base: str) -> bool:
    """Make an empty environment with the interpreter base; leave nothing behind where that fails."""
    say(f"making .venv with {base}")
    remove(venv)
    done = subprocess.run([base, "-I", "-m", "venv", str(venv)], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return True
    remove(venv)
    say(f"{base} -m venv failed:\n{(done.stdout + done.stderr).strip()}")
    if "ensurepip" in done.stdout + done.stderr:
        say("on Debian and Ubuntu: apt install python3-venv, then run the same command again")
    return False


def install(root: Path, python: Path) -> bool:
    """Install the pinned pip, then the project with all that its tests and its demo need."""
    say("installing the pinned packages (minutes the first time: torch is large)")
    pip = [str(python), "-I", "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    pinned = ["--constraint", "constraints.txt"]
    steps = (
        [*pip, "--quiet", *pinned, "pip"],
        [*pip, *pinned, "--editable", ".", "--group", "dev"],
    )
    for command in steps:
        # An option that a person has set for other projects would install elsewhere.
        environment = {**os.environ, "PIP_USER": "0"}
        for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_DRY_RUN"):
            environment.pop(name, None)
        if subprocess.run(command, cwd=root, env=environment, check=False).returncode:
            say(
                "pip did not finish; its reason is above. It needs the package index (pip's own settings name"
            )
            say("a mirror or a proxy). Then run the same command again: it goes on from there")
            return False
    return True


def remove(venv: Path) -> None:
    """Remove an environment, or the link or file that stands in its place."""
    if venv.is_dir() and not venv.is_symlink():
        shutil.rmtree(venv)
    else:
        venv.unlink(missing_ok=True)


def read(stamp: Path) -> object:
    """Return the stamp's content, None where there is none that can be read."""
    try:
        return json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write(stamp: Path, content: dict[str, str]) -> None:
    """Write the stamp, whole or not at all."""
    partial = stamp.with_suffix(".partial")
    partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
    os.replace(partial, stamp)


def say(text: str) -> None:
    """Tell the person who runs make."""
    sys.stderr.write(f"== {text}\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from there")
        sys.exit(130)
