"""A tiny base with its rows, and recipes that train on it in a moment."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import tiny_model, tiny_tokenizer
from tools.engine import pass_size
from tools.engine.base import LoadedBase, wrap_base
from tools.engine.spec import StackMember
from tools.recipe import TrainRecipe

WORDS = ("take off", "land now", "hover", "go to B4", "come back home", "descend", "what is the weather like")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def passes_of_a_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows here are so short that every step would be one pass."""
    monkeypatch.setattr(pass_size, "_BUSY_TOKENS", 0)


@pytest.fixture(params=["llama", "qwen3"])
def any_base(request: pytest.FixtureRequest) -> LoadedBase:
    return wrap_base(tiny_model(request.param), tiny_tokenizer(), name=f"tiny-{request.param}")


@pytest.fixture
def base() -> LoadedBase:
    return wrap_base(tiny_model(), tiny_tokenizer(), name="tiny-llama")


def write_rows(path: Path, n: int = 11, *, seed: int = 0) -> Path:
    """Write n rows of different lengths."""
    rows = []
    for i in range(n):
        word = WORDS[(i + seed) % len(WORDS)]
        answer = json.dumps(
            {"cmd": word.split()[0], "args": {"n": i * 7 % 10}} if i % 3 else {"cmd": word[:4]}
        )
        turns = [{"role": "user", "content": f"{word} {'please ' * (i % 4)}{i}"}]
        turns.append({"role": "assistant", "content": answer})
        rows.append({"id": f"r{seed}-{i}", "messages": turns})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def member(tmp_path: Path) -> Callable[..., StackMember]:
    """Make a member: changes to a small recipe, and optionally rows of its own."""
    shared = write_rows(tmp_path / "train.jsonl")

    def make(trial_id: str = "t0", *, run: str = "run", **changes: Any) -> StackMember:
        recipe = TrainRecipe(
            **{
                "base_model": "tiny-llama",
                "dataset_jsonl": str(shared),
                "output_dir": str(tmp_path / "out"),
                "lora_rank": 4,
                "lora_alpha": 8,
                "lora_dropout": 0.0,
                "micro_batch_size": 4,
                "global_batch_size": 4,
                "seq_length": 256,
                "learning_rate": 2e-3,
                "max_steps": 6,
                "smoke_steps": 2,
                "save_interval": 100,
                "torch_dtype": "float32",
                "seed": 1,
                **changes,
            }
        )
        recipe.validate()
        return StackMember(trial_id, recipe, str(tmp_path / run / trial_id))

    return make


def metrics_of(member: StackMember) -> list[dict[str, Any]]:
    """Return the lines of a member's metrics file."""
    text = (Path(member.run_dir) / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def adapter_tensors(folder: str | Path) -> dict[str, torch.Tensor]:
    """Return an adapter's tensors by their names on disk."""
    from safetensors.torch import load_file

    return load_file(Path(folder) / "adapter_model.safetensors")
