"""A corpus: documents of plain text from .txt, .md and .jsonl files, checked whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tools.dataset import MAX_LINE_BYTES
from tools.errors import DatasetError
from tools.files import digest_bytes, digest_json
from tools.wording import fold_words, squeeze_words

__all__ = ["Corpus", "Document", "read_corpus"]

_TEXTS: Final = (".txt", ".md")
_LINES: Final = ".jsonl"
_MAX_FILE_BYTES: Final = 2 * 1024**3
_PROBLEMS_SHOWN: Final = 50


@dataclass(frozen=True)
class Document:
    """One text, named by its file, and by its line where a file holds several."""

    name: str
    text: str
    key: str
    """Equal for two texts that differ in case, punctuation and spaces alone."""


@dataclass(frozen=True)
class Corpus:
    """The documents of some files, each text once."""

    documents: tuple[Document, ...]
    n_files: int
    n_duplicates: int
    """Documents left out because another has the same words."""
    n_empty: int
    """Documents left out because they hold no word."""

    @property
    def digest(self) -> str:
        """SHA-256 over the texts, in their order; names do not move it."""
        return digest_json([digest_bytes(document.text.encode("utf-8")) for document in self.documents])


def read_corpus(paths: Sequence[str | Path]) -> Corpus:
    """Read every document of files and of folders, all below them included, or none.

    A .txt or .md file is one document; a line of a .jsonl file is one object whose `text` is
    one. Hidden files, and in folders files of other kinds, are left out.

    Raises:
        DatasetError: lists every bad file and line; `.problems` holds all of them.
    """
    reader = _Reader()
    for path in paths:
        reader.take(Path(path))
    if not reader.documents and not reader.problems:
        reader.problems.append(
            f"{', '.join(map(str, paths)) or 'nothing'}: no .txt, .md or .jsonl with a text"
        )
    if reader.problems:
        shown = "\n".join(reader.problems[:_PROBLEMS_SHOWN])
        raise DatasetError(
            f"the corpus has {len(reader.problems)} problems; nothing of it is used\n{shown}",
            problems=reader.problems,
        )
    return Corpus(tuple(reader.documents), reader.n_files, reader.n_duplicates, reader.n_empty)


@dataclass
class _Reader:
    documents: list[Document] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    n_files: int = 0
    n_duplicates: int = 0
    n_empty: int = 0
    _keys: set[str] = field(default_factory=set)
    _files: set[Path] = field(default_factory=set)

    def take(self, path: Path) -> None:
        if path.is_dir():
            for found in _files_below(path):
                self._take_file(found, found.relative_to(path.parent).as_posix())
        elif path.exists() and path.suffix.lower() in (*_TEXTS, _LINES):
            self._take_file(path, path.name)
        else:
            state = "is of no kind that is read" if path.exists() else "does not exist"
            self.problems.append(f"{path} {state}; a folder, .txt, .md or .jsonl is needed")

    def _take_file(self, path: Path, name: str) -> None:
        resolved = path.resolve()
        if resolved in self._files:
            return
        self._files.add(resolved)
        self.n_files += 1
        try:
            if not resolved.is_file() or resolved.stat().st_size > _MAX_FILE_BYTES:
                self.problems.append(
                    f"{path} is no regular file of at most {_MAX_FILE_BYTES} bytes; split it"
                )
                return
            data = resolved.read_bytes()
        except OSError as err:
            self.problems.append(f"{path} cannot be read: {err}")
            return
        if path.suffix.lower() == _LINES:
            self._take_lines(data, path, name)
        else:
            self._take_text(data, str(path), name)

    def _take_lines(self, data: bytes, path: Path, name: str) -> None:
        for number, line in enumerate(data.split(b"\n"), start=1):
            if line.strip():
                self._take_line(line, f"{path}:{number}", f"{name}:{number}")

    def _take_line(self, line: bytes, where: str, name: str) -> None:
        if len(line) > MAX_LINE_BYTES:
            self.problems.append(f"{where}: {len(line)} bytes in one line; at most {MAX_LINE_BYTES} are read")
            return
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as err:
            self.problems.append(f"{where}: no JSON object on one line ({err})")
            return
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            self.problems.append(f'{where}: an object with a string under "text" is needed')
            return
        try:
            self._take_text(text.encode("utf-8"), where, name)
        except UnicodeEncodeError:
            self.problems.append(f"{where}: the text holds half a surrogate pair, which is no character")

    def _take_text(self, data: bytes, where: str, name: str) -> None:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as err:
            self.problems.append(f"{where}: not UTF-8 at byte {err.start}; convert the file")
            return
        if "\0" in text:
            self.problems.append(f"{where}: holds a NUL character; this looks like no text")
            return
        text = text.replace("\r\n", "\n").strip()
        words = fold_words(text)
        if not words:
            self.n_empty += 1
            return
        key = digest_bytes(squeeze_words(words).encode("utf-8"))
        if key in self._keys:
            self.n_duplicates += 1
            return
        self._keys.add(key)
        self.documents.append(Document(name, text, key))


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files to read in a fixed order; links to folders are not followed."""
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in (*_TEXTS, _LINES):
                yield Path(where, name)
