"""Faults: what torch, the kernel and git say when they fail, and what is made of it."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent.attempts import Retries, run_trials
from agent.faults import Fault, classify, named_faults, raise_if_machine, worth_retrying
from agent.records import TrialRecord
from agent.workers import run_metered
from tests.agent.bench import rows, write_base
from tools.child import Child, watch
from tools.dataset import write_dataset
from tools.errors import (
    BakehouseError,
    BudgetError,
    DiskFullError,
    GpuLostError,
    PlannerError,
    RepoError,
    TrainError,
)
from tools.journal import Journal
from tools.lanes.local import run_engine, run_spec
from tools.recipe import TrainRecipe

# As torch, CUDA's runtime and NVML word them.
GPU_LOST = (
    "RuntimeError: No CUDA GPUs are available",
    "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and "
    "installed a driver from http://www.nvidia.com/Download/index.aspx",
    "torch.AcceleratorError: CUDA error: no CUDA-capable device is detected\nCUDA kernel errors might be "
    "asynchronously reported at some other API call, so the stacktrace below might be incorrect.",
    "torch.AcceleratorError: CUDA error: unspecified launch failure\nSearch for `cudaErrorLaunchFailure' in "
    "https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more information.",
    "RuntimeError: CUDA unknown error - this may be due to an incorrectly set up environment, e.g. changing "
    "env variable CUDA_VISIBLE_DEVICES after program start. Setting the available devices to be zero.",
    "torch.AcceleratorError: CUDA error: all CUDA-capable devices are busy or unavailable",
    "torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered",
    "Unable to determine the device handle for GPU0000:0F:00.0: GPU is lost.  Reboot the system to recover",
    "RuntimeError: CUDA driver initialization failed, you might not have a CUDA gpu.",
    "Failed to initialize NVML: Driver/library version mismatch",
)
OUT_OF_MEMORY = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of",
    "RuntimeError: [enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 4096 bytes. Error code 12 (Cannot allocate memory)",
    "MemoryError: ",
    "the engine ended with exit code 137; log: x",
)
DISK_FULL = (
    "OSError: [Errno 28] No space left on device: '/w/.bakehouse/runs/x/iter_0000003'",
    "OSError: [Errno 122] Disk quota exceeded",
    "SafetensorError: Error while serializing: I/O error: No space left on device (os error 28)",
    "fatal: unable to write new_index_file",
    "error: file write error: No space left on device\nfatal: unable to write loose object file",
    "git reset failed (exit 128): fatal: sha1 file '/w/.git/index.lock' write error. Out of diskspace",
    "RuntimeError: [enforce fail at inline_container.cc:664] . unexpected pos 1664 vs 1558",
)


@pytest.mark.parametrize(
    ("texts", "fault"),
    [
        (GPU_LOST, Fault.GPU_LOST),
        (OUT_OF_MEMORY, Fault.OUT_OF_MEMORY),
        (DISK_FULL, Fault.DISK_FULL),
        (
            (
                "torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
                "RuntimeError: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
                "OSError: [Errno 5] Input/output error",
                "the engine ended with exit code 139; log: x",
                "the engine ended with exit code 135; log: x",
            ),
            Fault.TRANSIENT,
        ),
        (
            (
                "TrainError: step 5: loss nan, gradient norm inf: not finite; lower learning_rate",
                "ValueError: target modules ['q'] not found in the base model",
                "ModelError: no model at x",
            ),
            Fault.BROKEN_RECIPE,
        ),
        (("the engine ended with exit code 1; log: x", "something else"), Fault.UNKNOWN),
    ],
)
def test_what_is_said_of_a_fault_tells_which_it_is(texts: tuple[str, ...], fault: Fault) -> None:
    assert {text: classify(text) for text in texts} == dict.fromkeys(texts, fault)


def test_an_error_tells_by_its_number_and_by_what_caused_it() -> None:
    def caused(cause: BaseException) -> BaseException:
        try:
            raise RepoError("git would not take the files") from cause
        except RepoError as err:
            return err

    assert classify(OSError(errno.ENOSPC, "x")) is Fault.DISK_FULL
    assert classify(caused(OSError(errno.EDQUOT, "x"))) is Fault.DISK_FULL
    assert classify(caused(OSError(errno.EIO, "x"))) is Fault.TRANSIENT
    assert classify(MemoryError()) is Fault.OUT_OF_MEMORY
    # The name of what a dead worker is reported with says nothing of why it died.
    assert classify(TrainError("the engine ended with exit code 1")) is Fault.UNKNOWN
    assert [worth_retrying(TrainError(text)) for text in (OUT_OF_MEMORY[3], "x", "ValueError: x")] == [
        True,
        True,
        False,
    ]


def test_a_real_write_over_a_limit_is_a_full_disk_and_says_what_to_do(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "file = open(sys.argv[1], 'wb', buffering=0); file.write(b'x' * 4096); file.write(b'x')"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] in (resource.RLIM_INFINITY, *range(4097, 2**20))
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(tmp_path / "f")], capture_output=True, text=True, check=False
    )
    with pytest.raises(DiskFullError, match="run the same command again") as caught:
        raise_if_machine(done.stderr, folder=tmp_path)
    assert "MiB are free" in str(caught.value)
    assert "File too large" in str(caught.value)


def test_faults_leave_a_block_under_their_own_names_but_a_models_words_do_not(tmp_path: Path) -> None:
    def raised(error: Exception) -> type[BaseException]:
        with pytest.raises((BakehouseError, OSError)) as caught, named_faults(tmp_path):
            raise error
        return caught.type

    assert raised(OSError(errno.ENOSPC, "No space left on device")) is DiskFullError
    assert raised(RepoError("git add failed (exit 128): fatal: No space left on device")) is DiskFullError
    assert raised(TrainError(f"the engine ended with exit code 1; log: x\n{GPU_LOST[0]}")) is GpuLostError
    assert raised(PlannerError("No CUDA GPUs are available")) is PlannerError
    assert raised(FileNotFoundError("x")) is FileNotFoundError


def dying_worker(text: str, tmp_path: Path) -> Mapping[str, Any]:
    """Run a real process in the place of the engine, which says text as an unhandled error does, and dies."""
    code = "import sys; sys.stderr.write(sys.argv[1] + chr(10)); sys.exit(1)"

    def run(_: Path, __: int) -> Any:
        with Child.start([sys.executable, "-P", "-c", code, text], log_path=tmp_path / "log") as child:
            return watch(child, interval_s=1.0)

    spec = {"result_path": str(tmp_path / "result.json")}
    return run_spec(spec, run, spec_path=tmp_path / "s.json", log_path=tmp_path / "log", timeout_s=None)


@pytest.mark.parametrize(
    ("text", "error"),
    [(GPU_LOST[2], GpuLostError), (GPU_LOST[3], GpuLostError), (DISK_FULL[0], DiskFullError)],
)
def test_a_worker_process_that_died_of_the_machine_stops_the_trials(
    tmp_path: Path, text: str, error: type[Exception]
) -> None:
    retries = Retries(Journal(tmp_path / "journal.jsonl", clock=lambda: "2026-11-20T04:49:00Z"))

    def run(_: object) -> list[TrialRecord]:
        dying_worker(text, tmp_path)
        raise AssertionError("the worker lived")

    with pytest.raises(error):
        run_trials([trial("a")], run, retries, key="i0001-train")
    assert not retries.is_taken("i0001-train")


def trial(name: str, **facts: Any) -> TrialRecord:
    given = {"candidate_id": name, "parent_id": "", "recipe": {}, "seed": 17, "run_dir": "runs", **facts}
    return TrialRecord.model_validate({"trial_id": name, "status": "failed", "error": "not run yet", **given})


class Engine:
    """A worker that dies when one trial is with it, as often as told."""

    def __init__(self, poison: str, deaths: int, text: str = "the engine ended with exit code 139") -> None:
        self.poison, self.deaths, self.text = poison, deaths, text
        self.calls: list[list[str]] = []

    def __call__(self, trials: Any) -> list[TrialRecord]:
        names = [one.trial_id for one in trials]
        self.calls.append(names)
        if self.poison in names and self.deaths:
            self.deaths -= 1
            raise TrainError(self.text)
        return [trial(name, status="done", error=None) for name in names]


@pytest.fixture
def retries(tmp_path: Path) -> Retries:
    return Retries(Journal(tmp_path / "journal.jsonl", clock=lambda: "2026-11-20T04:49:00Z"))


def test_what_a_passing_fault_broke_is_tried_once_more_each_by_itself(retries: Retries) -> None:
    engine = Engine("b", deaths=1)
    done = run_trials([trial("a"), trial("b")], engine, retries, key="k")
    assert [one.status for one in done] == ["done", "done"]
    assert engine.calls == [["a", "b"], ["a"], ["b"]]


def test_a_trial_that_kills_its_worker_twice_fails_alone_and_with_its_reason(retries: Retries) -> None:
    done = run_trials([trial("a"), trial("b")], Engine("b", deaths=9), retries, key="k")
    assert [one.status for one in done] == ["done", "failed"]
    assert done[1].error == "transient: the engine ended with exit code 139"


def test_a_run_that_goes_on_does_not_retry_a_second_time(retries: Retries) -> None:
    engine = Engine("b", deaths=9)
    for _ in range(3):
        run_trials([trial("b")], engine, retries, key="k")
    # Twice at first, then once in each run that was cut off and went on.
    assert len(engine.calls) == 4


def test_a_broken_recipe_is_not_tried_again(retries: Retries) -> None:
    engine = Engine(
        "b", deaths=9, text="the engine ended with exit code 1; log: x\nValueError: no such target"
    )
    (done,) = run_trials([trial("b")], engine, retries, key="k")
    assert (len(engine.calls), done.status) == (1, "failed")
    assert done.error == "broken recipe: the engine ended with exit code 1: ValueError: no such target"


def test_a_member_that_a_passing_fault_broke_is_tried_again_and_the_others_are_not(retries: Retries) -> None:
    calls: list[list[str]] = []

    def run(trials: Any) -> list[TrialRecord]:
        calls.append([one.trial_id for one in trials])
        broken = len(calls) == 1
        bad = {"status": "failed", "error": "OSError: [Errno 5] Input/output error"}
        good = {"status": "done", "error": None}
        return [trial(one.trial_id, **(bad if broken and one.trial_id == "b" else good)) for one in trials]

    done = run_trials([trial("a"), trial("b"), trial("c")], run, retries, key="k")
    assert [one.trial_id for one in done] == ["a", "b", "c"]
    assert {one.status for one in done} == {"done"}
    assert calls == [["a", "b", "c"], ["b"]]


def test_what_one_of_several_workers_had_in_hand_when_it_died_is_tried_again(retries: Retries) -> None:
    calls: list[list[str]] = []

    def run(trials: Any) -> list[TrialRecord]:
        calls.append([one.trial_id for one in trials])
        bad = {"error": "the worker died: the engine ended with exit code 137"}
        good = {"status": "done", "error": None}
        return [
            trial(one.trial_id, **(bad if len(calls) == 1 and one.trial_id == "b" else good))
            for one in trials
        ]

    done = run_trials([trial("a"), trial("b")], run, retries, key="k")
    assert {one.status for one in done} == {"done"}
    assert calls == [["a", "b"], ["b"]]


def test_a_member_that_met_a_full_disk_stops_all(retries: Retries) -> None:
    def run(trials: Any) -> list[TrialRecord]:
        return [trial(one.trial_id, error=DISK_FULL[2]) for one in trials]

    with pytest.raises(DiskFullError):
        run_trials([trial("a")], run, retries, key="k")


def test_a_worker_that_a_cap_ended_is_told_from_one_that_died() -> None:
    class Meter:
        def __init__(self) -> None:
            self.noted: list[int | None] = []

        def limit_s(self) -> float:
            return 0.0

        def note_worker(self, wall_s: float, gpus: int | None) -> None:
            self.noted.append(gpus)

    def run(timeout_s: float | None = None) -> Mapping[str, Any]:
        raise TrainError(f"the engine was stopped: over its limit of {timeout_s} s")

    meter = Meter()
    with pytest.raises(BudgetError, match="a cap of the budget"):
        run_metered(meter, run)
    assert meter.noted == [None]
    assert run_metered(None, lambda: {"usage": None}) == {"usage": None}


def test_a_real_worker_is_ended_when_the_cap_is_reached(tmp_path: Path) -> None:
    class Meter:
        def limit_s(self) -> float:
            return 0.5

        def note_worker(self, wall_s: float, gpus: int | None) -> None:
            assert wall_s >= 0.5

    write_dataset(tmp_path / "rows.jsonl", rows("train", [("red", "stop")]))
    recipe = TrainRecipe(
        base_model=str(write_base(tmp_path / "base")),
        dataset_jsonl=str(tmp_path / "rows.jsonl"),
        output_dir=str(tmp_path / "out"),
        max_steps=1_000_000,
    )
    spec = {
        "kind": "train",
        "base_model": recipe.base_model,
        "mode": "full",
        "members": [{"trial_id": "t1", "recipe": recipe.to_dict(), "run_dir": str(tmp_path / "t1")}],
        "result_path": str(tmp_path / "r.json"),
    }
    run = partial(run_engine, spec, spec_path=tmp_path / "s.json", log_path=tmp_path / "log")
    with pytest.raises(BudgetError, match="a cap of the budget ended the worker") as caught:
        run_metered(Meter(), run)
    assert "over its limit" in str(caught.value.__cause__)


def test_a_result_says_what_its_worker_held() -> None:
    from tools.engine.results import TrainOutcome
    from tools.engine.worker import _with_usage

    made = _with_usage(TrainOutcome((), 0.0, 0), began=0.0)
    assert made.usage.gpus in (0, 1)
    assert made.usage.wall_s > 0
