"""Two engines on this CPU, beside one: the same results, and each death by itself."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.tiny import save_tiny_base
from tests.tools.engine.conftest import adapter_tensors, write_rows
from tools.errors import TrainError
from tools.evaluation.scores import read_scores
from tools.lanes.devices import WorkerPlace
from tools.lanes.replicas import ReplicatedEngine
from tools.poll import read_progress
from tools.recipe import TrainRecipe

TWO = (WorkerPlace("cpu 0", {}, 1), WorkerPlace("cpu 1", {}, 1))
LONG = 100_000


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base model")
    save_tiny_base(folder)
    return folder


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def two() -> Iterator[ReplicatedEngine]:
    with ReplicatedEngine(TWO) as engine:
        yield engine


def train_spec(base: Path, folder: Path, *steps: int) -> dict[str, Any]:
    recipe = TrainRecipe(
        base_model=str(base),
        dataset_jsonl=str(write_rows(folder / "rows.jsonl")),
        output_dir=str(folder),
        torch_dtype="float32",
        lora_rank=4,
        lora_dropout=0.2,
        micro_batch_size=2,
        global_batch_size=4,
        learning_rate=2e-3,
        smoke_steps=1,
        save_interval=1,
        seq_length=256,
    )
    members = [
        {
            "trial_id": f"t{n}",
            "recipe": recipe.replace(max_steps=count, seed=n).to_dict(),
            "run_dir": str(folder / f"t{n}"),
        }
        for n, count in enumerate(steps)
    ]
    return {
        "kind": "train",
        "base_model": str(base),
        "mode": "full",
        "members": members,
        "result_path": str(folder / "result.json"),
        "threads": 1,
    }


def run(engine: ReplicatedEngine, spec: dict[str, Any], folder: Path, **options: Any) -> dict[str, Any]:
    return engine(spec, spec_path=folder / "spec.json", log_path=folder / "engine.log", **options)


def test_two_workers_give_what_one_gives_bit_for_bit(base, two, tmp_path):
    polled: list[int] = []
    spec = train_spec(base, tmp_path / "two", 6, 3, 4)
    shared = run(
        two, spec, tmp_path / "two", on_poll=lambda _: polled.append(threading.get_ident()), poll_s=0.05
    )
    assert len(two.pids) == 2
    assert json.loads((tmp_path / "two" / "result.json").read_text(encoding="utf-8")) == shared
    assert set(polled) == {threading.get_ident()}
    with ReplicatedEngine((WorkerPlace("one", {}, 1),)) as one:
        alone = run(one, train_spec(base, tmp_path / "one", 6, 3, 4), tmp_path / "one")
    for ours, theirs in zip(shared["members"], alone["members"], strict=True):
        told = ("trial_id", "status", "steps", "final_iter", "final_loss", "tokens")
        assert [ours[key] for key in told] == [theirs[key] for key in told]
        left, right = (adapter_tensors(entry["adapter_dir"]) for entry in (ours, theirs))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)

    adapters = [
        {"trial_id": entry["trial_id"], "seed": 1, "adapter_dir": entry["adapter_dir"]}
        for entry in shared["members"]
    ]
    evaluate = {
        "kind": "evaluate",
        "base_model": str(base),
        "torch_dtype": "float32",
        "adapters": adapters,
        "splits": {"dev": str(tmp_path / "two" / "rows.jsonl")},
        "scorer": {"name": "exact"},
        "scores_dir": str(tmp_path / "scores"),
        "result_path": str(tmp_path / "scored.json"),
        "max_new_tokens": 4,
        "threads": 1,
    }
    pids = two.pids
    scored = run(two, evaluate, tmp_path)
    assert [entry["trial_id"] for entry in scored["adapters"]] == ["t0", "t1", "t2"]
    assert two.pids == pids
    assert all(len(read_scores(tmp_path / "scores" / f"t{n}" / "dev.jsonl")) == 11 for n in range(3))


def test_a_worker_that_is_killed_fails_its_own_member_alone(base, two, tmp_path):
    spec = train_spec(base, tmp_path, LONG, 3)
    killed: list[int] = []

    def kill(_: float) -> None:
        done = read_progress(tmp_path / "t1").latest_iter >= 3
        if done and read_progress(tmp_path / "t0").latest_iter >= 1 and not killed:
            killed.append(two.pids[0])
            for process in psutil.Process(two.pids[0]).children(recursive=True):
                process.send_signal(signal.SIGKILL)

    result = run(two, spec, tmp_path, on_poll=kill, poll_s=0.05)
    assert killed
    long, short = result["members"]
    assert (long["status"], short["status"]) == ("failed", "done")
    assert long["error"].startswith("the worker died: ")


def test_a_request_to_stop_ends_all_workers_and_what_they_saved_stays(base, two, tmp_path):
    spec = train_spec(base, tmp_path, LONG, LONG)
    folders = [tmp_path / name for name in ("t0", "t1")]

    def both_run() -> bool:
        return all(read_progress(folder).latest_iter >= 1 for folder in folders)

    with pytest.raises(TrainError, match="stopped on request"):
        run(two, spec, tmp_path, should_stop=both_run)
    assert both_run()
    assert two.pids == ()


def test_an_error_of_the_caller_ends_all_workers_and_comes_out(base, two, tmp_path):
    spec = train_spec(base, tmp_path, LONG, LONG)
    started: list[int] = []

    def give_up(_: float) -> None:
        if len(two.pids) == 2:
            started.extend(two.pids)
            raise RuntimeError("no budget left")

    with pytest.raises(RuntimeError, match="no budget left"):
        run(two, spec, tmp_path, on_poll=give_up, poll_s=0.05)
    assert two.pids == ()
    assert not [pid for pid in started if psutil.pid_exists(pid) and os.getpgid(pid) == pid]


def test_one_member_needs_one_worker_and_its_files_keep_their_names(base, two, tmp_path):
    result = run(two, train_spec(base, tmp_path, 2), tmp_path)
    assert result["members"][0]["status"] == "done"
    assert len(two.pids) == 1
    assert (tmp_path / "spec.json").is_file()
    assert not list(tmp_path.glob("*.part*"))
