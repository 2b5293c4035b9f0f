"""SIGKILL at random moments: no commit is lost, doubled or halved, and git stays clean."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.git_project import Project, git, isolate_git, make_project
from tools.repo import ITERATION_TRAILER, ensure_worktree

BRANCH = "bakeoff/router"
ITERATIONS = 24
ROUNDS = 10
LOOP = f"""
import shutil, sys
from pathlib import Path
from tools.repo import ITERATION_TRAILER, ensure_worktree
workspace, worktree_dir = Path(sys.argv[1]), Path(sys.argv[2])
for number in range(int(sys.argv[3]), {ITERATIONS}):
    if number % 4 == 3:
        shutil.rmtree(worktree_dir, ignore_errors=True)
    print(number, flush=True)
    worktree = ensure_worktree(workspace, worktree_dir, "{BRANCH}")
    (worktree.root / "lineage").mkdir(exist_ok=True)
    for name in ("recipe.yaml", f"lineage/{{number}}.txt"):
        (worktree.root / name).write_text(f"{{number}}\\n")
    trailers = {{ITERATION_TRAILER: f"i{{number:04}}"}}
    worktree.commit(["recipe.yaml", f"lineage/{{number}}.txt"], subject=f"Bake {{number}}", trailers=trailers)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    isolate_git(monkeypatch)
    return make_project(tmp_path / "project")


def start(project: Project, code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, str(project.workspace), str(project.worktree_dir), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def subjects(project: Project) -> list[str]:
    if BRANCH not in project.git("branch", "--format=%(refname:lstrip=2)").split():
        return []
    return project.git("log", "--reverse", "--format=%s", f"main..{BRANCH}").splitlines()


def kills(project: Project, *, group: bool, source: random.Random) -> Iterator[int]:
    """Start the loop again and again where it stopped, and kill it at a random moment."""
    for _ in range(ROUNDS):
        child = start(project, LOOP, str(max(0, len(subjects(project)) - 1)))
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(source.uniform(0, 0.4))
        if group:
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
        # Not communicate(): an orphaned git may keep the pipes open, and must not be waited for.
        child.wait()
        child.stdout.close()
        assert child.stderr is not None
        child.stderr.close()
        yield child.returncode


@pytest.mark.parametrize("group", [False, True], ids=["git outlives the loop", "git dies with the loop"])
def test_a_loop_killed_again_and_again_commits_every_iteration_once(project: Project, group: bool) -> None:
    # A slow hook makes it likely that a kill lands in the middle of a commit.
    project.hook("pre-commit", "sleep 0.05\n")
    before = project.fingerprint()
    codes = list(kills(project, group=group, source=random.Random(int(group))))
    assert codes.count(-signal.SIGKILL) >= ROUNDS // 2
    last = start(project, LOOP, str(max(0, len(subjects(project)) - 1)))
    _, complaint = last.communicate()
    assert last.returncode == 0, complaint

    assert subjects(project) == [f"Bake {number}" for number in range(ITERATIONS)]
    for number in range(ITERATIONS):
        sha = project.git("rev-parse", f"{BRANCH}~{ITERATIONS - 1 - number}")
        assert set(project.git("show", "--format=", "--name-only", sha).split()) == {
            "models/router/recipe.yaml",
            f"models/router/lineage/{number}.txt",
        }
        assert project.git("show", f"{sha}:models/router/recipe.yaml") == str(number)
    assert project.git("fsck", "--strict", "--no-dangling") == ""
    assert project.fingerprint() == before
    worktree = ensure_worktree(project.workspace, project.worktree_dir, BRANCH)
    worktree.discard_changes()
    assert worktree.changed_paths() == ()
    assert list(project.worktree_dir.parent.glob("worktree.trash-*")) == []


def test_a_commit_that_outlives_its_loop_is_waited_for_and_not_doubled(
    project: Project, tmp_path: Path
) -> None:
    marker = tmp_path / "in the hook"
    project.hook("pre-commit", f"touch '{marker}'; sleep 1.5\n")
    child = start(project, LOOP, str(ITERATIONS - 1))
    while not marker.exists():
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    child.wait()
    # The orphan is still in its hook: the branch has nothing yet.
    assert subjects(project) == []
    worktree = ensure_worktree(project.workspace, project.worktree_dir, BRANCH)
    assert subjects(project) == [f"Bake {ITERATIONS - 1}"]
    (worktree.root / "recipe.yaml").write_text("another content\n")
    trailers = {ITERATION_TRAILER: f"i{ITERATIONS - 1:04}"}
    assert worktree.commit(["recipe.yaml"], subject="again", trailers=trailers) == worktree.head
    assert subjects(project) == [f"Bake {ITERATIONS - 1}"]
    assert git(worktree.top, "show", "HEAD:models/router/recipe.yaml") == str(ITERATIONS - 1)
    child.communicate()
