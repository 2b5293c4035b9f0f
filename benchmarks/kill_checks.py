"""What a killed and resumed flywheel must end with, and what `kill_rounds.py` says where it does not."""

from __future__ import annotations

import collections
import hashlib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from agent.budget.account import read_account
from tools.clock import utc_now
from tools.files import read_jsonl
from tools.journal import Journal
from tools.lineage import LineageStore
from tools.workspace import Workspace

BRANCH = "bakehouse/colours"
ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_PATIENCE_S = 45.0


@dataclass(frozen=True)
class Ending:
    """What a flywheel's work came to."""

    trials: tuple[tuple[str, str, float | None], ...]
    """Name, status and selection score of every row of the lineage, in their order."""
    subjects: tuple[str, ...]
    """Subjects of the branch's commits, oldest first."""
    iterations: tuple[str, ...]
    """Iterations that the commits name."""
    files: tuple[str, ...]
    recipe: str
    experiments: tuple[int, ...]
    debited: tuple[str, ...]
    """Trials that the run's budget was charged with."""
    undecided_debits: int
    """Reservations that nobody settled."""


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ("git", *arguments),
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | ENVIRONMENT,
    )
    told = done.stdout.strip()
    return told if done.returncode == 0 else f"git failed: {told} {done.stderr.strip()}"


def read_ending(workspace: Workspace) -> Ending:
    """Read what the branch holds now, from git alone, and the log of experiments."""
    root = workspace.root
    subjects = git(root, "log", "--reverse", "--format=%s", f"main..{BRANCH}").splitlines()
    form = "--format=%(trailers:key=Bakehouse-Iteration,valueonly)"
    names = git(root, "log", "--reverse", form, f"main..{BRANCH}").split()
    files = git(root, "ls-tree", "-r", "--name-only", BRANCH).splitlines()
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "results.tsv"
        table.write_text(git(root, "show", f"{BRANCH}:lineage/results.tsv") + "\n", encoding="utf-8")
        rows = LineageStore(folder, lower_is_better=False).all_trials()
    experiments = read_jsonl(workspace.state_dir / "experiments.jsonl").rows
    account = read_account(Journal(workspace.journal_file, clock=utc_now).events())
    return Ending(
        trials=tuple((row.exp_id, row.status.value, row.core_metric) for row in rows),
        subjects=tuple(subjects),
        iterations=tuple(names),
        # The day of a decision is part of its name, and a night has two.
        files=tuple(sorted(re.sub(r"\d{4}-\d\d-\d\d-", "", name) for name in files)),
        recipe=git(root, "show", f"{BRANCH}:recipe.yaml"),
        experiments=tuple(row["iteration"] for row in experiments),
        debited=tuple(sorted(account.spent.trials)),
        undecided_debits=len(account.open),
    )


def user_state(root: Path) -> tuple[str, ...]:
    """Return what of the user's own must not change."""
    index = hashlib.sha256((root / ".git" / "index").read_bytes()).hexdigest()
    status = git(root, "status", "--porcelain", "--untracked-files=all")
    return (git(root, "rev-parse", "HEAD"), git(root, "symbolic-ref", "HEAD"), index, status)


def compare(expected: Ending, got: Ending) -> list[str]:
    """Return a sentence for everything that was lost, doubled or changed."""
    faults = _compare_names("trial", [t[0] for t in expected.trials], [t[0] for t in got.trials])
    faults += _compare_names("commit of", expected.iterations, got.iterations)
    faults += _compare_names("file", expected.files, got.files)
    faults += _compare_names("experiment", map(str, expected.experiments), map(str, got.experiments))
    faults += _compare_names("debit of", expected.debited, got.debited)
    if got.undecided_debits:
        faults.append(f"{got.undecided_debits} reservation(s) of the budget were never settled")
    results = {name: (status, score) for name, status, score in expected.trials}
    faults += [
        f"trial {name} came out as {(status, score)}, left alone as {results[name]}"
        for name, status, score in got.trials
        if name in results and results[name] != (status, score)
    ]
    if got.subjects != expected.subjects:
        faults.append(f"the commits say {list(got.subjects)}, left alone {list(expected.subjects)}")
    if got.recipe != expected.recipe:
        faults.append("the branch ends with another recipe.yaml")
    return faults


def _compare_names(what: str, expected: Iterable[str], got: Iterable[str]) -> list[str]:
    wanted, found = collections.Counter(expected), collections.Counter(got)
    lost = [f"{what} {name} was lost" for name in wanted if not found[name]]
    doubled = [f"{what} {name} is there {n} times" for name, n in found.items() if n > max(1, wanted[name])]
    strange = [f"{what} {name} is one that nobody asked for" for name in found if name not in wanted]
    return lost + doubled + strange


def check_ground(workspace: Workspace, before: tuple[str, ...]) -> list[str]:
    """Return what is unsound: the repository, the worktree, the user's checkout, processes left over."""
    faults = []
    complaint = git(workspace.root, "fsck", "--strict", "--no-dangling")
    if complaint:
        faults.append(f"git fsck: {complaint}")
    left = git(workspace.worktree_dir, "status", "--porcelain", "--untracked-files=all")
    if left:
        faults.append(f"the worktree is not clean: {left}")
    if user_state(workspace.root) != before:
        faults.append("the user's branch, index or files changed")
    faults += [f"still running: {name}" for name in _wait_for_children(workspace.root)]
    return faults


def _wait_for_children(root: Path) -> list[str]:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        running = []
        for process in psutil.process_iter(["pid", "cmdline"]):
            words = process.info["cmdline"] or []
            if process.pid != os.getpid() and any(f"{root}/" in word for word in words):
                running.append(f"{process.pid} {' '.join(words)[:120]}")
        if not running or time.monotonic() > deadline:
            return running
        time.sleep(0.5)
