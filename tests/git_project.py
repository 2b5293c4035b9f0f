"""A user's repository with everything in it that the loop must not touch."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

IDENTITY = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")


def isolate_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut git off from the configuration of the machine and from a repository around the tests."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *IDENTITY, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@dataclass(frozen=True)
class Project:
    """A repository with a workspace in one of its folders."""

    root: Path

    @property
    def workspace(self) -> Path:
        return self.root / "models" / "router"

    @property
    def worktree_dir(self) -> Path:
        return self.workspace / ".bakehouse" / "worktree"

    def git(self, *arguments: str) -> str:
        return git(self.root, *arguments)

    def commit_file(self, name: str, text: str) -> str:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        self.git("add", "--", name)
        self.git("commit", "--quiet", "--message", f"Change {name}", "--", name)
        return self.git("rev-parse", "HEAD")

    def configure(self, name: str, value: str) -> None:
        self.git("config", name, value)

    def hook(self, name: str, script: str) -> None:
        path = self.root / ".git" / "hooks" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\n" + script, encoding="utf-8")
        path.chmod(0o755)

    def fingerprint(self, branch: str = "bakeoff") -> dict[str, str]:
        """The bytes of every file of the user's tree and of .git, but for what is the loop's own."""
        own = (
            ".git/objects/",
            ".git/worktrees/",
            f".git/refs/heads/{branch}",
            f".git/logs/refs/heads/{branch}",
            f"{self.worktree_dir.parent.relative_to(self.root)}/",
        )
        found: dict[str, str] = {}
        for path in sorted(self.root.rglob("*")):
            name = path.relative_to(self.root).as_posix()
            if name.startswith(own):
                continue
            if path.is_symlink():
                found[name] = f"link to {os.readlink(path)}"
            elif path.is_file():
                mode = path.stat().st_mode
                found[name] = f"{mode:o} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        return found


def make_project(root: Path) -> Project:
    """A repository with two commits, a stash, and staged, changed and untracked files."""
    root.mkdir(parents=True)
    project = Project(root)
    project.git("init", "--quiet", "--initial-branch=main")
    project.configure("user.name", "Ada")
    project.configure("user.email", "ada@example.org")
    project.commit_file("README.md", "hello\n")
    project.commit_file("models/router/task.yaml", "name: router\n")
    (root / "README.md").write_text("stashed\n")
    project.git("stash", "--quiet")
    (root / "README.md").write_text("changed, not staged\n")
    (root / "staged.txt").write_text("staged\n")
    project.git("add", "staged.txt")
    (root / "staged.txt").write_text("staged, then changed\n")
    (root / "untracked.txt").write_text("untracked\n")
    (root / "link").symlink_to("README.md")
    return project
