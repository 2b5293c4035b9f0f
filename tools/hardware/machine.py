"""The hardware: what this machine can train with, and how much memory is really free."""

from __future__ import annotations

import csv
import logging
import math
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Literal

__all__ = ["Hardware", "Memory", "detect", "read_memory", "visible_gpus"]

_LOG = logging.getLogger(__name__)
_GIB: Final = 2**30
_SMI_TIMEOUT_S: Final = 20
_SMI_FIELDS: Final = ("index", "uuid", "name", "memory.total", "memory.free", "compute_cap", "driver_version")


@dataclass(frozen=True)
class Hardware:
    """One machine as a trainer sees it. Memory is the device's own, or the machine's where they share."""

    kind: Literal["cpu", "cuda", "mps"]
    name: str
    memory_total_bytes: int
    memory_available_bytes: int
    cores: int
    bf16: bool
    """Whether the device multiplies bfloat16 natively."""
    unified: bool = False
    """CPU and GPU share one memory, as on a DGX Spark or an Apple chip."""
    driver: str | None = None
    compute_capability: str | None = None

    def describe(self) -> str:
        """Return one line for a person."""
        memory = f"{self.memory_available_bytes / _GIB:.1f} of {self.memory_total_bytes / _GIB:.1f} GiB free"
        parts = [self.name, self.kind, memory + (" (shared with the GPU)" if self.unified else "")]
        parts += [f"{self.cores} cores", "bf16" if self.bf16 else "no native bf16"]
        return ", ".join([*parts, f"driver {self.driver}"] if self.driver else parts)


def detect(
    *, root: Path = Path("/"), environ: Mapping[str, str] = os.environ, with_torch: bool = False
) -> Hardware:
    """Look at the machine: /proc, the control groups and nvidia-smi, without loading torch.

    Args:
        root: Where /proc and /sys lie.
        environ: Gives PATH and CUDA_VISIBLE_DEVICES.
        with_torch: Also ask torch whether it can use the GPU; a CPU build of torch on a GPU
            machine trains on the CPU. Loads torch.
    """
    memory = read_memory(root)
    cores = _count_cores(root)
    gpu = _query_gpu(environ)
    if gpu is not None and (not with_torch or _torch_can_use("cuda")):
        return _cuda_hardware(gpu, memory, cores)
    on_apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    if on_apple and (not with_torch or _torch_can_use("mps")):
        newest = int(platform.mac_ver()[0].partition(".")[0] or 0) >= 14
        return Hardware("mps", _cpu_name(root), memory.total, memory.available, cores, newest, unified=True)
    return Hardware("cpu", _cpu_name(root), memory.total, memory.available, cores, _cpu_has_bf16(root))


@dataclass(frozen=True)
class Memory:
    """Bytes that there are, and that are free for a new program."""

    total: int
    available: int


@dataclass(frozen=True)
class _Gpu:
    name: str
    memory: Memory | None
    """None where the driver reports none: the GPU has no memory of its own."""
    compute_capability: str
    driver: str


def _cuda_hardware(gpu: _Gpu, memory: Memory, cores: int) -> Hardware:
    major = gpu.compute_capability.partition(".")[0]
    # On unified memory NVML reports nothing, and cudaMemGetInfo counts page cache as used.
    own = memory if gpu.memory is None else gpu.memory
    return Hardware(
        kind="cuda",
        name=gpu.name,
        memory_total_bytes=own.total,
        memory_available_bytes=own.available,
        cores=cores,
        bf16=major.isdigit() and int(major) >= 8,
        unified=gpu.memory is None,
        driver=gpu.driver,
        compute_capability=gpu.compute_capability,
    )


def read_memory(root: Path = Path("/")) -> Memory:
    """Return the machine's memory, or its control group's where that is less."""
    fields = _read_table(root / "proc/meminfo")
    total, available = (_kibibytes(fields.get(name, "")) for name in ("MemTotal", "MemAvailable"))
    if total is None or available is None:
        import psutil

        machine = psutil.virtual_memory()
        total, available = machine.total, machine.available
    for limit, used in _cgroup_limits(root):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return Memory(total, available)


