"""Faults: what ended a step or a worker, told from what it left in words."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Final

from tools.errors import BakehouseError, DiskFullError, GpuLostError, PlannerError, TrainError

__all__ = ["Fault", "classify", "named_faults", "raise_if_machine", "worth_retrying"]


class Fault(StrEnum):
    """Kinds of faults, each with something else to do about it."""

    DISK_FULL = "disk full"
    GPU_LOST = "GPU lost"
    OUT_OF_MEMORY = "out of memory"
    BROKEN_RECIPE = "broken recipe"
    """Comes again with every attempt."""
    TRANSIENT = "transient"
    """May not come again: a killed process, a device or a file system that stumbled."""
    UNKNOWN = "unknown"


_DISK_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_TRANSIENT_ERRNOS: Final = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ECONNRESET}
)

# In the order in which they are asked: a full disk also breaks what comes after it.
_PATTERNS: Final = (
    (
        Fault.DISK_FULL,
        r"no space left on device|out of disk ?space|disk quota exceeded|file too large|"
        r"\[errno (28|122|27)\]|os error (28|122|27)\b|"
        r"database or disk is full|file system full|unable to write (new_index_file|loose object file)|"
        # What torch.save says where a write came up short.
        r"pytorchstreamwriter failed writing|unexpected pos \d+ vs \d+",
    ),
    (
        Fault.GPU_LOST,
        r"no cuda-capable device is detected|no cuda gpus are available|found no nvidia driver|"
        r"unspecified launch failure|cuda driver initialization failed|cuda unknown error|"
        r"(all )?cuda-capable device\(s\) is/are busy or unavailable|devices are busy or unavailable|"
        r"unable to determine the device handle|gpu is lost|fallen off the bus|"
        r"nvml.{0,40}(lost|uninitialized)|"
        r"failed to initialize nvml|driver/library version mismatch|invalid device ordinal|"
        r"uncorrectable ecc error|system not yet initialized|cuda driver version is insufficient|"
        r"unexpected error from cudagetdevicecount|hip error: no rocm-capable device",
    ),
    (
        Fault.OUT_OF_MEMORY,
        r"outofmemoryerror|out of memory|can't allocate memory|cannot allocate memory|\bmemoryerror\b|"
        # Nobody but the kernel's out-of-memory killer sends it to a worker.
        r"ended with exit code 137\b",
    ),
    (
        Fault.TRANSIENT,
        r"cuda error|cudnn_status|cudnn error|cublas_status|nccl error|hip error|mps backend error|"
        r"input/output error|\[errno (5|116|110|11|104)\]|os error (5|116|110)\b|stale file handle|"
        r"connection (was )?(reset|lost)|bus error|segmentation fault|"
        r"ended with exit code 1(3[0-689]|[4-5]\d)\b",
    ),
    (
        Fault.BROKEN_RECIPE,
        r"\b(recipe|patch|task|dataset|leak|chat|model|missingextra|hardware|capability|scorer|evaluation|"
        r"train|value|type|key|index|attribute|notimplemented|assertion|filenotfound|import)error:",
    ),
)
_COMPILED: Final = tuple((fault, re.compile(pattern, re.IGNORECASE)) for fault, pattern in _PATTERNS)

_WHAT_TO_DO: Final = {
    Fault.DISK_FULL: "the disk is full; free some space (old runs lie below .bakehouse/runs), and run the "
    "same command again: it goes on from here",
    Fault.GPU_LOST: "the GPU is gone; look at `nvidia-smi`, mend the driver or restart the machine, and run "
    "the same command again: it goes on from here",
}


def classify(error: BaseException | str) -> Fault:
    """Return what kind of fault an error is, or the text that a worker left of one."""
    if isinstance(error, str):
        return next((fault for fault, pattern in _COMPILED if pattern.search(error)), Fault.UNKNOWN)
    if isinstance(error, DiskFullError):
        return Fault.DISK_FULL
    if isinstance(error, GpuLostError):
        return Fault.GPU_LOST
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno in _DISK_ERRNOS:
            return Fault.DISK_FULL
        if isinstance(one, OSError) and one.errno in _TRANSIENT_ERRNOS:
            return Fault.TRANSIENT
        if isinstance(one, MemoryError):
            return Fault.OUT_OF_MEMORY
    # A worker's end says in its text what was wrong, and its own type says nothing.
    return classify(str(error) if isinstance(error, TrainError) else f"{type(error).__name__}: {error}")


def worth_retrying(error: BaseException | str) -> bool:
    """Return whether another attempt of a whole worker may go better."""
    return classify(error) in (Fault.OUT_OF_MEMORY, Fault.TRANSIENT, Fault.UNKNOWN)


def raise_if_machine(error: BaseException | str | None, *, folder: Path | None = None) -> None:
    """Raise where the machine is at fault and nothing that comes after could go better.

    Args:
        folder: Where the free space is looked up that the message tells.
    Raises:
        DiskFullError: the disk is full.
        GpuLostError: the GPU is gone.
    """
    if error is None:
        return
    fault = classify(error)
    cause = error if isinstance(error, BaseException) else None
    if fault is Fault.DISK_FULL:
        raise DiskFullError(
            f"{_WHAT_TO_DO[fault]}{_free_space(folder)}; it was: {_shorten(error)}"
        ) from cause
    if fault is Fault.GPU_LOST:
        raise GpuLostError(f"{_WHAT_TO_DO[fault]}; it was: {_shorten(error)}") from cause


@contextlib.contextmanager
def named_faults(folder: Path) -> Iterator[None]:
    """Let a full disk and a vanished GPU leave the block under their own names, whoever met them."""
    try:
        yield
    except (DiskFullError, GpuLostError, PlannerError):
        # A planner's words come from a model: they say nothing of this machine.
        raise
    except (BakehouseError, OSError, MemoryError) as err:
        raise_if_machine(err, folder=folder)
        raise


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _free_space(folder: Path | None) -> str:
    if folder is None:
        return ""
    try:
        return f" ({shutil.disk_usage(folder).free / 2**20:.0f} MiB are free at {folder})"
    except OSError:
        return ""


def _shorten(error: BaseException | str) -> str:
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    lines = [line for line in text.splitlines() if line.strip()]
    for fault, pattern in _COMPILED[:2]:
        told = next((line for line in lines if pattern.search(line)), None)
        if told is not None:
            return f"{fault}: {told.strip()[:400]}" if told is not lines[0] else told.strip()[:400]
    return " ".join(lines)[:400]
