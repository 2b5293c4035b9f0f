"""What a machine has, read from a folder that stands for its root and an nvidia-smi that really runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.hardware import Hardware, detect

GIB = 2**30
NO_GPU = {"PATH": "/nonexistent"}


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def _meminfo(total_gib: int, available_gib: int) -> str:
    free = f"MemFree:          1024 kB\nMemAvailable:   {available_gib * 2**20} kB\n"
    return f"MemTotal:       {total_gib * 2**20} kB\n{free}"


def _machine(root: Path, **files: str) -> Path:
    return _write(root, {"proc/meminfo": _meminfo(64, 48), **files})


def _with_smi(folder: Path, stdout: str, code: int = 0) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    script = folder / "nvidia-smi"
    (folder / "answer").write_text(stdout, encoding="utf-8")
    script.write_text(f'#!/bin/sh\n/bin/cat "{folder}/answer"\nexit {code}\n', encoding="utf-8")
    script.chmod(0o755)
    return {"PATH": str(folder)}


H200 = "0, GPU-aaa, NVIDIA H200, 143771, 143201, 9.0, 580.95.05\n"
L4 = "1, GPU-bbb, NVIDIA L4, 23034, 22000, 8.9, 580.95.05\n"
SPARK = "0, GPU-ccc, NVIDIA GB10, [N/A], [N/A], 12.1, 580.95.05\n"


def test_this_machine_is_described_without_loading_torch() -> None:
    code = (
        "import sys; from tools.hardware import detect; found = detect(); "
        "assert 0 < found.memory_available_bytes <= found.memory_total_bytes; assert found.cores >= 1; "
        "assert 'torch' not in sys.modules and 'pydantic' not in sys.modules; print(found.describe())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "GiB free" in done.stdout


def test_available_memory_is_memavailable(tmp_path: Path) -> None:
    found = detect(root=_machine(tmp_path), environ=NO_GPU)
    assert (found.memory_total_bytes, found.memory_available_bytes) == (64 * GIB, 48 * GIB)
    assert (found.kind, found.unified, found.driver) == ("cpu", False, None)


def test_the_tightest_control_group_above_the_process_counts(tmp_path: Path) -> None:
    root = _machine(tmp_path)
    _write(
        root,
        {
            "proc/self/cgroup": "0::/outer/inner\n",
            "sys/fs/cgroup/outer/memory.max": str(16 * GIB),
            "sys/fs/cgroup/outer/memory.current": str(10 * GIB),
            "sys/fs/cgroup/outer/memory.stat": f"anon 5\ninactive_file {4 * GIB}\n",
            "sys/fs/cgroup/outer/inner/memory.max": "max\n",
        },
    )
    found = detect(root=root, environ=NO_GPU)
    assert found.memory_total_bytes == 16 * GIB
    assert found.memory_available_bytes == 10 * GIB


def test_the_limit_of_a_version_1_group_seen_from_inside_a_container_counts(tmp_path: Path) -> None:
    root = _machine(tmp_path)
    _write(
        root,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(8 * GIB),
            "sys/fs/cgroup/memory/memory.usage_in_bytes": str(9 * GIB),
        },
    )
    found = detect(root=root, environ=NO_GPU)
    assert (found.memory_total_bytes, found.memory_available_bytes) == (8 * GIB, 0)


def test_a_cpu_quota_lowers_the_cores(tmp_path: Path) -> None:
    root = _write(_machine(tmp_path), {"sys/fs/cgroup/cpu.max": "50000 100000\n"})
    assert detect(root=root, environ=NO_GPU).cores == 1


@pytest.mark.parametrize(
    ("cpuinfo", "bf16"),
    [
        ("model name\t: Xeon\nflags\t\t: fpu avx512f amx_bf16 amx_tile\n", True),
        ("model name\t: EPYC\nflags\t\t: fpu avx512_bf16\n", True),
        ("model name\t: Old\nflags\t\t: fpu avx2\n", False),
        ("Model\t: Grace\nFeatures\t: fp asimd i8mm bf16\n", True),
        ("", False),
    ],
)
def test_bf16_of_a_cpu_is_read_from_its_flags(tmp_path: Path, cpuinfo: str, bf16: bool) -> None:
    root = _write(_machine(tmp_path), {"proc/cpuinfo": cpuinfo})
    assert detect(root=root, environ=NO_GPU).bf16 is bf16


def test_a_gpu_brings_its_own_memory(tmp_path: Path) -> None:
    found = detect(root=_machine(tmp_path), environ=_with_smi(tmp_path / "bin", H200 + L4))
    assert found == Hardware(
        kind="cuda",
        name="NVIDIA H200",
        memory_total_bytes=143771 * 2**20,
        memory_available_bytes=143201 * 2**20,
        cores=found.cores,
        bf16=True,
        driver="580.95.05",
        compute_capability="9.0",
    )


def test_a_gpu_that_shares_memory_is_read_from_memavailable(tmp_path: Path) -> None:
    found = detect(root=_machine(tmp_path), environ=_with_smi(tmp_path / "bin", SPARK))
    assert found.unified
    assert found.memory_available_bytes == 48 * GIB
    assert "shared with the GPU" in found.describe()


@pytest.mark.parametrize(
    ("visible", "name"),
    [("1", "NVIDIA L4"), ("GPU-bbb,0", "NVIDIA L4"), ("MIG-1234", "NVIDIA H200")],
)
def test_the_first_visible_gpu_counts(tmp_path: Path, visible: str, name: str) -> None:
    environ = {**_with_smi(tmp_path / "bin", H200 + L4), "CUDA_VISIBLE_DEVICES": visible}
    assert detect(root=_machine(tmp_path), environ=environ).name == name


@pytest.mark.parametrize("visible", ["", "-1", "7"])
def test_a_hidden_gpu_is_none(tmp_path: Path, visible: str) -> None:
    environ = {**_with_smi(tmp_path / "bin", H200), "CUDA_VISIBLE_DEVICES": visible}
    assert detect(root=_machine(tmp_path), environ=environ).kind == "cpu"


@pytest.mark.parametrize(
    ("stdout", "code"), [("", 0), (H200, 9), ("No devices were found\n", 0), (",,,\n", 0)]
)
def test_an_nvidia_smi_that_fails_or_babbles_means_no_gpu(tmp_path: Path, stdout: str, code: int) -> None:
    found = detect(root=_machine(tmp_path), environ=_with_smi(tmp_path / "bin", stdout, code))
    assert found.kind == "cpu"


def test_an_nvidia_smi_that_cannot_run_is_told_and_means_no_gpu(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environ = _with_smi(tmp_path / "bin", H200)
    script = tmp_path / "bin" / "nvidia-smi"
    script.write_bytes(b"\x7fELF not really")
    assert detect(root=_machine(tmp_path), environ=environ).kind == "cpu"
    assert "nvidia-smi cannot be asked" in caplog.text


def test_torch_has_the_last_word_when_asked(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    environ = _with_smi(tmp_path / "bin", H200)
    found = detect(root=_machine(tmp_path), environ=environ, with_torch=True)
    assert found.kind == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_machine_without_proc_is_asked_through_psutil(tmp_path: Path) -> None:
    found = detect(root=tmp_path, environ={"PATH": os.devnull})
    assert 0 < found.memory_available_bytes <= found.memory_total_bytes
