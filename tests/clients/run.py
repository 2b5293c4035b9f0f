"""Try the MCP server with clients that others wrote: `make clients`.

    python -P tests/clients/run.py [--resume] [CHECK ...]

Each client gets a workspace of its own and a line with its verdict; what it said is kept in
.cache/clients/logs. What cannot be had here is told as not run, never as passed. The exit code is 0
only where every check that was asked for has passed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.clients.checks import Check, all_checks
from tests.clients.environment import CACHE, NODE_PACKAGES, PYTHON_PACKAGES, ROOT, prepare
from tools.jobs import cancel_job, list_jobs
from tools.workspace import Workspace

PASSED = CACHE / "passed.json"
LOGS = CACHE / "logs"
SOURCES = ("tools", "agent", "mcp_server", "tests/clients", "examples/drone-router")


@dataclass(frozen=True)
class Verdict:
    """How a check went."""

    word: str
    took_s: float
    why: str = ""

    @property
    def is_good(self) -> bool:
        return self.word.startswith("passed")


def main() -> int:
    """Make the environment, run the checks and print a table; 0 where all have passed."""
    checks = all_checks()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("only", nargs="*", metavar="CHECK", help=f"all by default: {', '.join(checks)}")
    parser.add_argument(
        "--resume", action="store_true", help="leave out what has passed already with the same sources"
    )
    options = parser.parse_args()
    unknown = sorted(set(options.only) - set(checks))
    if unknown:
        parser.error(f"there is no check {unknown}; allowed: {', '.join(checks)}")
    missing = prepare(say)
    passed = Passed(digest_of_sources(), keep=options.resume)
    verdicts: dict[str, Verdict] = {}
    LOGS.mkdir(parents=True, exist_ok=True)
    for name in options.only or checks:
        verdicts[name] = passed.verdict(name) or attempt(name, checks[name], missing)
        passed.note(name, verdicts[name])
        say(line(name, verdicts[name]))
    say("\n" + table(verdicts))
    return 0 if all(verdict.is_good for verdict in verdicts.values()) else 1


def attempt(name: str, check: Check, missing: dict[str, str]) -> Verdict:
    """Run a check in a workspace of its own."""
    if check.needs in missing:
        return Verdict("not run", 0.0, missing[check.needs])
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bakehouse-clients-", ignore_cleanup_errors=True) as folder:
        workspace = Path(folder) / "drone-router"
        shutil.copytree(ROOT / "examples" / "drone-router", workspace)
        try:
            check.body(workspace, LOGS / f"{name}.txt")
        except (AssertionError, OSError, ValueError, subprocess.SubprocessError) as err:
            return Verdict("FAILED", time.monotonic() - began, str(err) or type(err).__name__)
        finally:
            end_jobs(Workspace(workspace))
    return Verdict("passed", time.monotonic() - began)


def end_jobs(workspace: Workspace) -> None:
    """End what a check left running: jobs outlive their client, and the workspace goes."""
    for job in list_jobs(workspace.jobs_dir):
        cancel_job(workspace.jobs_dir, job.id, grace_s=5)


class Passed:
    """Remembers what has passed, for as long as no source has changed."""

    def __init__(self, digest: str, *, keep: bool) -> None:
        self._digest = digest
        self._took_s: dict[str, float] = {}
        if keep and PASSED.is_file():
            found = json.loads(PASSED.read_text("utf-8"))
            self._took_s = found["took_s"] if found["digest"] == digest else {}

    def verdict(self, name: str) -> Verdict | None:
        """Return the verdict of an earlier run, or None."""
        return Verdict("passed before", self._took_s[name]) if name in self._took_s else None

    def note(self, name: str, verdict: Verdict) -> None:
        """Keep a verdict that is good."""
        if verdict.is_good:
            self._took_s[name] = verdict.took_s
            PASSED.write_text(json.dumps({"digest": self._digest, "took_s": self._took_s}), encoding="utf-8")


def digest_of_sources() -> str:
    """Return what changes with any file that a check depends on."""
    digest = hashlib.sha256("\n".join((*PYTHON_PACKAGES, *NODE_PACKAGES, sys.version)).encode())
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def line(name: str, verdict: Verdict) -> str:
    """Return a check's verdict, with the reason where it is not good."""
    said = f"{verdict.word:8} {name} ({verdict.took_s:.0f} s)"
    return f"{said}: {verdict.why}" if verdict.why else said


def table(verdicts: dict[str, Verdict]) -> str:
    """Return all verdicts, a line each, and their number."""
    width = max(len(name) for name in verdicts)
    rows = [f"{name:{width}}  {one.word:13}  {one.took_s:5.0f} s" for name, one in verdicts.items()]
    good = sum(verdict.is_good for verdict in verdicts.values())
    return "\n".join([*rows, f"{good} of {len(verdicts)} passed; what they said is in {LOGS}"])


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
