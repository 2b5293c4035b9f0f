"""The memory of this process: its peak, what is left of the machine's, and giving it back."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path
from typing import Final

import torch

from tools.hardware.machine import read_memory

__all__ = [
    "cuda_is_in_use",
    "give_back_memory",
    "is_memory_short",
    "is_out_of_memory",
    "peak_memory_bytes",
    "reset_peak_memory",
]

# Free memory below this part of all is short. Where CPU and GPU share it, running out can take
# the whole machine down.
_FLOOR: Final = 1 / 16
# What libraries below torch say in a plain RuntimeError; torch's allocator of CUDA has a type of its own.
_REFUSALS: Final = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "could not create a memory",
)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak: of the allocator on CUDA, of the whole process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def is_out_of_memory(err: BaseException) -> bool:
    """Return whether err says that memory could not be had, on any device."""
    if isinstance(err, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(err).lower()
    return isinstance(err, RuntimeError) and any(refusal in text for refusal in _REFUSALS)


def cuda_is_in_use() -> bool:
    """Return whether this process has a CUDA context; asking makes none."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def reset_peak_memory() -> None:
    """Count the peak from here, where the system can; elsewhere it stays the process's."""
    if cuda_is_in_use():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def is_memory_short(device: torch.device) -> bool:
    """Return whether other programs are about to run out of the memory that a base takes up."""
    memory = read_memory()
    if memory.available < _FLOOR * memory.total:
        return True
    if device.type != "cuda" or torch.cuda.get_device_properties(device).is_integrated:
        return False
    free, total = torch.cuda.mem_get_info(device)
    return bool(free < _FLOOR * total)


def give_back_memory() -> None:
    """Return to the system what Python and the allocators hold without using it."""
    gc.collect()
    if cuda_is_in_use():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
    # glibc keeps freed blocks below the top of its heap unless told.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
