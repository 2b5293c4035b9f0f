"""A new workspace: its files, and a git repository around them."""

from __future__ import annotations

import re
import shutil
from importlib import resources
from pathlib import Path

from tools.errors import TaskError
from tools.files import write_text_atomic

_TEMPLATES = (
    "task.yaml",
    "recipe.yaml",
    "mission.md",
    "BACKGROUND.md",
    "system_prompt.md",
    "llm.txt",
    "gitignore",
)
_FOLDERS = ("data", "decide-entries", "lineage")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")


def create_workspace(root: str | Path, *, name: str, source: Path | None = None) -> tuple[Path, ...]:
    """Write a workspace and commit it; return the files that were written.

    Args:
        root: Folder to fill; made when missing. Files that exist are never overwritten.
        name: Of the task: lower-case letters, digits and dashes.
        source: An example's folder to copy instead of the templates.
    Raises:
        TaskError: the name is malformed, or root already holds a task.yaml.
    """
    if not _NAME.match(name):
        raise TaskError(f"name is {name!r}; allowed: lower-case letters, digits and dashes, 63 at most")
    folder = Path(root).expanduser().resolve()
    if (folder / "task.yaml").exists():
        raise TaskError(f"{folder} already holds a task.yaml; name another folder or edit what is there")
    folder.mkdir(parents=True, exist_ok=True)
    written = _copy(source, folder) if source else _fill(folder, name)
    for part in _FOLDERS:
        (folder / part).mkdir(exist_ok=True)
    _commit(folder, written)
    return written


def _fill(folder: Path, name: str) -> tuple[Path, ...]:
    templates = resources.files("agent") / "templates"
    written = []
    for template in _TEMPLATES:
        target = folder / (".gitignore" if template == "gitignore" else template)
        if not target.exists():
            text = (templates / template).read_text(encoding="utf-8").replace("{{name}}", name)
            written.append(write_text_atomic(target, text))
    for split in ("train", "dev", "selection", "test"):
        target = folder / "data" / f"{split}.jsonl"
        if not target.exists():
            written.append(write_text_atomic(target, ""))
    return tuple(written)


def _copy(source: Path, folder: Path) -> tuple[Path, ...]:
    written = []
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        if path.is_symlink() or not path.is_file() or _is_left_out(relative):
            continue
        target = folder / relative
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            written.append(target)
    ignore = folder / ".gitignore"
    if not ignore.exists():
        text = (resources.files("agent") / "templates" / "gitignore").read_text(encoding="utf-8")
        written.append(write_text_atomic(ignore, text))
    return tuple(written)


def _is_left_out(relative: Path) -> bool:
    return relative.suffix in {".py", ".pyc"} or any(part.startswith((".", "__")) for part in relative.parts)


def _commit(folder: Path, written: tuple[Path, ...]) -> None:
    """Make the folder a repository of its own and commit the new files there.

    Inside a person's repository the first commit is theirs to make, unless that repository
    ignores the folder and so could never hold it.
    """
    from tools.gitcommand import git_text, run_git
    from tools.worktree import missing_identity

    inside = run_git(folder, "rev-parse", "--show-toplevel").ok
    if inside and not run_git(folder, "check-ignore", "--quiet", str(folder)).ok:
        return
    git_text(folder, "init", "--quiet", "--initial-branch", "main")
    git_text(folder, "add", "--", *[str(path.relative_to(folder)) for path in written])
    git_text(folder, "commit", "--quiet", "-m", "Start the workspace", env=missing_identity(folder))
