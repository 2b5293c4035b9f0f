"""The Ray lane on a real cluster, with the real engine on a model small enough to make here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.ray_clusters import RayCluster, another_node, await_true, processes_of
from tests.tiny import save_tiny_base
from tools.errors import TrainError
from tools.merge import merge_and_export
from tools.poll import read_progress
from tools.recipe import TrainRecipe
from tools.train import TrainResult, run

# Scores only once a file is there, and so holds a run at its first evaluation, however fast it is.
SCORER = """\
import pathlib, time

def score(expected, actual):
    while not pathlib.Path({gate!r}).exists():
        time.sleep(0.01)
    return float(len(actual) % 2)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base model"))


@pytest.fixture
def recipe(base, tmp_path, monkeypatch) -> TrainRecipe:
    """All that a recipe can name lies on this machine: rows, a system prompt, a base."""
    monkeypatch.delenv("FK_SFT_PROGRESS_DIR", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = [
        {"messages": [{"role": "user", "content": f"go {n}"}, {"role": "assistant", "content": f"ok {n}"}]}
        for n in range(8)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    (tmp_path / "prompt.txt").write_text("Be brief.", encoding="utf-8")
    return TrainRecipe(
        base_model=str(base),
        dataset_jsonl=str(tmp_path / "rows.jsonl"),
        output_dir=str(tmp_path / "out"),
        system_prompt_file=str(tmp_path / "prompt.txt"),
        backend="ray",
        torch_dtype="float32",
        lora_rank=4,
        micro_batch_size=2,
        global_batch_size=4,
        max_steps=240,
        save_interval=20,
        smoke_steps=2,
        seq_length=256,
    )


@pytest.fixture
def on_cluster(ray_cluster, monkeypatch) -> RayCluster:
    for name, value in ray_cluster.environment.items():
        monkeypatch.setenv(name, value)
    return ray_cluster


def saved(recipe: TrainRecipe) -> int:
    return read_progress(recipe.run_dir("full")).latest_iter


def read(result: TrainResult) -> tuple[dict[str, Any], dict[str, Any]]:
    folder = Path(result.run_dir) / f"iter_{result.final_iter:07d}"
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return load_file(folder / "adapter_model.safetensors"), config


def test_a_run_whose_driver_was_killed_ends_there_and_goes_on_to_the_local_lanes_adapter(
    recipe, on_cluster, tmp_path
):
    """Killed where nobody can catch it, resumed, and still the bits of a run that nothing befell."""
    shutil.rmtree(on_cluster.cache / "ray" / "models", ignore_errors=True)
    gate = tmp_path / "gate"
    (tmp_path / "scorer.py").write_text(SCORER.format(gate=str(gate)), encoding="utf-8")
    mid_eval = {
        "rows": recipe.dataset_jsonl,
        "n_items": 2,
        "scorer": {"name": "custom", "scorer_file": str(tmp_path / "scorer.py")},
        "max_new_tokens": 4,
    }
    scored = recipe.replace(eval_interval=120)

    def kill_driver(latest: int, _: list[int]) -> None:
        if latest >= 20:
            for driver in processes_of("tools.lanes.ray.driver", str(tmp_path)):
                if "tools.lifeline" not in driver.cmdline():
                    driver.kill()

    with pytest.raises(TrainError, match="exit code 137"):
        run(scored, poll_interval=0.02, on_progress=kill_driver, mid_eval=mid_eval)
    came_back = saved(scored)
    assert 20 <= came_back <= 120
    await_true(lambda: not processes_of("tools.lanes.ray.engine", str(on_cluster.cache)))
    gate.touch()
    # What is half here is not taken for a checkpoint.
    torn = scored.run_dir("full") / ".partial-iter_0000230"
    torn.mkdir(exist_ok=True)

    there = run(scored, poll_interval=0.1, mid_eval=mid_eval)
    assert (there.final_iter, there.backend, torn.exists()) == (240, "ray", False)
    assert f"the last of step {came_back}" in Path(str(there.log_path)).read_text(encoding="utf-8")
    lines = (Path(there.run_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [line["step"] for line in map(json.loads, lines) if "loss" in line]
    assert steps == list(range(1, 241))
    result = json.loads((Path(there.run_dir) / "engine-result.json").read_text(encoding="utf-8"))
    (member,) = result["members"]
    assert Path(member["adapter_dir"]).is_relative_to(there.run_dir)
    assert (Path(member["adapter_dir"]) / "adapter_model.safetensors").is_file()

    local = scored.replace(backend="local", output_dir=str(tmp_path / "local"))
    here = run(local, poll_interval=0.1, mid_eval=mid_eval)
    (mine, config), (theirs, their_config) = read(here), read(there)
    assert config == their_config
    assert mine.keys() == theirs.keys()
    assert all(mine[name].equal(theirs[name]) for name in mine)
    exported = merge_and_export(scored)
    assert exported.source_iter == read_progress(there.run_dir).best_iter
    assert (Path(exported.merged_hf_dir) / "model.safetensors").is_file()
    # Sent once, for both runs; nothing else stays on the node.
    assert Path(str(there.log_path)).read_text(encoding="utf-8").count("sending the base model") == 1
    assert list((on_cluster.cache / "ray" / "jobs").iterdir()) == []


def test_a_node_that_dies_is_named_and_what_came_back_is_kept(recipe, on_cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("BAKEHOUSE_RAY_CPUS", "3")
    long = recipe.replace(max_steps=100_000)
    with another_node(on_cluster, tmp_path / "node.log", cpus=3) as node:
        await_true(lambda: "Ray runtime started" in (tmp_path / "node.log").read_text(encoding="utf-8"))

        def end_node(latest: int, _: list[int]) -> None:
            if latest:
                os.killpg(node.pid, signal.SIGKILL)

        with pytest.raises(TrainError, match=r"node \S+ was lost during the run") as error:
            run(long, poll_interval=0.05, on_progress=end_node)
    assert "goes on from there" in str(error.value)
    assert saved(long) >= 20
    await_true(lambda: not processes_of("tools.lanes.ray.engine", str(on_cluster.cache)))


def test_without_a_cluster_one_is_started_here_and_a_stopped_run_saves_before_it_ends(recipe, monkeypatch):
    """The request to stop reaches all processes of the driver's group: the cluster is not among them."""
    with tempfile.TemporaryDirectory(prefix="bh-ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        monkeypatch.setenv("BAKEHOUSE_CACHE", f"{folder}/cache")
        monkeypatch.setenv("BAKEHOUSE_RAY_CPUS", "1")
        for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        long = recipe.replace(max_steps=100_000, save_interval=50_000, eval_interval=None)

        def steps() -> int:
            return read_progress(long.run_dir("full")).step or 0

        with pytest.raises(TrainError, match="stopped on request"):
            run(long, poll_interval=0.1, should_stop=lambda: steps() >= 5)
        assert saved(long) == steps() >= 5
        log = (long.run_dir("full") / "train.log").read_text(encoding="utf-8")
        assert "starting one on this machine" in log
        await_true(lambda: not processes_of(folder))


def test_a_cluster_that_does_not_answer_is_an_error_that_says_so(recipe, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(TrainError, match=r"no Ray cluster answers at RAY_ADDRESS=127\.0\.0\.1:9"):
        run(recipe, poll_interval=0)


def test_a_node_that_cannot_keep_anything_is_an_error_that_says_so(recipe, on_cluster):
    place = on_cluster.cache / "ray"
    place.mkdir(parents=True, exist_ok=True)
    place.rename(place.with_name("aside"))
    try:
        place.touch()
        with pytest.raises(TrainError, match=r"could not begin: (.*)Error(.*)BAKEHOUSE_CACHE"):
            run(recipe, poll_interval=0)
    finally:
        place.unlink()
        place.with_name("aside").rename(place)


def test_more_than_any_node_has_is_refused(recipe, on_cluster, monkeypatch):
    monkeypatch.setenv("BAKEHOUSE_RAY_GPUS", "1")
    with pytest.raises(TrainError, match=r"1 CPUs and 1 GPUs on one node(.|\n)*2 CPUs, 0 GPUs"):
        run(recipe, poll_interval=0)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("RAY_ADDRESS", "http://head:8265", "RAY_ADDRESS is 'http://head:8265'; allowed"),
        ("RAY_ADDRESS", "head", "RAY_ADDRESS is 'head'; allowed"),
        ("BAKEHOUSE_RAY_GPUS", "2", "BAKEHOUSE_RAY_GPUS is '2'"),
        ("BAKEHOUSE_RAY_CPUS", "half", "BAKEHOUSE_RAY_CPUS is 'half'"),
    ],
)
def test_a_malformed_environment_is_refused_before_anything_starts(recipe, monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    with pytest.raises(TrainError, match=words):
        run(recipe, poll_interval=0)
    assert not (recipe.run_dir("full") / "train.log").exists()


def test_a_base_that_is_no_model_is_refused_before_anything_starts(recipe, tmp_path):
    with pytest.raises(TrainError, match=r"config\.json"):
        run(recipe.replace(base_model=str(tmp_path)), poll_interval=0)
