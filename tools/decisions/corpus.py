"""The folders of decide entries: what is read from them, and which entries still count."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.decisions.entry import VALID_LIFECYCLES, DecideEntry
from tools.errors import DecideError

_log = logging.getLogger(__name__)
_HOME: Final = Path(os.path.expanduser("~"))
_TOOLS: Final = Path(__file__).resolve().parents[1]

SEED_ENTRIES_DIR: Path = (
    _TOOLS / "decide-entries" if (_TOOLS / "decide-entries").is_dir() else _TOOLS.parent / "decide-entries"
)
"""The shipped entries: inside the package in a wheel, beside it in a checkout."""
USER_ENTRIES_DIR: Path = _HOME / ".bakehouse" / "decide-entries"
"""The user's own entries, over those that are shipped. Made by the first write."""
LEGACY_ENTRIES_DIR: Path = _HOME / ".fieldkit" / "decide-entries"
"""Where fieldkit kept the user's entries; read, never written, so that they need not be moved."""

ENTRY_SUFFIXES: Final = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class EntryProblem:
    """A file that gave no entry, and why."""

    path: Path
    message: str


@dataclass(frozen=True)
class EntryScan:
    """All entries of some folders, newest first, and the files that gave none.

    `supersedes` is applied: an entry that a standing one names has the lifecycle "superseded".
    """

    entries: tuple[DecideEntry, ...]
    problems: tuple[EntryProblem, ...]


def default_dirs() -> tuple[Path, ...]:
    """Return the folders searched when none are named: the user's, fieldkit's, the shipped one."""
    return tuple(path for path in (USER_ENTRIES_DIR, LEGACY_ENTRIES_DIR, SEED_ENTRIES_DIR) if path.is_dir())


def scan_entries(dirs: Iterable[str | Path] | None = None) -> EntryScan:
    """Read every entry of the folders; a malformed file is reported and costs itself alone.

    A slug that comes twice counts once: in the first folder that has it, there in the first file.

    Args:
        dirs: Folders to read, a missing one is skipped; default: `default_dirs`.
    """
    problems: list[EntryProblem] = []
    found: dict[str, DecideEntry] = {}
    if isinstance(dirs, str | Path):
        # A string is one folder, not a list of characters.
        dirs = (dirs,)
    folders = default_dirs() if dirs is None else tuple(Path(folder) for folder in dirs)
    for folder in dict.fromkeys(folders):
        for entry in _read_folder(folder, problems):
            first = found.setdefault(entry.slug, entry)
            if dataclasses.replace(entry, path=first.path) != first:
                text = f"entry {entry.slug!r} is not used: another one in {first.path} has its slug"
                problems.append(EntryProblem(entry.path or folder, text))
    for problem in problems:
        _log.warning("%s: %s", problem.path, problem.message)
    newest = sorted(found.values(), key=_recency, reverse=True)
    return EntryScan(_apply_supersedes(newest), tuple(problems))


def load_entries(
    *,
    dirs: Iterable[str | Path] | None = None,
    lifecycle: str | Iterable[str] | None = "active",
    question: str | None = None,
) -> list[DecideEntry]:
    """Return the entries of the folders, newest first.

    Args:
        dirs: Folders to read, a missing one is skipped; default: the user's, fieldkit's, the shipped.
        lifecycle: One lifecycle, several, or None for all.
        question: Keep the entries that answer this question.
    Raises:
        DecideError: an unknown lifecycle. A malformed file is logged and skipped instead.
    """
    wanted = _check_lifecycles(lifecycle)
    return [
        entry
        for entry in scan_entries(dirs).entries
        if entry.lifecycle in wanted and (question is None or entry.question == question)
    ]


def list_entry_files(folder: Path) -> list[Path]:
    """Return the files of a folder that may hold an entry, sorted by name; a missing folder has none."""
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in ENTRY_SUFFIXES and path.is_file()
    )


def _read_folder(folder: Path, problems: list[EntryProblem]) -> list[DecideEntry]:
    entries: list[DecideEntry] = []
    try:
        files = list_entry_files(folder)
    except OSError as err:
        problems.append(EntryProblem(folder, f"the folder cannot be read: {err}"))
        return []
    for file in files:
        try:
            entries.append(DecideEntry.from_yaml(file))
        except DecideError as err:
            problems.append(EntryProblem(file, str(err)))
    return entries


def _check_lifecycles(lifecycle: str | Iterable[str] | None) -> frozenset[str]:
    if lifecycle is None:
        return VALID_LIFECYCLES
    wanted = frozenset({lifecycle} if isinstance(lifecycle, str) else lifecycle)
    unknown = wanted - VALID_LIFECYCLES
    if unknown:
        raise DecideError(f"lifecycle is {sorted(map(str, unknown))}; allowed: {sorted(VALID_LIFECYCLES)}")
    return wanted


def _recency(entry: DecideEntry) -> tuple[object, ...]:
    # Entries of one day are told apart by the number in their slug, and 10 comes after 9.
    parts = re.split(r"(\d+)", entry.slug)
    return (entry.created, [int(part) if index % 2 else part for index, part in enumerate(parts)])


def _apply_supersedes(newest_first: Sequence[DecideEntry]) -> tuple[DecideEntry, ...]:
    """Mark what a standing entry replaces.

    A superseded entry still keeps down what it replaced itself; a deprecated one, which was
    taken back, does not. Of entries that name each other in a ring only a newer one replaces an
    older one, so that the newest stays.
    """
    rank = {entry.slug: index for index, entry in enumerate(newest_first)}
    names = {
        entry.slug: [slug for slug in entry.supersedes if slug in rank and slug != entry.slug]
        for entry in newest_first
        if entry.lifecycle != "deprecated"
    }
    gone = {
        older
        for slug, replaced in names.items()
        for older in replaced
        if rank[slug] < rank[older] or slug not in _reach(older, names)
    }
    return tuple(
        dataclasses.replace(entry, lifecycle="superseded")
        if entry.slug in gone and entry.lifecycle == "active"
        else entry
        for entry in newest_first
    )


def _reach(start: str, names: Mapping[str, Sequence[str]]) -> set[str]:
    """Return start and all that it replaces, directly or through others."""
    seen, waiting = {start}, [start]
    while waiting:
        fresh = set(names.get(waiting.pop(), ())) - seen
        seen |= fresh
        waiting += fresh
    return seen
