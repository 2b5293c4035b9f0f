"""Folders that travel between machines in pieces and are whole or absent where they arrive."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.errors import TrainError
from tools.files import digest_file, digest_json

__all__ = ["PIECE_BYTES", "Parcel", "ParcelFile", "Unpacking", "pieces", "read_piece"]

PIECE_BYTES: Final = 16 << 20
"""Most bytes that travel in one call."""

_NAME: Final = re.compile(r"(?!\.\.?(/|\Z))[^/\0]+(/(?!\.\.?(/|\Z))[^/\0]+)*\Z")


@dataclass(frozen=True)
class ParcelFile:
    """A file of a parcel, under its name in the parcel's folder."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Parcel:
    """What a folder must hold once all of it has arrived."""

    files: tuple[ParcelFile, ...]

    @classmethod
    def of(cls, files: Mapping[str, Path]) -> Parcel:
        """Describe files, each under the name that it has where it arrives."""
        found = sorted(files.items())
        return cls(tuple(ParcelFile(name, path.stat().st_size, digest_file(path)) for name, path in found))

    @property
    def digest(self) -> str:
        """SHA-256 over names and contents."""
        return digest_json([[file.name, file.sha256] for file in self.files])

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def pieces(path: Path) -> Iterator[bytes]:
    """Read a file in pieces; an empty one is no piece."""
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def read_piece(path: Path, start: int) -> bytes:
    """Return the next piece of a file from a position on; empty at its end."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(PIECE_BYTES)


class Unpacking:
    """A parcel on its way into a folder of its own, which is whole only after `finish`."""

    def __init__(self, folder: Path, parcel: Parcel) -> None:
        """Make the folder, empty.

        Raises:
            TrainError: a name in the parcel would leave the folder, or stands there twice.
        """
        names = [file.name for file in parcel.files]
        strange = [name for name in names if not _NAME.match(name)]
        if strange or len(set(names)) != len(names):
            raise TrainError(f"a parcel names {strange or names}; plain, distinct names are needed")
        self._folder = folder
        self._wanted = {file.name: file for file in parcel.files}
        self._seen = {name: hashlib.sha256() for name in names}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()

    def add(self, name: str, piece: bytes) -> None:
        """Append the next piece of a file."""
        if name not in self._wanted:
            raise TrainError(f"the file {name!r} is none of this parcel: {sorted(self._wanted)}")
        with (self._folder / name).open("ab") as file:
            file.write(piece)
        self._seen[name].update(piece)

    def finish(self) -> Path:
        """Return the folder once it is proved whole and is on the disk.

        Raises:
            TrainError: a file is not what the parcel says.
        """
        for name, file in self._wanted.items():
            found = self._seen[name].hexdigest()
            if found != file.sha256:
                raise TrainError(
                    f"{name} arrived torn (SHA-256 {found[:9]}, not {file.sha256[:9]}); not used"
                )
        for path in [*self._folder.rglob("*"), self._folder]:
            _sync(path)
        return self._folder


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
