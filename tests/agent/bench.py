"""A workspace with a tiny real model, on which a whole flywheel runs in seconds."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.tiny import tiny_model, tiny_tokenizer
from tools.dataset import Message, Row, write_dataset
from tools.errors import TrainError
from tools.files import write_json_atomic
from tools.workspace import Workspace
from tools.yaml_text import dump_yaml

COLOURS = ("red", "blue", "green", "amber")
N_SIZES = 32


def write_base(folder: Path) -> Path:
    """Save a two-layer model and its tokenizer."""
    model = tiny_model(hidden_size=64, intermediate_size=128, head_dim=16, initializer_range=0.1)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def rows(split: str, pairs: list[tuple[str, str]]) -> list[Row]:
    """Rows whose answer is the first letter of the colour: little, but it has to be learned."""
    return [
        Row(
            id=f"{split}-{number}",
            messages=(
                Message("user", f"{size} {colour}"),
                Message("assistant", json.dumps({"cmd": colour[0]})),
            ),
        )
        for number, (colour, size) in enumerate(pairs)
    ]


def make_workspace(root: Path, base: Path, **task: Any) -> Workspace:
    """Write a workspace and commit it to a repository of its own."""
    pairs = [(colour, f"{size}") for size in range(N_SIZES) for colour in COLOURS]
    for number, split in enumerate(("train", "dev", "selection", "test")):
        chosen = [pair for i, pair in enumerate(pairs) if i // 4 % 4 == number]
        write_dataset(root / "data" / f"{split}.jsonl", rows(split, chosen))
    settings = {
        "name": "colours",
        "scorer": {"name": "json_cmd"},
        "seeds": [17, 29],
        "max_new_tokens": 12,
        "smoke": {"rows": 4, "steps": 60, "learning_rate": 0.01},
        "bakeoff": {"candidates": 2, "iterations": 1},
        **task,
    }
    recipe = {
        "base_model": str(base),
        "dataset_jsonl": "data/train.jsonl",
        "output_dir": ".bakehouse/runs",
        "lora_rank": 2,
        "lora_alpha": 4,
        "lora_dropout": 0.0,
        "lora_target_modules": ["q_proj", "v_proj"],
        "micro_batch_size": 4,
        "global_batch_size": 4,
        "learning_rate": 1e-4,
        "epochs": 1,
        "save_interval": 1000,
        "torch_dtype": "float32",
        "seq_length": 256,
    }
    (root / "task.yaml").write_text(dump_yaml(settings), encoding="utf-8")
    (root / "recipe.yaml").write_text(dump_yaml(recipe), encoding="utf-8")
    (root / ".gitignore").write_text(".bakehouse/\n", encoding="utf-8")
    for arguments in (
        ("init", "-q", "-b", "main"),
        ("config", "user.name", "Tester"),
        ("config", "user.email", "tester@example.org"),
        ("add", "-A"),
        ("commit", "-q", "-m", "start"),
    ):
        subprocess.run(("git", *arguments), cwd=root, check=True)
    return Workspace(root)


def write_plan(path: Path, *patches: dict[str, Any]) -> Path:
    """Write a planned bakeoff."""
    path.write_text(dump_yaml([{"patch": patch} for patch in patches]), encoding="utf-8")
    return path


def run_here(
    spec: Mapping[str, Any], *, spec_path: Path, log_path: Path, timeout_s: float | None = None
) -> Mapping[str, Any]:
    """Run the real engine's worker in this process: the same work without a child's start.

    There is no child to end, so a time limit is not kept.
    """
    from tools.engine.worker import run_worker

    before = signal.getsignal(signal.SIGTERM)
    try:
        code = run_worker(write_json_atomic(spec_path, {**spec, "threads": 1}))
    finally:
        signal.signal(signal.SIGTERM, before)
    if code:
        raise TrainError(f"the worker ended with exit code {code}")
    result: Mapping[str, Any] = json.loads(Path(spec["result_path"]).read_text(encoding="utf-8"))
    return result
