"""The paths of a commit: which files a list of paths names, and which must not be committed."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

from tools.errors import RepoError
from tools.gitcommand import LITERAL_PATHS, git_text
from tools.secret_scan import find_secrets

__all__ = ["DEFAULT_MAX_BYTES", "check_files", "check_message", "list_files"]

DEFAULT_MAX_BYTES = 5_000_000
_CLOSED_FOLDERS = (".git", ".bakehouse")
_SHOWN_PROBLEMS = 20


def list_files(top: Path, subfolder: Path, paths: Sequence[str | Path]) -> tuple[str, ...]:
    """Return the files that paths name, relative to the worktree's top, sorted.

    A folder stands for the files in it that git does not ignore. A file that is gone but was
    committed before is listed too: its removal is what will be committed.

    Args:
        top: Top of the worktree.
        subfolder: The workspace in it, which paths are relative to.
        paths: Files and folders.
    Raises:
        RepoError: a path leaves the workspace, goes through a link, lies in `.git` or
            `.bakehouse`, names nothing, or is not a regular file.
    """
    if not paths:
        raise RepoError("no paths to commit; list the files that the commit is made of")
    files = {file for path in paths for file in _expand(top, subfolder, Path(path))}
    for file in files:
        _check_place(top, Path(file))
    return tuple(sorted(files))


def check_files(top: Path, files: Sequence[str], *, max_bytes: int) -> None:
    """Refuse files that are too large or hold a credential.

    Raises:
        RepoError: names every such file, with the line and the masked value of a secret.
    """
    problems: list[str] = []
    for file in files:
        path = top / file
        if not path.exists():
            continue
        size = path.stat().st_size
        if size > max_bytes:
            problems.append(f"{file}: {size} bytes; allowed are {max_bytes} (weights stay out of git)")
        else:
            problems += [f"{file}:{found}" for found in find_secrets(path.read_bytes())]
    _refuse(problems)


def check_message(message: str) -> None:
    """Refuse a commit message that holds a credential.

    Raises:
        RepoError: names the line and the masked value.
    """
    _refuse([f"commit message:{found}" for found in find_secrets(message)])


def _refuse(problems: list[str]) -> None:
    if problems:
        shown = "\n".join(problems[:_SHOWN_PROBLEMS])
        raise RepoError(
            f"{len(problems)} thing(s) must not be committed; remove them, then commit again:\n{shown}"
        )


def _expand(top: Path, subfolder: Path, path: Path) -> list[str]:
    if path.is_absolute() or not path.parts or ".." in path.parts:
        raise RepoError(f"path {str(path)!r} is refused; give one below the workspace, without '..'")
    if not str(path).isprintable():
        raise RepoError(f"path {str(path)!r} is refused; it holds characters that cannot be printed")
    place = subfolder / path
    _check_place(top, place)
    if (top / place).is_file():
        return [place.as_posix()]
    kinds = ("--cached", "--others", "--exclude-standard")
    found = git_text(top, "ls-files", "-z", *kinds, "--", place.as_posix(), env=LITERAL_PATHS)
    files = [file for file in found.split("\0") if file and not _is_temporary(Path(file).name)]
    if not files and not (top / place).is_dir():
        raise RepoError(f"path {str(path)!r} names nothing in the worktree {top}, now or in its last commit")
    return files


def _check_place(top: Path, place: Path) -> None:
    closed = [part for part in place.parts if part.lower() in _CLOSED_FOLDERS]
    if closed:
        raise RepoError(f"path {place} is refused; nothing in {closed[0]} is ever committed")
    for folder in (place, *place.parents):
        if (top / folder).is_symlink() and folder != Path():
            raise RepoError(f"path {place} is refused; {folder} is a link, only regular files are committed")
    if (
        (top / place).exists()
        and not (top / place).is_dir()
        and not stat.S_ISREG((top / place).stat().st_mode)
    ):
        raise RepoError(f"path {place} is refused; it is not a regular file")


def _is_temporary(name: str) -> bool:
    # What a process killed amid an atomic replacement leaves beside the file.
    return name.startswith(".") and name.endswith(".tmp")
