"""The worktree: a second checkout, on a branch of its own, where the loop commits."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.checkout import Repo
from tools.commit_message import compose_message, fold_line
from tools.commit_paths import DEFAULT_MAX_BYTES, check_files, check_message, list_files
from tools.errors import RepoError
from tools.gitcommand import LITERAL_PATHS, git_text, run_git
from tools.lock import hold_lock

__all__ = ["ITERATION_TRAILER", "Worktree", "clear_branch_lock", "clear_worktree_locks", "hold_worktree"]

logger = logging.getLogger(__name__)

ITERATION_TRAILER = "Bakehouse-Iteration"
"""Trailer whose value names what a commit is for; one commit of a branch carries each value."""

_WAIT_S = 60.0
_REF_LOCK_S = 10.0
_FALLBACK_NAME, _FALLBACK_EMAIL = "bakehouse", "bakehouse@localhost"


@dataclass(frozen=True)
class Worktree:
    """A worktree of the user's repository that belongs to the loop alone.

    Attributes:
        repo: The user's repository.
        top: Where the worktree lies.
        branch: The branch that it is on.
        behind: Commits of the user's HEAD that the branch lacked when it was opened.
    """

    repo: Repo
    top: Path
    branch: str
    behind: int = 0

    @property
    def root(self) -> Path:
        """The workspace inside the worktree."""
        return self.top / self.repo.subfolder

    @property
    def head(self) -> str:
        """Id of the newest commit of the branch."""
        return git_text(self.top, "rev-parse", "HEAD")

    def find_commit(self, trailer: str, value: str) -> str | None:
        """Return the branch's newest commit that carries the trailer with that value, or None."""
        return self.repo.find_commit(self.branch, trailer, value)

    def log(self, n: int = 10) -> str:
        """Return the newest n commits of the branch as text, one a line."""
        return self.repo.log(self.branch, n)

    def show(self, revision: str, *, patch: bool = False) -> str:
        """Return a commit as text: its message and files, and with patch its lines."""
        return self.repo.show(revision, patch=patch)

    def changed_paths(self) -> tuple[str, ...]:
        """Return what differs from the branch's newest commit, relative to the worktree's top."""
        status = git_text(self.top, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all")
        return tuple(field[3:] for field in status.split("\0") if field)

    def commit(
        self,
        paths: Sequence[str | Path],
        *,
        subject: str,
        body: str = "",
        trailers: Mapping[str, str] | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        hooks_timeout_s: float = 900.0,
    ) -> str:
        """Commit the listed paths, and nothing else, and return the commit's id.

        A commit of the branch that carries the same `Bakehouse-Iteration`, and the same other
        trailers, is returned as it is, so that a loop killed after its commit never makes a
        second one. The user's hooks and signing apply.

        Args:
            paths: Files and folders, relative to `root`. One that is gone is removed.
            subject: First line of the message.
            body: Paragraphs below it.
            trailers: Its last lines; `Bakehouse-Iteration` names what the commit is for.
            max_bytes: Largest file that is taken; model weights never belong in git.
            hooks_timeout_s: After that time git, its hooks and its signing program are killed.
        Raises:
            RepoError: a path is refused, a file holds a secret or is too large, git ignores
                it, nothing changed, another commit carries the same iteration, a hook or
                signing refused, or git failed.
            LockHeldError: a git of an earlier run is still at work in the worktree.
        """
        trailers = trailers or {}
        message = compose_message(subject, body, trailers)
        with self._exclusive() as descriptor:
            present = self._already_committed(trailers)
            if present is not None:
                return present
            self._check_branch()
            git_text(self.top, "reset", "--quiet")
            files = list_files(self.top, self.repo.subfolder, paths)
            check_files(self.top, files, max_bytes=max_bytes)
            check_message(message)
            try:
                self._stage(files)
                sha = self._commit_index(message, descriptor, hooks_timeout_s)
            finally:
                # Of a refused commit nothing stays staged; after a good one this changes nothing.
                self._clear_locks()
                run_git(self.top, "reset", "--quiet")
            self._check_trailer(sha, trailers)
            return sha

    def discard_changes(self) -> None:
        """Bring every file back to the branch's newest commit and delete the untracked ones."""
        with self._exclusive():
            git_text(self.top, "reset", "--hard", "--quiet")
            git_text(self.top, "clean", "-ffd", "--quiet")

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[int]:
        with hold_worktree(self.top) as descriptor:
            self._clear_locks()
            yield descriptor

    def _clear_locks(self) -> None:
        clear_worktree_locks(self.top)
        clear_branch_lock(self.repo, self.branch)

    def _already_committed(self, trailers: Mapping[str, str]) -> str | None:
        name = trailers.get(ITERATION_TRAILER)
        sha = None if name is None else self.find_commit(ITERATION_TRAILER, name)
        if sha is None:
            return None
        present = self.repo.trailers(sha)
        other = [key for key, value in trailers.items() if present.get(key, value) != fold_line(value)]
        if other:
            raise RepoError(
                f"{self.branch} has another {ITERATION_TRAILER} {name}, commit {sha[:12]}, which differs in "
                f"{', '.join(other)}; give this one a name that no commit of the branch carries"
            )
        return sha

    def _check_trailer(self, sha: str, trailers: Mapping[str, str]) -> None:
        name = trailers.get(ITERATION_TRAILER)
        if name is not None and self.find_commit(ITERATION_TRAILER, name) is None:
            logger.warning(
                "a hook rewrote the message of %s, and %s is no trailer of it any more: "
                "a run that is killed now would commit it again",
                sha,
                ITERATION_TRAILER,
            )

    def _check_branch(self) -> None:
        name = git_text(self.top, "rev-parse", "--symbolic-full-name", "HEAD")
        if name != f"refs/heads/{self.branch}":
            raise RepoError(f"the worktree {self.top} is on {name}, not on {self.branch}; open it again")

    def _stage(self, files: Sequence[str]) -> None:
        listed = "\0".join(files).encode("utf-8", "surrogateescape")
        source = ("--pathspec-from-file=-", "--pathspec-file-nul")
        output = run_git(self.top, "add", "--all", *source, stdin=listed, env=LITERAL_PATHS)
        if not output.ok:
            raise RepoError(f"git would not take the files: {output.complaint}")
        staged = git_text(self.top, "diff", "--cached", "--name-only", "--no-renames", "-z")
        names = {name for name in staged.split("\0") if name}
        if not names:
            raise RepoError(f"nothing to commit: {len(files)} listed file(s) are as {self.branch} has them")
        if not names <= set(files):
            raise RepoError(f"git staged files that are not listed: {sorted(names - set(files))}")

    def _commit_index(self, message: str, descriptor: int, timeout_s: float) -> str:
        before = self.head
        output = run_git(
            self.top,
            *("commit", "--quiet", "--cleanup=whitespace", "--file=-"),
            stdin=message.encode("utf-8"),
            env=missing_identity(self.top),
            keep_open=descriptor,
            timeout_s=timeout_s,
        )
        after = self.head
        if after == before:
            raise RepoError(f"git commit was refused (exit {output.status}): {output.complaint}")
        if not output.ok:
            # A hook that runs after the commit cannot undo it.
            logger.warning("commit %s was made, then git failed: %s", after, output.complaint)
        return after


@contextlib.contextmanager
def hold_worktree(top: Path) -> Iterator[int]:
    """Hold the worktree against every other git command of ours; yield the lock's descriptor.

    A git that outlives a killed parent keeps the lock until it has ended.
    """
    with hold_lock(top.with_name(top.name + ".lock"), timeout_s=_WAIT_S) as descriptor:
        yield descriptor


def clear_worktree_locks(top: Path) -> None:
    """Remove the lock files of a git that was killed in the worktree; call it under `hold_worktree`."""
    for path in Path(git_text(top, "rev-parse", "--absolute-git-dir")).glob("*.lock"):
        _remove_lock(path)


def clear_branch_lock(repo: Repo, branch: str) -> None:
    """Remove the lock file of a git that was killed as it moved the branch."""
    path = repo.git_dir / "refs" / "heads" / f"{branch}.lock"
    # The user's git may hold this one as well, but for milliseconds only.
    deadline = time.monotonic() + _REF_LOCK_S
    while _is_young(path) and time.monotonic() < deadline:
        time.sleep(0.1)
    _remove_lock(path)


def _remove_lock(path: Path) -> None:
    if path.exists():
        logger.warning("removing %s, left by a git that was killed", path)
        path.unlink(missing_ok=True)


def _is_young(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < _REF_LOCK_S
    except FileNotFoundError:
        return False


def missing_identity(top: Path) -> dict[str, str]:
    """Return the environment that a commit needs where git knows no author; empty where it does."""
    env: dict[str, str] = {}
    for role in ("AUTHOR", "COMMITTER"):
        # Without useConfigOnly git makes an identity up from the machine's name.
        if not run_git(top, "-c", "user.useConfigOnly=true", "var", f"GIT_{role}_IDENT").ok:
            env[f"GIT_{role}_NAME"] = _FALLBACK_NAME
            env[f"GIT_{role}_EMAIL"] = _FALLBACK_EMAIL
    if env:
        logger.warning("git has no user.name and user.email here; committing as %s", _FALLBACK_EMAIL)
    return env
