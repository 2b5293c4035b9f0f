"""What holds for every lane."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.fake_docker import FakeDocker
from tests.tiny import tiny_tokenizer
from tools.errors import TrainError
from tools.lanes import get_lane
from tools.poll import poll_run_progress, read_progress
from tools.recipe import TrainRecipe
from tools.train import run

NEMO_TRAINER = """\
import argparse, os, pathlib, time
take = argparse.ArgumentParser()
for name in ("--hf-model", "--pretrained-mcore", "--dataset-root", "--run-dir"):
    take.add_argument(name, required=True)
length = take.add_mutually_exclusive_group(required=True)
length.add_argument("--train-iters", type=int)
length.add_argument("--smoke", type=int)
got = take.parse_args()
if not os.path.exists(os.environ["DATASET_JSONL"]) or os.path.getsize(os.environ["DATASET_JSONL"]) < 20:
    raise SystemExit("no usable rows")
run, last = pathlib.Path(got.run_dir), got.smoke or got.train_iters
for step in range(1, last + 1):
    time.sleep(0.002)
    if step % int(os.environ["SAVE_INTERVAL"]) == 0 or step == last:
        (run / f"iter_{step:07d}").mkdir()
        (run / "tracker").write_text(str(step))
        (run / "tracker").replace(run / "latest_checkpointed_iteration.txt")
"""
# The same trainer, its steps named by the environment alone.
UNSLOTH_TRAINER = """\
LAST=$MAX_STEPS; [ "$MODE" = smoke ] && LAST=$SMOKE_STEPS
exec python3 {script} --hf-model "$BASE_MODEL" --pretrained-mcore x --dataset-root x \
--run-dir "$RUN_DIR" --train-iters "$LAST"
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("base")
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=["local", "nemo", "unsloth", "ray"])
def recipe(request, base, tmp_path, monkeypatch) -> TrainRecipe:
    monkeypatch.delenv("FK_SFT_PROGRESS_DIR", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if request.param == "ray":
        for name, value in request.getfixturevalue("ray_cluster").environment.items():
            monkeypatch.setenv(name, value)
    docker = FakeDocker(tmp_path / "docker", "box")
    monkeypatch.setenv("PATH", f"{docker.bin}{os.pathsep}{os.environ['PATH']}")
    row = {"messages": [{"role": "user", "content": "go"}, {"role": "assistant", "content": "ok"}]}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 4, encoding="utf-8")
    nemo, bash = tmp_path / "train.py", tmp_path / "train.sh"
    nemo.write_text(NEMO_TRAINER, encoding="utf-8")
    bash.write_text(UNSLOTH_TRAINER.format(script=nemo), encoding="utf-8")
    scripts = {"nemo": {"TRAIN_SCRIPT": str(nemo)}, "unsloth": {"TRAIN_SCRIPT": str(bash)}}
    return TrainRecipe(
        base_model=str(base),
        dataset_jsonl=str(tmp_path / "rows.jsonl"),
        output_dir=str(tmp_path / "out"),
        backend=request.param,
        container="box" if request.param in scripts else None,
        extra_env=scripts.get(request.param, {}),
        torch_dtype="float32",
        lora_rank=2,
        micro_batch_size=2,
        global_batch_size=4,
        max_steps=5,
        smoke_steps=2,
        save_interval=2,
        seq_length=128,
    )


def test_a_plan_is_a_command_without_a_shell_of_ours(recipe, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    lane = get_lane(recipe.backend)
    plan = lane.prepare(recipe, "full", run_dir)
    assert lane.name == recipe.backend
    assert all(isinstance(part, str) and part for part in plan.argv)
    assert lane.outcome(run_dir) is None
    assert poll_run_progress(run_dir) == (0, [])


def test_a_full_and_a_smoke_run_reach_their_last_step(recipe):
    full = run(recipe, poll_interval=0.05)
    assert (full.backend, full.final_iter, full.iter_dirs) == (recipe.backend, 5, (2, 4, 5))
    smoke = run(recipe, mode="smoke", poll_interval=0.05)
    assert (smoke.final_iter, smoke.iter_dirs) == (2, (2,))
    heartbeat = read_progress(full.run_dir).heartbeat
    assert heartbeat is not None
    assert (heartbeat.state, heartbeat.backend, heartbeat.latest_iter) == ("done", recipe.backend, 5)


def test_a_trainer_that_cannot_use_its_rows_is_an_error_with_a_truthful_heartbeat(recipe):
    Path(recipe.dataset_jsonl).write_text("{}\n", encoding="utf-8")
    with pytest.raises(TrainError):
        run(recipe, poll_interval=0.05)
    heartbeat = read_progress(recipe.run_dir("full")).heartbeat
    assert heartbeat is not None
    assert (heartbeat.state, heartbeat.final) == ("failed", True)


def test_a_run_stopped_on_request_keeps_what_it_saved(recipe):
    long = recipe.replace(max_steps=100_000)

    def saved() -> int:
        return read_progress(long.run_dir("full")).latest_iter

    with pytest.raises(TrainError, match="stopped on request"):
        run(long, poll_interval=0.02, should_stop=lambda: saved() >= 2)
    assert 2 <= saved() < 100_000
    heartbeat = read_progress(long.run_dir("full")).heartbeat
    assert heartbeat is not None
    assert heartbeat.state == "failed"


def test_an_unknown_lane_is_refused_by_name():
    with pytest.raises(TrainError, match="'cloud'"):
        get_lane("cloud")
