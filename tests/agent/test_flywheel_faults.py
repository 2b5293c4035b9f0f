"""A flywheel whose disk fills up, whose GPU goes away, whose workers die: real training on a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.flywheel import FlywheelResult, run_flywheel
from agent.planners.fixed import FixedPlanner
from agent.progress import Event
from tests.agent.bench import make_workspace, run_here, write_base, write_plan
from tests.git_project import isolate_git
from tools.clock import utc_now
from tools.errors import DiskFullError, GpuLostError, TrainError
from tools.hardware import detect
from tools.journal import Journal
from tools.lineage import FailureLabel, LineageStore
from tools.workspace import Workspace

PATCHES = ({"learning_rate": 2e-4}, {"lora_alpha": 8}, {"weight_decay": 0.1}, {"learning_rate": 3e-4})
KILLED = "the engine ended with exit code 139; log: x"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    isolate_git(monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base model"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 24 MiB; skipped where none may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ("mount", "-t", "tmpfs", "-o", "size=24m", "none", str(place)), capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    yield place
    subprocess.run(("umount", "-l", str(place)), check=True)


class Disk:
    """Fills a file system up to the last page, and frees it again."""

    def __init__(self, place: Path) -> None:
        self._filler = place / "filler"

    def fill(self) -> None:
        with self._filler.open("wb", buffering=0) as file:
            for size in (2**20, 4096):
                try:
                    while file.write(b"\0" * size) == size:
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        self._filler.unlink()


def turn(workspace: Workspace, place: Path, n_patches: int = 2, **options: Any) -> FlywheelResult:
    plan = write_plan(place / "plan.yaml", *PATCHES[:n_patches])
    return run_flywheel(workspace, planner=FixedPlanner(plan), **{"run_worker": run_here, **options})


def prepare(place: Path, base: Path, **task: Any) -> Workspace:
    root = place / "w"
    root.mkdir()
    return make_workspace(root, base, **{"seeds": [17], **task})


def git(workspace: Workspace, *arguments: str) -> str:
    done = subprocess.run(("git", *arguments), cwd=workspace.root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def events_of(workspace: Workspace, name: str) -> list[str]:
    journal = Journal(workspace.journal_file, clock=utc_now)
    return [event.key for event in journal.events() if event.event == name]


def heartbeat(workspace: Workspace) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace.state_dir / "flywheel_heartbeat.json").read_text())
    return found


@pytest.mark.parametrize("step", ["train", "evaluate", "commit"])
def test_a_full_disk_stops_the_loop_and_with_space_again_it_goes_on(
    base: Path, small_disk: Path, tmp_path: Path, step: str
) -> None:
    workspace, disk = prepare(small_disk, base), Disk(small_disk)

    def fill(event: Event) -> None:
        if (event.step, event.kind) == (step, "started"):
            disk.fill()

    with pytest.raises(DiskFullError, match="run the same command again"):
        turn(workspace, tmp_path, notify=fill)
    assert git(workspace, "rev-list", "--count", "main..bakehouse/colours") == "0"
    disk.free()
    result = turn(workspace, tmp_path)
    (record,) = result.records
    assert record.iteration_id == "i0001"
    assert [trial.scored for trial in record.own_trials] == [True, True, True]
    assert git(workspace, "rev-list", "--count", "main..bakehouse/colours") == "1"
    assert git(workspace, "fsck", "--strict", "--no-dangling") == ""
    # The machine's fault is nobody's retry.
    assert events_of(workspace, "retry") == []


def test_a_vanished_gpu_stops_the_loop_at_once_and_mended_it_goes_on(base: Path, tmp_path: Path) -> None:
    workspace = prepare(tmp_path, base)

    def gone(spec: Mapping[str, Any], **paths: Any) -> Mapping[str, Any]:
        result = dict(run_here(spec, **paths))
        if spec["kind"] != "train" or "look1" not in str(paths["spec_path"]):
            return result
        told = "AcceleratorError: CUDA error: unspecified launch failure"
        broken = [
            {**member, "status": "failed", "error": told, "adapter_dir": None} for member in result["members"]
        ]
        return {**result, "members": broken}

    with pytest.raises(GpuLostError, match="nvidia-smi"):
        turn(workspace, tmp_path, run_worker=gone)
    beat = heartbeat(workspace)
    assert beat["status"] == "error"
    assert beat["error"].startswith("GpuLostError")
    assert git(workspace, "rev-list", "--count", "main..bakehouse/colours") == "0"
    assert [trial.scored for trial in turn(workspace, tmp_path).records[0].own_trials] == [True] * 3


def test_a_worker_that_falls_back_to_the_cpu_is_a_vanished_gpu(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, real = prepare(tmp_path, base), detect()
    monkeypatch.setattr("agent.flywheel.detect", lambda: replace(real, kind="cuda"))

    def falls_back(spec: Mapping[str, Any], **paths: Any) -> Mapping[str, Any]:
        gpus = 0 if "look1" in str(paths["spec_path"]) else 1
        return {**run_here(spec, **paths), "usage": {"wall_s": 1.0, "gpus": gpus}}

    with pytest.raises(GpuLostError, match="a worker found 0 GPU"):
        turn(workspace, tmp_path, run_worker=falls_back)
    # Nor is a step begun while it is gone.
    monkeypatch.setattr("agent.flywheel.detect", lambda: replace(real, kind="cpu"))
    with pytest.raises(GpuLostError, match="this machine found 0 GPU"):
        turn(workspace, tmp_path, run_worker=falls_back)


def test_a_worker_that_dies_once_costs_one_retry_and_no_trial(base: Path, tmp_path: Path) -> None:
    workspace, deaths = prepare(tmp_path, base), []

    def dies_once(spec: Mapping[str, Any], **paths: Any) -> Mapping[str, Any]:
        if spec["kind"] == "train" and "look1" in str(paths["spec_path"]) and not deaths:
            deaths.append(spec)
            raise TrainError(KILLED)
        return run_here(spec, **paths)

    (record,) = turn(workspace, tmp_path, run_worker=dies_once).records
    assert [trial.scored for trial in record.own_trials] == [True] * 3
    assert events_of(workspace, "retry") == ["i0001-look1-train"]


def test_a_run_cut_off_in_its_retry_does_not_retry_again(base: Path, tmp_path: Path) -> None:
    workspace = prepare(tmp_path, base)
    calls: list[int] = []

    def dies(spec: Mapping[str, Any], **paths: Any) -> Mapping[str, Any]:
        if spec["kind"] == "train" and "look1" in str(paths["spec_path"]):
            calls.append(len(spec["members"]))
            if len(calls) == 2:
                raise KeyboardInterrupt
            raise TrainError(KILLED)
        return run_here(spec, **paths)

    with pytest.raises(KeyboardInterrupt):
        turn(workspace, tmp_path, run_worker=dies)
    (record,) = turn(workspace, tmp_path, run_worker=dies).records
    # Both together, the first by itself, cut off there; then each by itself, and no more.
    assert calls == [2, 1, 1, 1]
    assert events_of(workspace, "retry") == ["i0001-look1-train"]
    assert [trial.status for trial in record.own_trials] == ["done", "failed", "failed"]


def test_crashed_trials_are_rows_with_their_reason_and_two_iterations_of_them_are_a_storm(
    base: Path, tmp_path: Path
) -> None:
    workspace = prepare(tmp_path, base, bakeoff={"candidates": 1, "iterations": 5})

    def dies(spec: Mapping[str, Any], **paths: Any) -> Mapping[str, Any]:
        if spec["kind"] == "train" and "look1" in str(paths["spec_path"]):
            raise TrainError(KILLED)
        return run_here(spec, **paths)

    def interrupt(event: Event) -> None:
        if (event.iteration_id, event.step, event.kind) == ("i0002", "plan", "started"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        turn(workspace, tmp_path, 4, run_worker=dies, notify=interrupt)
    # A storm is one also where the run was cut off in the middle of it.
    result = turn(workspace, tmp_path, 4, run_worker=dies)
    assert result.stopped_by == "error storm"
    assert [record.iteration_id for record in result.records] == ["i0002"]
    rows = LineageStore(workspace.worktree_dir / "lineage", lower_is_better=False).all_trials()
    crashed = [row for row in rows if row.status is FailureLabel.CRASH]
    assert [row.exp_id for row in crashed] == ["i0001-c1-s17", "i0002-c1-s17"]
    assert all(row.notes == "transient: the engine ended with exit code 139" for row in crashed)
    assert heartbeat(workspace)["status"] == "error"


def test_a_probe_that_dies_leaves_a_guard_that_is_unknown_and_nothing_is_kept_on_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = prepare(tmp_path, base)
    questions = [{"qid": f"q{n}", "category": "c", "question": f"say {n}"} for n in range(3)]
    probe = workspace.root / "data" / "probe.jsonl"
    probe.write_text("".join(json.dumps(row) + "\n" for row in questions))

    def break_adapters(event: Event) -> None:
        if (event.step, event.kind) == ("probe", "started"):
            for found in workspace.runs_dir.glob("i0001-c1-*/runs-full/iter_*/adapter_config.json"):
                found.write_text("{")
                os.utime(found)

    strong = {"learning_rate": 0.005, "lora_rank": 16, "lora_alpha": 32, "epochs": 10}
    plan = write_plan(tmp_path / "strong.yaml", strong)
    result = run_flywheel(workspace, planner=FixedPlanner(plan), run_worker=run_here, notify=break_adapters)
    ruling = result.records[0].ruling("c1")
    assert ruling is not None
    guard = next(one for one in ruling.guards if one.name == "reasoning probe")
    assert (guard.passed, guard.measured) == (False, False)
    assert ruling.verdict != "keep"
    assert len(events_of(workspace, "iteration_end")) == 1