def _cgroup_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and unreclaimable use of each control group above this process."""
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "":
            base, limit_file, used_file, cache = (
                "sys/fs/cgroup",
                "memory.max",
                "memory.current",
                "inactive_file",
            )
        elif "memory" in controllers.split(","):
            base, limit_file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            used_file, cache = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        # Inside a container the path counts from the host, while the mount shows the group at its top.
        inside = PurePosixPath(group.lstrip("/"))
        for part in (inside, *inside.parents):
            folder = root / base / part
            limit = _whole(_read_text(folder / limit_file))
            if limit is not None:
                used = _whole(_read_text(folder / used_file)) or 0
                yield limit, max(0, used - (_whole(_read_table(folder / "memory.stat").get(cache, "")) or 0))


def _count_cores(root: Path) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read_text(root / "sys/fs/cgroup/cpu.max").strip().partition(" ")
    if (most := _whole(quota)) and (each := _whole(period)):
        cores = min(cores, max(1, math.ceil(most / each)))
    return cores


def _cpu_name(root: Path) -> str:
    table = _read_table(root / "proc/cpuinfo")
    return (
        table.get("model name") or table.get("Model") or platform.processor() or platform.machine() or "CPU"
    )


def _cpu_has_bf16(root: Path) -> bool:
    table = _read_table(root / "proc/cpuinfo")
    flags = set((table.get("flags") or table.get("Features") or "").split())
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def visible_gpus(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return what CUDA_VISIBLE_DEVICES would call each GPU that this process may use, torch unasked."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = tuple(part.strip() for part in visible.split(",") if part.strip())
        return () if not named or named[0] in ("-1", "NoDevFiles") else named
    return tuple(row["uuid"] for row in _ask_nvidia_smi(environ))


def _query_gpu(environ: Mapping[str, str]) -> _Gpu | None:
    """Return the first GPU that this process may use, or None."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return None
    rows = _ask_nvidia_smi(environ)
    if visible is not None:
        first = visible.split(",")[0].strip()
        # A MIG slice has a name of its own that the table of whole GPUs does not list.
        rows = [row for row in rows if first in (row["index"], row["uuid"])] or (
            rows if first.startswith("MIG-") else []
        )
    if not rows:
        return None
    row = rows[0]
    sizes = [_whole(row[field]) for field in ("memory.total", "memory.free")]
    total, free = sizes
    memory = None if total is None or free is None else Memory(total * 2**20, free * 2**20)
    return _Gpu(row["name"], memory, row["compute_cap"], row["driver_version"])


def _ask_nvidia_smi(environ: Mapping[str, str]) -> list[dict[str, str]]:
    command = ["nvidia-smi", f"--query-gpu={','.join(_SMI_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SMI_TIMEOUT_S, check=False, env=dict(environ)
        )
    except FileNotFoundError:
        return []
    except (OSError, subprocess.TimeoutExpired) as err:
        _LOG.warning("nvidia-smi cannot be asked (%s); the machine counts as having no GPU", err)
        return []
    if done.returncode != 0:
        return []
    rows = csv.reader(done.stdout.splitlines(), skipinitialspace=True)
    return [dict(zip(_SMI_FIELDS, row, strict=True)) for row in rows if len(row) == len(_SMI_FIELDS)]


def _torch_can_use(kind: Literal["cuda", "mps"]) -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _read_table(path: Path) -> dict[str, str]:
    """Read lines of `name: value` or `name value`; of a name given twice the first counts."""
    table: dict[str, str] = {}
    for line in _read_text(path).splitlines():
        name, colon, value = line.partition(":")
        if not colon:
            name, _, value = line.partition(" ")
        table.setdefault(name.strip(), value.strip())
    return table


def _whole(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _kibibytes(text: str) -> int | None:
    number = _whole(text.removesuffix("kB"))
    return None if number is None else number * 1024
