"""The shipped Unsloth trainer, run for real where a Python with unsloth is at hand.

Set BAKEHOUSE_UNSLOTH_PYTHON to one (a CPU will do) and run with `-m slow`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_docker import FakeDocker
from tests.tiny import tiny_tokenizer
from tools.errors import DatasetError, TrainError
from tools.lanes.scripts.train_unsloth import tokenize_rows
from tools.lanes.shipping import ship
from tools.merge import merge_and_export
from tools.recipe import TrainRecipe
from tools.train import run


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> TrainRecipe:
    monkeypatch.delenv("FK_SFT_PROGRESS_DIR", raising=False)
    rows = [
        {"messages": [{"role": "user", "content": f"go {n}"}, {"role": "assistant", "content": f"ok {n}"}]}
        for n in range(8)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    (tmp_path / "system.txt").write_text("You fly.\n", encoding="utf-8")
    return TrainRecipe(
        base_model=str(tmp_path / "base"),
        dataset_jsonl=str(tmp_path / "rows.jsonl"),
        output_dir=str(tmp_path / "out"),
        backend="unsloth",
        torch_dtype="float32",
        lora_rank=4,
        lora_dropout=0.0,
        micro_batch_size=2,
        global_batch_size=4,
        max_steps=5,
        smoke_steps=2,
        save_interval=2,
        seq_length=128,
        system_prompt_file=str(tmp_path / "system.txt"),
    )


def test_rows_learn_the_answer_and_the_end_of_its_turn_alone(recipe):
    tokenizer = tiny_tokenizer()
    row = tokenize_rows(recipe, tokenizer)[3]
    learned = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert tokenizer.decode(learned) == "ok 3<|im_end|>"
    assert "You fly." in tokenizer.decode(row["input_ids"])


def test_rows_that_are_too_long_are_refused_and_never_cut(recipe):
    with pytest.raises(DatasetError, match="8 rows are longer than seq_length 8"):
        tokenize_rows(recipe.replace(seq_length=8), tiny_tokenizer())


def test_dora_is_refused_by_the_shipped_trainer(recipe, tmp_path):
    (tmp_path / "base").mkdir()
    with pytest.raises(TrainError, match="DoRA"):
        run(recipe.replace(use_dora=True))


@pytest.mark.slow
def test_the_shipped_trainer_trains_continues_and_is_merged(recipe, tmp_path, monkeypatch):
    python = os.environ.get("BAKEHOUSE_UNSLOTH_PYTHON")
    if not python:
        pytest.skip("BAKEHOUSE_UNSLOTH_PYTHON names no Python with unsloth")
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    docker = FakeDocker(tmp_path / "docker", "ps-train", python=python)
    monkeypatch.setenv("PATH", f"{docker.bin}{os.pathsep}{os.environ['PATH']}")
    result = run(recipe, poll_interval=0.2)
    assert (result.final_iter, result.iter_dirs) == (5, (2, 4, 5))
    state = json.loads(
        (Path(result.run_dir) / "checkpoint-5" / "trainer_state.json").read_text(encoding="utf-8")
    )
    adapter = json.loads(
        (Path(result.run_dir) / "checkpoint-5" / "adapter_config.json").read_text(encoding="utf-8")
    )
    assert (adapter["r"], adapter["lora_alpha"]) == (4, 32)
    assert state["log_history"][0]["learning_rate"] == pytest.approx(1e-4, rel=0.1)
    assert merge_and_export(recipe, expect_iter=5).source_iter == 5


@pytest.mark.parametrize("module", ["tools.lanes.scripts.train_unsloth", "tools.merge_worker"])
def test_what_is_shipped_starts_with_nothing_but_the_standard_library(tmp_path, module):
    """The container has torch and transformers, but none of this project's other dependencies."""
    home = ship(tmp_path)
    found = subprocess.run(
        [sys.executable, "-S", "-P", "-c", f"import {module} as m; print(m.__file__)"],
        env={"PYTHONPATH": str(home)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert found.stdout.startswith(str(home))
