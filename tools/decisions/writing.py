"""Writing a decide entry: checked, whole or not at all, and never over another one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tools.decisions.corpus import list_entry_files
from tools.decisions.entry import ENTRY_KEYS, MAX_ENTRY_BYTES, DecideEntry
from tools.errors import DecideError
from tools.files import write_text_atomic
from tools.yaml_text import parse_yaml

_SLUG: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,118}[A-Za-z0-9])?\Z")


def write_entry(entry: DecideEntry, folder: str | Path, *, replace: bool = False) -> Path:
    """Write an entry to `<folder>/<slug>.yaml` and return the path.

    Writing the same entry again changes nothing, so a resumed bakeoff may do it.

    Args:
        entry: Every finding needs evidence.
        folder: Made when missing.
        replace: Write over an entry of the same slug that says something else, to date it anew
            or to mark it superseded.
    Raises:
        DecideError: the entry is not fit to be written, or the slug is taken.
    """
    text = _dump(entry)
    target = Path(folder) / f"{entry.slug}.yaml"
    with _folder_locked(target.parent):
        holder = _find_holder(entry.slug, target)
        if holder is None:
            return write_text_atomic(target, text)
        if _says(holder) == text:
            return holder
        if not replace:
            raise DecideError(
                f"{holder} already holds another entry {entry.slug!r}; "
                f"choose another slug, or pass replace=True to write over it"
            )
        if holder != target:
            raise DecideError(
                f"entry {entry.slug!r} is in {holder}; rename it to {target.name} to replace it"
            )
        return write_text_atomic(target, text)


def _dump(entry: DecideEntry) -> str:
    _check(entry)
    text = _to_yaml(entry)
    if len(text.encode("utf-8")) > MAX_ENTRY_BYTES:
        raise DecideError(f"entry {entry.slug!r} is larger than {MAX_ENTRY_BYTES} bytes; shorten it")
    return text


def _check(entry: DecideEntry) -> None:
    if not _SLUG.match(entry.slug):
        raise DecideError(
            f"slug is {entry.slug!r}; it names a file: up to 120 letters, digits, '.', '_' or '-', "
            f"with a letter or digit at both ends"
        )
    for index, found in enumerate(entry.findings):
        if not found.evidence.strip():
            raise DecideError(
                f"entry {entry.slug!r}: finding {index} ({found.optimize_for}) has no evidence; "
                f"say what was measured"
            )
    taken = sorted(str(key) for key in entry.extra if key in ENTRY_KEYS)
    if taken:
        raise DecideError(f"entry {entry.slug!r}: extra holds {taken}, which are fields of their own")


def _find_holder(slug: str, target: Path) -> Path | None:
    """Return the file that has the slug, by its name or by what it says."""
    for file in list_entry_files(target.parent):
        # An unreadable file of that name is someone's work too.
        if file.stem == slug or (_mentions(file, slug) and _slug_of(file) == slug):
            return file
    return target if os.path.lexists(target) else None


def _mentions(file: Path, slug: str) -> bool:
    # Parsing every entry at every write would make a long search slow.
    try:
        return slug.encode("ascii") in file.read_bytes()
    except OSError:
        return False


def _slug_of(file: Path) -> str | None:
    try:
        return DecideEntry.from_yaml(file).slug
    except DecideError:
        return None


def _says(file: Path) -> str | None:
    """Return the entry of a file in our own writing, or None for what cannot be read."""
    try:
        return _to_yaml(DecideEntry.from_yaml(file))
    except DecideError:
        return None


def _to_yaml(entry: DecideEntry) -> str:
    """Return the file of an entry, readable in its own script where that reads back the same."""
    import yaml

    class PlainDumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            # A list used twice is written twice: readers refuse aliases.
            return True

    plain = entry.to_dict()
    try:
        # YAML folds some characters away, such as the line break U+0085, unless all are escaped.
        for allow_unicode in (True, False):
            text = yaml.dump(
                plain, Dumper=PlainDumper, sort_keys=False, allow_unicode=allow_unicode, width=100
            )
            if DecideEntry.from_dict(parse_yaml(text)).to_dict() == plain:
                return text
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        raise DecideError(f"entry {entry.slug!r} holds a value that YAML cannot carry: {err}") from err
    raise DecideError(
        f"entry {entry.slug!r} would read back as something else; "
        f"use strings, finite numbers, true/false, dates, lists and mappings"
    )


@contextlib.contextmanager
def _folder_locked(folder: Path) -> Iterator[None]:
    """Lock the folder itself: a lock file would be committed with the entries."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
