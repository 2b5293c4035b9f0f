"""The resident engine against engines in processes of their own, and against kills."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.tiny import save_tiny_base
from tests.tools.engine.conftest import adapter_tensors, write_rows
from tools.child import child_environment, started_at
from tools.errors import LockHeldError, TrainError
from tools.evaluation.scores import read_scores
from tools.files import read_jsonl
from tools.lanes.local import run_engine
from tools.lanes.resident import ResidentEngine
from tools.poll import read_progress
from tools.recipe import TrainRecipe
from tools.run_folder import held

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
def engine() -> Iterator[ResidentEngine]:
    with ResidentEngine() as engine:
        yield engine


@pytest.fixture
def spec(base: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Make a spec that trains one member, and the folder `name` it trains in."""
    rows = write_rows(tmp_path / "train.jsonl")

    def make(name: str = "t", **changes: Any) -> dict[str, Any]:
        recipe = TrainRecipe(
            **{
                "base_model": str(base),
                "dataset_jsonl": str(rows),
                "output_dir": str(tmp_path),
                "torch_dtype": "float32",
                "lora_rank": 4,
                "lora_dropout": 0.2,
                "micro_batch_size": 2,
                "global_batch_size": 4,
                "learning_rate": 2e-3,
                "max_steps": 6,
                "smoke_steps": 2,
                "save_interval": 5,
                "seq_length": 256,
                **changes,
            }
        )
        return {
            "kind": "train",
            "base_model": str(base),
            "mode": "full",
            "members": [{"trial_id": name, "recipe": recipe.to_dict(), "run_dir": str(tmp_path / name)}],
            "result_path": str(tmp_path / f"{name}.result.json"),
        }

    return make


def paths(spec: dict[str, Any]) -> dict[str, Any]:
    """Where a spec and its log go, and how often it is looked at."""
    stem = Path(spec["result_path"].removesuffix(".result.json"))
    return {"spec_path": stem.with_suffix(".json"), "log_path": stem.with_suffix(".log"), "poll_s": 0.05}


def evaluation(trained: dict[str, Any], folder: Path, name: str, scorer: dict[str, Any]) -> dict[str, Any]:
    """A spec that scores the bare base and the adapter of a result."""
    adapter_dir = trained["members"][0]["adapter_dir"]
    adapters = [("base", None), ("trained", adapter_dir)]
    return {
        "kind": "evaluate",
        "base_model": json.loads((Path(adapter_dir) / "adapter_config.json").read_text())[
            "base_model_name_or_path"
        ],
        "torch_dtype": "float32",
        "adapters": [{"trial_id": one, "seed": 1, "adapter_dir": where} for one, where in adapters],
        "splits": {"dev": str(folder / "train.jsonl")},
        "scorer": scorer,
        "max_new_tokens": 8,
        "scores_dir": str(folder / name),
        "result_path": str(folder / f"{name}.result.json"),
    }


def workers_of(engine: ResidentEngine) -> list[psutil.Process]:
    """The process that computes, below its guard: none before its start and after its end."""
    assert engine.pid is not None
    return psutil.Process(engine.pid).children()


def worker_of(engine: ResidentEngine) -> psutil.Process:
    (worker,) = workers_of(engine)
    return worker


