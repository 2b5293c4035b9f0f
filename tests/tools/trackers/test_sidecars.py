"""Sidecars beside real trainings, with a package in trackio's place that behaves, or does not."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.tiny import save_tiny_base
from tests.tools.engine.conftest import write_rows
from tools.child import started_at
from tools.errors import TrainError
from tools.lanes.local import run_engine
from tools.recipe import TrainRecipe
from tools.trackers import sidecars
from tools.train import run

STAND_IN = """
import json, os, sys, time
def _say(**what):
    with open(os.environ["STAND_IN_FILE"], "a") as file:
        file.write(json.dumps(what) + "\\n")
def init(**arguments):
    _say(init=arguments["name"], resume=arguments["resume"], config=arguments["config"], pid=os.getpid())
    mood = os.environ.get("STAND_IN_MOOD")
    if mood == "crash":
        os._exit(66)
    if mood == "hang":
        time.sleep(3600)
    if mood == "refuse":
        print("key is", os.environ["TRACKIO_WRITE_TOKEN"], file=sys.stderr, flush=True)
        raise RuntimeError("403 for the key " + os.environ["TRACKIO_WRITE_TOKEN"])
    return _Run(arguments["name"])
class _Run:
    def __init__(self, name): self.name = name
    def log(self, values, step): _say(run=self.name, step=step, values=values)
    def finish(self): _say(finish=self.name)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base model")
    save_tiny_base(folder)
    return folder


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-in writes what it is told."""
    package = tmp_path / "packages"
    package.mkdir()
    (package / "trackio.py").write_text(STAND_IN, encoding="utf-8")
    monkeypatch.syspath_prepend(str(package))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI", "FK_SFT_PROGRESS_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(package))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("TRACKIO_WRITE_TOKEN", "very-secret-value")
    monkeypatch.setenv("STAND_IN_FILE", str(tmp_path / "told.jsonl"))
    return tmp_path / "told.jsonl"


@pytest.fixture
def recipe(base: Path, tmp_path: Path) -> TrainRecipe:
    return TrainRecipe(
        base_model=str(base),
        dataset_jsonl=str(write_rows(tmp_path / "rows.jsonl")),
        output_dir=str(tmp_path / "out"),
        torch_dtype="float32",
        lora_rank=4,
        micro_batch_size=2,
        global_batch_size=4,
        max_steps=4,
        smoke_steps=2,
        save_interval=2,
        seq_length=256,
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def train_spec(recipe: TrainRecipe, folder: Path, *names: str) -> dict[str, Any]:
    return {
        "kind": "train",
        "base_model": recipe.base_model,
        "mode": "full",
        "members": [
            {"trial_id": name, "recipe": recipe.replace(seed=n).to_dict(), "run_dir": str(folder / name)}
            for n, name in enumerate(names)
        ],
        "result_path": str(folder / "result.json"),
    }


def run_spec(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    return run_engine(spec, spec_path=folder / "spec.json", log_path=folder / "engine.log")


def test_every_member_of_a_stack_is_a_run_of_its_own_and_its_scores_join_it(recipe, told, tmp_path):
    result = run_spec(train_spec(recipe, tmp_path, "i1-c1-s17", "i1-c2-s17"), tmp_path)
    for name in ("i1-c1-s17", "i1-c2-s17"):
        own = [line for line in lines(told) if line.get("run") == name]
        assert [line["step"] for line in own] == [1, 2, 3, 4]
        on_disk = lines(tmp_path / name / "metrics.jsonl")
        assert [line["values"]["loss"] for line in own] == [line["loss"] for line in on_disk]
        assert set(own[0]["values"]) >= {"loss", "grad_norm", "lr", "tokens", "tokens_per_s", "memory_bytes"}
        assert {"finish": name} in lines(told)
    told.unlink()
    evaluate = {
        "kind": "evaluate",
        "base_model": recipe.base_model,
        "torch_dtype": "float32",
        "adapters": [
            {"trial_id": "i1-c1-s17", "seed": 17, "adapter_dir": result["members"][0]["adapter_dir"]}
        ],
        "splits": {"dev": recipe.dataset_jsonl, "test": recipe.dataset_jsonl},
        "scorer": {"name": "exact"},
        "scores_dir": str(tmp_path / "scores"),
        "result_path": str(tmp_path / "scored.json"),
        "max_new_tokens": 4,
    }
    scored = run_spec(evaluate, tmp_path)
    mean = scored["adapters"][0]["splits"]["dev"]["mean"]
    opened, score, finished = lines(told)
    assert (opened["init"], opened["resume"]) == ("i1-c1-s17", "allow")
    assert score["values"] == {"score/dev": mean, "score/dev_n": 11.0}
    assert finished == {"finish": "i1-c1-s17"}


def test_a_run_of_the_train_command_is_mirrored_too(recipe, told):
    result = run(recipe, poll_interval=0)
    assert [line["step"] for line in lines(told) if "run" in line] == [1, 2, 3, 4]
    assert lines(told)[0]["init"] == "out-full"
    assert (Path(result.run_dir) / "trackers" / "trackio.json").is_file()


@pytest.mark.parametrize("mood", ["crash", "hang", "refuse"])
def test_a_tracker_in_trouble_costs_the_training_nothing(recipe, told, tmp_path, monkeypatch, caplog, mood):
    monkeypatch.setenv("STAND_IN_MOOD", mood)
    monkeypatch.setattr(sidecars, "_LAST_WORDS_S", 3.0)
    result = run_spec(train_spec(recipe, tmp_path, "a"), tmp_path)
    assert (result["members"][0]["status"], result["members"][0]["steps"]) == ("done", 4)
    assert [r.getMessage() for r in caplog.records if r.name == "tools.trackers.sidecars"] == [
        f"trackio was not told all of this; see {tmp_path / 'spec.json.trackio.log'}"
    ]
    pid, deadline = lines(told)[0]["pid"], time.monotonic() + 30
    # Who was killed is gone a moment later.
    while started_at(pid) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert started_at(pid) is None
    log = (tmp_path / "spec.json.trackio.log").read_text(encoding="utf-8")
    assert "very-secret-value" not in log
    if mood == "refuse":
        assert "403 for the key ***" in log


def test_a_training_that_fails_still_closes_its_sidecars(recipe, told, tmp_path):
    spec = train_spec(recipe.replace(base_model=str(tmp_path / "nothing")), tmp_path, "a")
    with pytest.raises(TrainError):
        run_spec(spec | {"base_model": str(tmp_path / "nothing")}, tmp_path)
    started = [p for p in psutil.process_iter(["cmdline"]) if "tools.trackers" in (p.info["cmdline"] or [])]
    assert not [p for p in started if str(tmp_path / "spec.json.trackers.json") in p.cmdline()]


def test_a_tracker_that_is_not_installed_is_named_once_and_left_out(recipe, tmp_path, monkeypatch, caplog):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "TRACKIO_DIR", "TRACKIO_SPACE_ID", "FK_SFT_PROGRESS_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/m.db")
    monkeypatch.setattr(sidecars.importlib.util, "find_spec", lambda _: None)
    with sidecars.mirrored_spec(train_spec(recipe, tmp_path, "a"), tmp_path / "spec.json"):
        pass
    assert [record.getMessage() for record in caplog.records] == [
        "the environment asks for mlflow, which is not installed: pip install 'bakehouse[mlflow]'"
    ]
    assert not list(tmp_path.glob("*.trackers.json"))


def test_nothing_is_written_or_started_where_no_tracker_is_asked_for(recipe, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "TRACKIO_DIR", "TRACKIO_SPACE_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    before = sorted(os.listdir(tmp_path))
    with sidecars.mirrored_spec(train_spec(recipe, tmp_path, "a"), tmp_path / "spec.json"):
        assert sorted(os.listdir(tmp_path)) == before
