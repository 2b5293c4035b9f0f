"""What a spec changes in its process, put back before the next one runs there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from tools.engine.memory import cuda_is_in_use

__all__ = ["ProcessState", "RandomState"]

_SCORER_PREFIX: Final = "bakehouse_scorer_"


@dataclass(frozen=True)
class RandomState:
    """The state of torch's own generators, on every device in use."""

    cpu: torch.Tensor
    cuda: tuple[torch.Tensor, ...]

    @classmethod
    def capture(cls) -> RandomState:
        """Return the present state."""
        on_cuda = torch.cuda.get_rng_state_all() if cuda_is_in_use() else []
        return cls(torch.get_rng_state(), tuple(on_cuda))

    def restore(self) -> None:
        """Bring this state back."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(list(self.cuda))


@dataclass(frozen=True)
class ProcessState:
    """Threads, random numbers, and what a workspace's own scorer can reach: folder, environment, modules."""

    threads: int
    random: RandomState
    environment: dict[str, str]
    import_path: tuple[str, ...]

    @classmethod
    def capture(cls) -> ProcessState:
        """Return the present state."""
        return cls(torch.get_num_threads(), RandomState.capture(), dict(os.environ), tuple(sys.path))

    def restore(self, folder: str) -> None:
        """Bring this state back, in a working folder.

        Raises:
            OSError: the folder is gone.
        """
        os.chdir(folder)
        torch.set_num_threads(self.threads)
        self.random.restore()
        if dict(os.environ) != self.environment:
            os.environ.clear()
            os.environ.update(self.environment)
        sys.path[:] = self.import_path
        for name in tuple(_scorer_modules()):
            del sys.modules[name]


def _scorer_modules() -> Iterator[str]:
    """Yield the workspace's own scorers and the modules beside them: they may change on disk."""
    folders = {_folder(module) for name, module in _modules() if name.startswith(_SCORER_PREFIX)}
    installed = [Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parent.parent]
    for name, module in _modules() if folders else ():
        folder = _folder(module)
        if folder is None or any(folder.is_relative_to(home) for home in installed):
            continue
        if any(home is not None and folder.is_relative_to(home) for home in folders):
            yield name


def _modules() -> list[tuple[str, Any]]:
    return list(sys.modules.items())


def _folder(module: Any) -> Path | None:
    # Through its namespace: some modules load others when any attribute is asked for.
    file = getattr(module, "__dict__", {}).get("__file__")
    return Path(file).parent.resolve() if isinstance(file, str) else None
