"""What a kept trial changed: its snapshot folder against that of its parent."""

from __future__ import annotations

import difflib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.errors import LineageError
from tools.lineage.trial import Trial

# A unified diff of larger files takes minutes and is read by nobody.
MAX_SHOWN_BYTES: Final = 1 << 20
_NO_END: Final = "\n\\ No newline at end of file\n"


@dataclass(frozen=True, slots=True)
class RecipeEdit:
    """A kept trial, the folder of its files and that of its parent's.

    Source: fieldkit.lineage.RecipeEdit.
    """

    trial: Trial
    snapshot_path: Path
    parent_snapshot_path: Path | None
    """None for a baseline, which has no parent and so no diff."""

    def diff(self) -> str:
        """Return the unified diff from the parent's files to this trial's, new and deleted ones too.

        A link is shown as the name that it points to and is never followed. Binary and very
        large files that differ are named.

        Raises:
            LineageError: one of the folders is missing.
        """
        if self.parent_snapshot_path is None:
            return ""
        before, after = Path(self.parent_snapshot_path), Path(self.snapshot_path)
        for folder in (before, after):
            if not folder.is_dir():
                raise LineageError(
                    f"no snapshot folder at {folder}; a diff needs the trial's and its parent's"
                )
        names = sorted({*_list_files(before), *_list_files(after)})
        return "".join(_diff_file(name, before / name, after / name) for name in names)


def _list_files(root: Path) -> list[Path]:
    found: list[Path] = []
    for folder, subfolders, files in os.walk(root, followlinks=False):
        links = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]
        found += [Path(folder, name).relative_to(root) for name in (*files, *links)]
    return found


def _diff_file(name: Path, before: Path, after: Path) -> str:
    shown = str(name) if str(name).isprintable() else ascii(str(name))[1:-1]
    old, new = _read(before), _read(after)
    if old == new:
        return ""
    old_lines, new_lines = _as_lines(old), _as_lines(new)
    if old_lines is None or new_lines is None:
        return f"Binary files a/{shown} and b/{shown} differ\n"
    lines = difflib.unified_diff(old_lines, new_lines, fromfile=f"a/{shown}", tofile=f"b/{shown}")
    return "".join(line if line.endswith("\n") else line + _NO_END for line in lines)


def _read(path: Path) -> bytes | None:
    """Return a file's bytes, a link's target, or None where there is nothing to read."""
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            return b"link to " + os.fsencode(os.readlink(path)) + b"\n"
        if not stat.S_ISREG(mode):
            return None
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as err:
        raise LineageError(f"{path} cannot be read: {err}; a diff must not leave it out") from err


def _as_lines(data: bytes | None) -> list[str] | None:
    """Return the lines of a text with their ends; None for what is not shown."""
    if data is None:
        return []
    if len(data) > MAX_SHOWN_BYTES or b"\0" in data:
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    lines = text.split("\n")
    return [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
