"""The user's checkout: what the repository around a workspace holds. Nothing here writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tools.commit_message import fold_line
from tools.errors import RepoError
from tools.gitcommand import git_text, run_git

__all__ = ["Repo", "find_repo"]


@dataclass(frozen=True)
class Repo:
    """A git repository as seen from a workspace, which may be one of its folders.

    Attributes:
        root: Top of the user's working tree.
        subfolder: The workspace, relative to root; `.` when they are the same.
        git_dir: The folder that all worktrees of the repository share.
    """

    root: Path
    subfolder: Path
    git_dir: Path

    @property
    def head(self) -> str:
        """Id of the commit that the user's working tree is on."""
        return git_text(self.root, "rev-parse", "HEAD")

    @property
    def branch(self) -> str | None:
        """Name of the user's branch, or None when HEAD is detached."""
        output = run_git(self.root, "symbolic-ref", "--quiet", "--short", "HEAD")
        return output.stdout if output.ok else None

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the local branches."""
        names = git_text(self.root, "for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads")
        return tuple(names.split())

    def resolve(self, revision: str) -> str | None:
        """Return the id of the commit that revision names, or None when it names none."""
        question = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
        output = run_git(self.root, *question)
        return output.stdout if output.ok else None

    def branch_tip(self, branch: str) -> str | None:
        """Return the id of a local branch's newest commit, or None when there is no such branch."""
        return self.resolve(f"refs/heads/{branch}")

    def is_ancestor(self, older: str, newer: str) -> bool:
        """Return whether commit newer contains commit older."""
        return run_git(self.root, "merge-base", "--is-ancestor", older, newer).ok

    def count_between(self, older: str, newer: str) -> int:
        """Return how many commits newer contains that older does not."""
        return int(git_text(self.root, "rev-list", "--count", f"{older}..{newer}"))

    def worktrees(self) -> dict[Path, str | None]:
        """Return the branch of every worktree of the repository, None where HEAD is detached.

        The record of a worktree whose folder is gone is left out, unless the user locked it.
        """
        found: dict[Path, str | None] = {}
        for block in git_text(self.root, "worktree", "list", "--porcelain").split("\n\n"):
            fields = dict(line.partition(" ")[::2] for line in block.splitlines())
            path = Path(fields["worktree"])
            # git locks a worktree for as long as it makes it; a kill leaves that lock.
            if path.exists() or fields.get("locked", "initializing") != "initializing":
                branch = fields.get("branch")
                found[path] = None if branch is None else branch.removeprefix("refs/heads/")
        return found

    def is_ignored(self, path: str | Path) -> bool:
        """Return whether git ignores path (absolute, or relative to the workspace)."""
        place = self.root / self.subfolder / path
        return run_git(self.root, "check-ignore", "--quiet", "--", str(place)).ok

    def find_commit(self, branch: str, trailer: str, value: str) -> str | None:
        """Return the newest commit of branch that carries the trailer with that value, or None."""
        value = fold_line(value)
        wanted = f"{trailer}: {value}"
        output = git_text(
            self.root,
            # The user may have configured other separators; compose_message writes a colon.
            *("-c", "trailer.separators=:"),
            *("log", "--no-show-signature", "--fixed-strings", f"--grep={wanted}"),
            f"--format=%H%x1f%(trailers:key={trailer},valueonly,unfold,separator=%x1f)%x1e",
            *("--end-of-options", f"refs/heads/{branch}"),
        )
        for row in output.split("\x1e"):
            sha, *values = row.strip("\n").split("\x1f")
            if value in values:
                return sha
        return None

    def trailers(self, sha: str) -> dict[str, str]:
        """Return the trailers of a commit."""
        form = "--format=%(trailers:only,unfold)"
        text = git_text(
            self.root, "-c", "trailer.separators=:", "log", "-1", "--no-show-signature", form, sha
        )
        return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}

    def read_file(self, revision: str, path: str | Path) -> str | None:
        """Return a file of the workspace as a revision has it, or None when it has none.

        Reads a branch without its worktree, so that a running loop is not disturbed. The last
        line break is left off.
        """
        place = (self.subfolder / path).as_posix()
        output = run_git(self.root, "cat-file", "blob", f"{revision}:{place}")
        return output.stdout if output.ok else None

    def log(self, branch: str, n: int = 10) -> str:
        """Return the newest n commits of branch as text, one a line."""
        name = f"refs/heads/{branch}"
        return git_text(
            self.root,
            *("log", "--no-color", "--no-show-signature", "--date=short", f"--max-count={n}"),
            *("--format=%h %ad %s", "--end-of-options", name),
        )

    def show(self, revision: str, *, patch: bool = False) -> str:
        """Return a commit as text: its message and files, and with patch its lines.

        Raises:
            RepoError: revision names no commit.
        """
        sha = self.resolve(revision)
        if sha is None:
            raise RepoError(f"{revision!r} names no commit of {self.root}")
        plain = ("show", "--no-color", "--no-show-signature", "--no-ext-diff", "--no-textconv", "--stat")
        return git_text(self.root, *plain, *(("--patch",) if patch else ()), sha)


def find_repo(path: str | Path) -> Repo:
    """Return the repository around path, looking upwards.

    Raises:
        RepoError: path is no folder or in no repository, the repository is bare or has no
            commit yet, git refuses to read it, or git is not installed.
    """
    folder = Path(path).expanduser().resolve()
    if not str(folder).isprintable():
        raise RepoError(f"{str(folder)!r} holds characters that git prints escaped; rename the folder")
    if not folder.is_dir():
        raise RepoError(f"{folder} is not a folder; give the workspace's folder")
    output = run_git(folder, "rev-parse", "--is-bare-repository", "--is-inside-work-tree")
    if not output.ok:
        _refuse_folder(folder, output.stderr)
    if output.stdout.split() != ["false", "true"]:
        raise RepoError(f"{folder} has no working tree (bare, or inside .git); use a normal clone")
    root = Path(git_text(folder, "rev-parse", "--show-toplevel"))
    common = Path(git_text(folder, "rev-parse", "--path-format=absolute", "--git-common-dir"))
    repo = Repo(root=root, subfolder=folder.relative_to(root.resolve()), git_dir=common)
    if repo.resolve("HEAD") is None:
        raise RepoError(f"{root} has no commit yet; make a first one: git add task.yaml && git commit")
    return repo


def _refuse_folder(folder: Path, complaint: str) -> None:
    if "not a git repository" in complaint:
        raise RepoError(f"{folder} is in no git repository; make one: git init && git add . && git commit")
    raise RepoError(f"git cannot read the repository of {folder}: {complaint.strip()}")
