"""Git commands: run through GitPython, with nothing in them that could touch the user's work."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.errors import RepoError

__all__ = ["LITERAL_PATHS", "GitOutput", "git_text", "run_git"]

LITERAL_PATHS = {"GIT_LITERAL_PATHSPECS": "1"}
"""Environment under which a path such as `*.md` or `:(top)` names itself alone."""

# No housekeeping, monitor daemon or recursion into submodules is started on the user's
# repository, and what is written is on disk when git returns, loose objects too.
_SETTINGS = (
    "gc.auto=0",
    "maintenance.auto=false",
    "core.fsmonitor=false",
    "submodule.recurse=false",
    "core.quotePath=false",
    "core.fsync=all",
)
_ENVIRONMENT = {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}
# Each of these makes git work on another repository than the one its folder is in.
_REDIRECTIONS = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
    "GIT_NAMESPACE",
)
_OUTPUT_LINES = 30


@dataclass(frozen=True)
class GitOutput:
    """How a git command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.status == 0

    @property
    def complaint(self) -> str:
        """The last lines of what git and its hooks said."""
        lines = f"{self.stdout}\n{self.stderr}".strip().splitlines()
        return "\n".join(lines[-_OUTPUT_LINES:]) or "it said nothing"


def run_git(
    folder: Path,
    *arguments: str,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    keep_open: int | None = None,
    timeout_s: float | None = None,
) -> GitOutput:
    """Run git in folder and return how it ended, also when it failed.

    Args:
        folder: Where git works; it must exist.
        arguments: The subcommand and its arguments.
        stdin: What git reads.
        env: Environment variables to add.
        keep_open: A file descriptor that git and its hooks inherit.
        timeout_s: After that time git and its children are killed.
    Raises:
        RepoError: git is not installed, or the environment points it at another repository.
    """
    redirected = [name for name in _REDIRECTIONS if name in os.environ]
    if redirected:
        raise RepoError(
            f"the environment sets {', '.join(redirected)}, which would make git write elsewhere; "
            "unset it (it is set inside git hooks) and start again"
        )
    settings = [part for setting in _SETTINGS for part in ("-c", setting)]
    # -C as well as the working directory: GitPython falls back to the caller's own folder
    # when it cannot enter this one.
    command = ["git", *settings, "-C", str(folder), *arguments]
    return _execute(folder, command, stdin, {**_ENVIRONMENT, **(env or {})}, keep_open, timeout_s)


def git_text(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Run git in folder and return its output.

    Raises:
        RepoError: git failed; the message holds what it said.
    """
    output = run_git(folder, *arguments, env=env)
    if not output.ok:
        raise RepoError(f"git {arguments[0]} failed in {folder} (exit {output.status}): {output.complaint}")
    return output.stdout


def _execute(
    folder: Path,
    command: list[str],
    stdin: bytes,
    env: Mapping[str, str],
    keep_open: int | None,
    timeout_s: float | None,
) -> GitOutput:
    try:
        from git import Git
        from git.exc import GitCommandNotFound
    except ImportError as err:
        # GitPython looks for the executable when it is imported.
        raise RepoError("git was not found; install git and put it on PATH") from err
    with tempfile.TemporaryFile() as file:
        file.write(stdin)
        file.seek(0)
        try:
            status, stdout, stderr = Git(folder).execute(
                command,
                istream=file,
                env=env,
                with_extended_output=True,
                with_exceptions=False,
                kill_after_timeout=timeout_s,
                pass_fds=() if keep_open is None else (keep_open,),
            )
        except GitCommandNotFound as err:
            raise RepoError("git was not found; install git and put it on PATH") from err
    return GitOutput(int(status), str(stdout), str(stderr))
