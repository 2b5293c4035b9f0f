"""The local lane with the real engine, on a model small enough to make here."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_tokenizer
from tools.child import child_environment, started_at
from tools.errors import LockHeldError, TrainError
from tools.lanes.local import run_engine
from tools.poll import read_progress
from tools.recipe import TrainRecipe
from tools.run_folder import held
from tools.train import run


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("base model")
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(base, tmp_path, monkeypatch) -> TrainRecipe:
    monkeypatch.delenv("FK_SFT_PROGRESS_DIR", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = [
        {"messages": [{"role": "user", "content": f"go {n}"}, {"role": "assistant", "content": f"ok {n}"}]}
        for n in range(8)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return TrainRecipe(
        base_model=str(base),
        dataset_jsonl=str(tmp_path / "rows.jsonl"),
        output_dir=str(tmp_path / "out"),
        torch_dtype="float32",
        lora_rank=4,
        micro_batch_size=2,
        global_batch_size=4,
        max_steps=6,
        save_interval=2,
        smoke_steps=2,
        seq_length=256,
    )


def _spec(recipe: TrainRecipe, folder: Path, *names: str, **changes: Any) -> dict[str, Any]:
    members = [
        {"trial_id": name, "recipe": recipe.replace(seed=n).to_dict(), "run_dir": str(folder / name)}
        for n, name in enumerate(names)
    ]
    return {
        "kind": "train",
        "base_model": recipe.base_model,
        "mode": "full",
        "members": members,
        "result_path": str(folder / "result.json"),
        **changes,
    }


def test_a_recipe_trains_and_its_progress_is_on_disk(recipe):
    seen: list[tuple[int, list[int]]] = []
    result = run(recipe, poll_interval=0.05, on_progress=lambda latest, iters: seen.append((latest, iters)))
    assert (result.final_iter, result.iter_dirs, result.container) == (6, (2, 4, 6), None)
    assert seen[-1] == (6, [2, 4, 6])
    progress = read_progress(result.run_dir)
    assert (progress.step, progress.latest_iter) == (6, 6)
    assert progress.loss is not None
    assert progress.heartbeat is not None
    assert (progress.heartbeat.state, progress.heartbeat.max_iters) == ("done", 6)
    assert (Path(result.run_dir) / "iter_0000006" / "adapter_model.safetensors").is_file()


def test_a_run_stopped_half_way_goes_on_from_its_checkpoint(recipe):
    long = recipe.replace(max_steps=100)
    with pytest.raises(TrainError, match="stopped on request"):
        run(
            long, poll_interval=0.02, should_stop=lambda: read_progress(long.run_dir("full")).latest_iter >= 2
        )
    saved = read_progress(long.run_dir("full")).latest_iter
    assert 2 <= saved < 100
    assert run(long, poll_interval=0).final_iter == 100
    lines = (long.run_dir("full") / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum(json.loads(line)["step"] == 1 for line in lines) == 1


def test_several_members_train_in_one_worker(recipe, tmp_path):
    calls: list[float] = []
    result = run_engine(
        _spec(recipe, tmp_path, "a", "b"),
        spec_path=tmp_path / "spec.json",
        log_path=tmp_path / "engine.log",
        on_poll=calls.append,
        poll_s=0.05,
    )
    assert [(one["trial_id"], one["status"]) for one in result["members"]] == [("a", "done"), ("b", "done")]
    assert calls
    assert json.loads((tmp_path / "spec.json").read_text(encoding="utf-8"))["kind"] == "train"


def test_a_worker_that_cannot_start_its_work_is_an_error_with_its_log(recipe, tmp_path):
    spec = _spec(recipe, tmp_path, "a", base_model=str(tmp_path / "no-model"))
    (tmp_path / "result.json").write_text('{"members": []}', encoding="utf-8")
    with pytest.raises(TrainError, match=r"exit code 1(.|\n)*no-model"):
        run_engine(spec, spec_path=tmp_path / "spec.json", log_path=tmp_path / "engine.log")
    # The result of an older worker is not this one's.
    assert not (tmp_path / "result.json").exists()


def test_a_malformed_spec_is_an_error_that_says_what_came(tmp_path):
    with pytest.raises(TrainError, match="'bake'"):
        run_engine(
            {"kind": "bake", "result_path": str(tmp_path / "r.json")},
            spec_path=tmp_path / "spec.json",
            log_path=tmp_path / "engine.log",
        )


def test_a_worker_is_ended_when_asked_and_when_over_its_time(recipe, tmp_path):
    spec = _spec(recipe.replace(max_steps=100_000), tmp_path, "a")
    paths = {"spec_path": tmp_path / "spec.json", "log_path": tmp_path / "engine.log"}
    with pytest.raises(TrainError, match="stopped on request"):
        run_engine(spec, **paths, should_stop=lambda: read_progress(tmp_path / "a").latest_iter >= 2)
    with pytest.raises(TrainError, match="over its limit"):
        run_engine(spec, **paths, timeout_s=0.1)


def test_one_worker_at_a_time_on_a_spec(recipe, tmp_path):
    with (
        held(tmp_path / ".spec.json.lock", what="the spec"),
        pytest.raises(LockHeldError, match="in use by process"),
    ):
        run_engine(
            _spec(recipe, tmp_path, "a"), spec_path=tmp_path / "spec.json", log_path=tmp_path / "engine.log"
        )


def test_a_lock_whose_holder_is_gone_is_waited_for(tmp_path):
    # The grandchild keeps the lock for a moment after its parent is gone, as an orphan does.
    program = (
        "import subprocess, sys; from pathlib import Path; from tools.run_folder import held\n"
        "with held(Path(sys.argv[1]), what='x') as lock:\n"
        "    print(subprocess.Popen(['sleep', '1'], pass_fds=(lock,), stdout=subprocess.DEVNULL).pid)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "lock")],
        env=child_environment(),
        stdout=subprocess.PIPE,
        check=True,
    )
    began = time.monotonic()
    with held(tmp_path / "lock", what="x"):
        assert started_at(int(told.stdout)) is None
    assert time.monotonic() - began < 30


def test_a_bad_row_is_the_runs_error(recipe):
    Path(recipe.dataset_jsonl).write_text('{"messages": []}\n', encoding="utf-8")
    with pytest.raises(TrainError, match=r"trainer failed|exit code"):
        run(recipe, poll_interval=0)
