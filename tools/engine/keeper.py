"""The one base that a resident worker keeps between specs."""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from tools.engine.base import LoadedBase, load_base
from tools.engine.memory import give_back_memory, is_memory_short
from tools.engine.process_state import RandomState
from tools.recipe import Quantization

__all__ = ["BaseKeeper"]

logger = logging.getLogger(__name__)

_FileMark: TypeAlias = tuple[str, int, int, int]


@dataclass(frozen=True)
class _Identity:
    """What must be the same for a loaded base to serve again."""

    name: str
    dtype: str
    quantization: Quantization
    folder: str
    """Relative names mean something else in another working folder."""
    files: tuple[_FileMark, ...]


class BaseKeeper:
    """Hands out the base that it holds, or loads another one in its place. Never two at once."""

    def __init__(self) -> None:
        self._base: LoadedBase | None = None
        self._identity: _Identity | None = None
        self._random: RandomState | None = None

    def __call__(self, name: str, dtype: str, quantization: Quantization = "none") -> LoadedBase:
        """Return a base as it is right after loading, random numbers included.

        Raises:
            ModelError: it cannot be loaded; no base is held then.
        """
        identity = _Identity(name, dtype, quantization, os.getcwd(), _file_marks(name))
        if self._base is not None and self._random is not None and identity == self._identity:
            self._random.restore()
            return dataclasses.replace(self._base, load_s=0.0)
        self.drop("another base is asked for")
        self._base = load_base(name, dtype, quantization=quantization)
        self._identity = identity
        self._random = RandomState.capture()
        return self._base

    def tidy(self) -> bool:
        """Remove what a spec left on the base; False when the device can no longer be used."""
        if self._base is not None:
            self._base.stack.vacate()
            try:
                _check_device(self._base.device)
            except RuntimeError as err:
                # After some errors a CUDA context refuses all further work, in this process only.
                logger.warning("the device is lost to this process: %s", err)
                return False
        give_back_memory()
        self.drop_if_short()
        return True

    def drop_if_short(self) -> None:
        """Let go of the base when the machine runs out of memory."""
        if self._base is not None and is_memory_short(self._base.device):
            self.drop("memory is short")

    def drop(self, reason: str) -> None:
        """Let go of the base, if one is held."""
        if self._base is None:
            return
        logger.info("let go of %s: %s", self._base.name, reason)
        self._base = self._identity = self._random = None
        give_back_memory()


def _file_marks(name: str) -> tuple[_FileMark, ...]:
    """Return what tells the files of a base from later ones of the same name; none for a Hub id."""
    path = Path(name).expanduser()
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        marks = [(file.name, file.stat()) for file in files]
    except OSError:
        return ()
    return tuple((file, found.st_ino, found.st_size, found.st_mtime_ns) for file, found in marks)


def _check_device(device: torch.device) -> None:
    probe: Any = torch.ones(1, device=device)
    if float(probe + probe) != 2.0:
        raise RuntimeError(f"{device} computes 1 + 1 wrongly")