def until(holds: Callable[[], object], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "the awaited event did not come"
        time.sleep(0.02)


def same_tensors(one: str | Path, other: str | Path) -> bool:
    found, wanted = adapter_tensors(one), adapter_tensors(other)
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_results_are_those_of_processes_of_their_own(engine, spec, tmp_path):
    # The scorer does to its process what it can.
    (tmp_path / "scorer.py").write_text(
        "import os, sys, torch\n"
        "def score(expected, actual):\n"
        "    torch.manual_seed(len(sys.path)); torch.set_num_threads(2)\n"
        "    os.chdir('/'); os.environ['X'] = 'y'; sys.path.insert(0, '/nowhere')\n"
        "    return len(actual) / 1000\n"
    )
    scorer = {"name": "custom", "scorer_file": str(tmp_path / "scorer.py")}
    first = spec("first", max_steps=4, lora_target_modules=["q_proj", "down_proj"], lora_rank=16, seed=5)
    trained = engine(first, **paths(first))
    worker = worker_of(engine)
    scored = evaluation(trained, tmp_path, "scores", scorer)
    engine(scored, **paths(scored))
    warm_spec, cold_spec = spec("warm"), spec("cold")
    warm = engine(warm_spec, **paths(warm_spec))
    assert worker_of(engine) == worker
    cold = run_engine(cold_spec, **paths(cold_spec))
    assert trained["base_load_s"] > 0
    assert (warm["base_load_s"], warm["members"][0]["status"]) == (0.0, "done")
    assert same_tensors(warm["members"][0]["adapter_dir"], cold["members"][0]["adapter_dir"])
    losses = [
        [row["loss"] for row in read_jsonl(tmp_path / name / "metrics.jsonl").rows]
        for name in ("warm", "cold")
    ]
    assert losses[0] == losses[1]

    rescored = [evaluation(warm, tmp_path, name, scorer) for name in ("warm-scores", "cold-scores")]
    engine(rescored[0], **paths(rescored[0]))
    run_engine(rescored[1], **paths(rescored[1]))
    for trial in ("base", "trained"):
        rows = [read_scores(tmp_path / name / trial / "dev.jsonl") for name in ("warm-scores", "cold-scores")]
        assert rows[0] == rows[1]
        assert any(row.score for row in rows[0])


def test_each_spec_has_its_own_log_and_its_lock(engine, spec, tmp_path):
    kept: list[bool] = []
    names = ("one", "two")
    for name in names:
        lock = tmp_path / f".{name}.json.lock"
        asked = spec(name, max_steps=40)

        def look(_: float, lock: Path = lock) -> None:
            kept.extend(
                str(lock) in {file.path for file in worker.open_files()} for worker in workers_of(engine)
            )

        engine(asked, **paths(asked), on_poll=look)
        with held(lock, what="the spec"):
            pass
    assert any(kept)
    logs = [(tmp_path / f"{name}.log").read_text() for name in names]
    assert ["one: done" in log for log in logs] == [True, False]
    assert ["two: done" in log for log in logs] == [False, True]


def test_memory_does_not_grow_from_spec_to_spec(engine, spec):
    used: list[int] = []
    for number in range(23):
        asked = spec(f"t{number}", max_steps=2, lora_rank=64)
        result = engine(asked, **paths(asked))
        used.append(worker_of(engine).memory_info().rss)
        assert result["base_load_s"] == 0.0 or number == 0
    assert used[-1] - used[2] < 4 * 2**20


def test_what_cannot_be_done_is_an_error_and_the_process_stays(engine, spec, tmp_path):
    good = spec("good")
    engine(good, **paths(good))
    worker = worker_of(engine)
    for asked, hint in (
        ({"kind": "bake", "result_path": str(tmp_path / "a.result.json")}, "'bake'"),
        (spec("b") | {"base_model": str(tmp_path / "no-model")}, "no-model"),
    ):
        with pytest.raises(TrainError, match=rf"exit code 1(.|\n)*{hint}"):
            engine(asked, **paths(asked))
    assert worker_of(engine) == worker
    again = spec("again")
    assert engine(again, **paths(again))["members"][0]["status"] == "done"


def test_a_process_that_failed_unexpectedly_is_not_used_again(engine, spec, tmp_path):
    asked = spec("t") | {"result_path": str(tmp_path / "folder" / "r.result.json")}
    with pytest.raises(TrainError, match=r"exit code 1(.|\n)*(FileExists|NotADirectory)Error"):
        # A file comes to lie where the result's folder would be made.
        engine(asked, **paths(spec("t")), on_poll=lambda _: (tmp_path / "folder").touch())
    assert engine.pid is None
    again = spec("again")
    assert engine(again, **paths(again))["members"][0]["status"] == "done"


@pytest.mark.parametrize("when", ["in a spec", "idle"])
def test_a_killed_process_costs_the_spec_in_hand_and_no_other(engine, spec, tmp_path, when):
    if when == "idle":
        first = spec("first")
        engine(first, **paths(first))
        worker_of(engine).kill()
    else:
        asked = spec("t", max_steps=LONG)

        def kill(_: float) -> None:
            for worker in workers_of(engine) if read_progress(tmp_path / "t").latest_iter >= 5 else ():
                worker.kill()

        with pytest.raises(TrainError, match=r"exit code 137(.|\n)*loaded"):
            engine(asked, **paths(asked), on_poll=kill)
        assert engine.pid is None
    again = spec("again")
    assert engine(again, **paths(again))["members"][0]["status"] == "done"


def test_a_spec_is_stopped_on_request_and_over_its_time_and_goes_on_later(engine, spec, tmp_path):
    asked = spec("t", max_steps=LONG, save_interval=LONG)
    with pytest.raises(TrainError, match="stopped on request"):
        engine(asked, **paths(asked), should_stop=lambda: (read_progress(tmp_path / "t").step or 0) >= 3)
    saved = read_progress(tmp_path / "t").latest_iter
    assert saved >= 3
    result = json.loads((tmp_path / "t.result.json").read_text())
    assert result["members"][0]["status"] == "stopped"
    with pytest.raises(TrainError, match="over its limit"):
        engine(asked, **paths(asked), timeout_s=0.1)
    asked["members"][0]["trial_id"] = "u"
    asked["members"][0]["run_dir"] = str(tmp_path / "u")
    engine(spec("short"), **paths(spec("short")))


def test_an_interrupted_call_saves_and_leaves_nothing_running(engine, spec, tmp_path):
    asked = spec("t", max_steps=LONG, save_interval=LONG)
    seen: list[psutil.Process] = []

    def interrupt(_: float) -> None:
        if (read_progress(tmp_path / "t").step or 0) >= 3:
            seen.append(worker_of(engine))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine(asked, **paths(asked), on_poll=interrupt)
    assert started_at(seen[0].pid) is None
    assert read_progress(tmp_path / "t").latest_iter >= 3


def test_an_idle_process_leaves_and_the_next_spec_starts_another(spec):
    with ResidentEngine(idle_s=0.3) as engine:
        first, second = spec("first"), spec("second")
        engine(first, **paths(first))
        pid = engine.pid
        assert pid is not None
        until(lambda: started_at(pid) is None)
        assert engine(second, **paths(second))["base_load_s"] > 0


def test_a_changed_environment_gets_a_new_process(engine, spec, monkeypatch):
    first, second = spec("first"), spec("second")
    engine(first, **paths(first))
    before = worker_of(engine)
    monkeypatch.setenv("BAKEHOUSE_TEST", "1")
    engine(second, **paths(second))
    assert started_at(before.pid) is None
    assert worker_of(engine).environ()["BAKEHOUSE_TEST"] == "1"


def test_a_released_process_is_gone_when_the_call_returns(engine, spec):
    engine.release()
    asked = spec("t")
    engine(asked, **paths(asked))
    worker = worker_of(engine)
    began = time.monotonic()
    engine.release()
    assert started_at(worker.pid) is None
    assert time.monotonic() - began < 10
    assert engine.pid is None


def test_threads_take_turns(engine, spec):
    results: list[str] = []

    def work(name: str) -> None:
        asked = spec(name)
        results.append(engine(asked, **paths(asked))["members"][0]["trial_id"])

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["a", "b", "c"]


def test_one_worker_at_a_time_on_a_spec(engine, spec, tmp_path):
    asked = spec("t")
    with (
        held(tmp_path / ".t.json.lock", what="the spec"),
        pytest.raises(LockHeldError, match="in use by process"),
    ):
        engine(asked, **paths(asked))


@pytest.mark.parametrize("when", ["in a spec", "idle"])
def test_the_process_ends_when_its_asker_is_killed(spec, tmp_path, when):
    asked = spec("t", max_steps=LONG if when == "in a spec" else 6, save_interval=LONG)
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    program = (
        "import json, sys, time; from pathlib import Path; from tools.lanes.resident import ResidentEngine\n"
        "folder = Path(sys.argv[1]); engine = ResidentEngine()\n"
        "def tell(_):\n"
        "    (folder / 'part').write_text(str(engine.pid)); (folder / 'part').replace(folder / 'pid')\n"
        "asked = json.loads((folder / 'asked.json').read_text())\n"
        "where = {'spec_path': folder / 't.json', 'log_path': folder / 't.log'}\n"
        "engine(asked, **where, on_poll=tell, poll_s=0.02)\n"
        "(folder / 'idle').touch(); time.sleep(1000)\n"
    )
    asker = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=child_environment())
    try:
        if when == "idle":
            until((tmp_path / "idle").exists)
        else:
            until(lambda: (read_progress(tmp_path / "t").step or 0) >= 3)
        guard = psutil.Process(int((tmp_path / "pid").read_text()))
        group = [guard, *guard.children(recursive=True)]
        assert len(group) == 2
    finally:
        asker.send_signal(signal.SIGKILL)
        asker.wait()
    until(lambda: not any(started_at(process.pid) == process.create_time() for process in group))
    if when == "in a spec":
        # It was asked first, and so it saved; the lock is free again.
        assert read_progress(tmp_path / "t").latest_iter >= 3
        with held(tmp_path / ".t.json.lock", what="the spec"):
            pass
