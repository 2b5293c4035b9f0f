"""Base models that were sent to a node, each kept there once under the digest of its content."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final, Literal

from tools.lanes.ray.parcels import Parcel, Unpacking

__all__ = ["ModelCache", "model_files"]

_OTHER_WEIGHTS: Final = (".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".ot", ".gguf")
_FOLDERS: Final = ("additional_chat_templates",)


def model_files(place: Path) -> dict[str, Path]:
    """Return what loading a local base model reads: a .gguf file, or files of a folder, by their names."""
    if place.is_file():
        return {place.name: place}
    entries = [path for path in place.iterdir() if path.is_file() and not path.name.startswith(".")]
    if any(path.suffix == ".safetensors" for path in entries):
        entries = [path for path in entries if path.suffix not in _OTHER_WEIGHTS]
    for name in _FOLDERS:
        entries += [path for path in (place / name).glob("*") if path.is_file()]
    return {path.relative_to(place).as_posix(): path for path in entries}


class ModelCache:
    """The models of a node; several processes use one folder at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock: int | None = None

    def seek(self, digest: str) -> Literal["here", "send", "busy"]:
        """Say whether a model is here, is to be sent by whoever asks, or is being sent by another.

        `send` holds the others off until `begin` and `keep` are through, or this process ends.
        """
        if self.place(digest).is_dir():
            return "here"
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._folder / f"{digest}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return "busy"
        # It may have come between the look and the lock.
        if self.place(digest).is_dir():
            os.close(lock)
            return "here"
        self._lock = lock
        return "send"

    def begin(self, digest: str, parcel: Parcel) -> Unpacking:
        """Return where to put the model's files; what a killed sender left is removed."""
        return Unpacking(self._folder / f"{digest}.partial", parcel)

    def keep(self, digest: str, unpacking: Unpacking) -> None:
        """Put a model that has arrived whole in its place."""
        place = self.place(digest)
        try:
            os.rename(unpacking.finish(), place)
        finally:
            self.release()

    def release(self) -> None:
        """Let others send, if this one was to."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def place(self, digest: str) -> Path:
        """Return the folder of a model, which exists once the model is whole."""
        return self._folder / digest
