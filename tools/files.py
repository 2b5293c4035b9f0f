"""Files that survive a crash: replaced whole, or appended whole under a lock."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def write_bytes_atomic(path: str | Path, data: bytes, *, mode: int | None = None) -> Path:
    """Replace path with data so that a reader sees the old content or the new, never a part.

    The file is written beside its target, fsynced and renamed, and the folder is fsynced so
    that the rename itself survives a power cut. Parent folders are made.

    Args:
        mode: Permissions of the file; by default those that open() would give.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name[:80]}.", suffix=".tmp", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes 0600; a committed file should carry the mode that open() would give.
        temporary.chmod(0o666 & ~_umask() if mode is None else mode)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync_folder(target.parent)
    return target


def write_text_atomic(path: str | Path, text: str) -> Path:
    """Replace path with text, encoded as UTF-8."""
    return write_bytes_atomic(path, text.encode("utf-8"))


def write_json_atomic(path: str | Path, value: Any, *, indent: int | None = 2) -> Path:
    """Replace path with value as JSON. NaN and infinity are refused: JSON has no such words."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    return write_text_atomic(path, text + "\n")


def append_line(path: str | Path, line: str, *, header: str | None = None, durable: bool = True) -> None:
    """Append one whole line under an exclusive lock, flushed and fsynced.

    A torn last line, left by a process that died while it wrote, is closed with a newline
    first, so that it costs itself alone and never glues onto the new line.

    Args:
        path: File to append to; its parent folders are made.
        line: Text without a newline in it.
        header: Written first when the file is empty, under the same lock.
        durable: Wait until it is on the disk. Without, it outlives the process but not a loss of power.
    Raises:
        ValueError: line or header holds a newline.
    """
    for text in (line, header or ""):
        if "\n" in text or "\r" in text:
            raise ValueError(f"a line to append holds a line break: {text[:80]!r}; escape it first")
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        block = b""
        if size == 0 and header is not None:
            block += header.encode("utf-8") + b"\n"
        elif size and _last_byte(file.fileno(), size) != b"\n":
            block += b"\n"
        file.write(block + line.encode("utf-8") + b"\n")
        file.flush()
        if durable:
            os.fsync(file.fileno())


@dataclass(frozen=True)
class JsonLines:
    """What a JSONL file held: the objects that parsed, and a sentence per line that did not."""

    rows: tuple[Any, ...]
    problems: tuple[str, ...]


def read_jsonl(path: str | Path) -> JsonLines:
    """Read a JSONL file, tolerating and reporting lines that do not parse. Missing file: empty."""
    target = Path(path)
    rows: list[Any] = []
    problems: list[str] = []
    try:
        data = target.read_bytes()
    except FileNotFoundError:
        return JsonLines((), ())
    for number, raw in enumerate(data.split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            rows.append(json.loads(raw.decode("utf-8")))
        except ValueError as err:
            problems.append(f"{target}:{number}: not a JSON object on one line ({err})")
    return JsonLines(tuple(rows), tuple(problems))


def digest_bytes(data: bytes) -> str:
    """Return the SHA-256 of data as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:
    """Return the SHA-256 of value's canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return digest_bytes(text.encode("utf-8"))


def digest_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, read in blocks."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold an exclusive advisory lock on path (made when missing) for the length of the block."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _last_byte(descriptor: int, size: int) -> bytes:
    return os.pread(descriptor, 1, size - 1)


def _umask() -> int:
    # There is no way to read the mask without setting it; the pair below is what the
    # standard library's own callers do.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
