"""Train in forked children that are killed at random moments until one of them ends by itself.

Run as `python kill_driver.py FOLDER [--search]`; prints how often it killed. Forked, so that torch
is imported once; a child that trains is no different from a process of its own. With --search four
members compete, and `results.json` in the run's folder says how each ended.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.tiny import tiny_model, tiny_tokenizer
from tools.engine.base import wrap_base
from tools.engine.halving import Halving
from tools.engine.spec import MidEval, ScorerChoice, StackMember
from tools.engine.trainer import train_stack
from tools.recipe import TrainRecipe

SHARED = {"lora_rank": 4, "lora_alpha": 8, "seq_length": 256, "torch_dtype": "float32", "save_interval": 2}


def members(folder: Path, run: str) -> list[StackMember]:
    rows = str(folder / "train.jsonl")
    common = {"base_model": "tiny", "dataset_jsonl": rows, "output_dir": str(folder), **SHARED}
    dropped = TrainRecipe(
        **common, max_steps=14, global_batch_size=6, micro_batch_size=2, lora_dropout=0.2, eval_interval=3
    )
    plain = TrainRecipe(**common, max_steps=9, global_batch_size=4, micro_batch_size=4, lora_dropout=0.0)
    return [
        StackMember("dropped", dropped, str(folder / run / "dropped")),
        StackMember("plain", plain, str(folder / run / "plain")),
    ]


def rivals(folder: Path, run: str) -> list[StackMember]:
    rows = str(folder / "train.jsonl")
    common = {"base_model": "tiny", "dataset_jsonl": rows, "output_dir": str(folder), **SHARED}
    batch = {"global_batch_size": 4, "micro_batch_size": 2}
    recipes = {
        f"rival{i}": TrainRecipe(**common, **batch, max_steps=10 + i, learning_rate=4e-3 * (i + 1), seed=i)
        for i in range(4)
    }
    return [StackMember(name, recipe, str(folder / run / name)) for name, recipe in recipes.items()]


def search(folder: Path, run: str) -> None:
    base = wrap_base(tiny_model(), tiny_tokenizer(), name="tiny")
    scorer = ScorerChoice("custom", scorer_file=str(folder / "scorer.py"))
    mid_eval = MidEval(str(folder / "train.jsonl"), 3, scorer, max_new_tokens=6)
    results = train_stack(
        base, rivals(folder, run), mid_eval=mid_eval, search=Halving((0.25, 0.5), 0.4), stack_tokens=0
    )
    told = [(result.trial_id, result.status, result.steps) for result in results]
    (folder / run / "results.json").write_text(json.dumps(told), encoding="utf-8")


def train(folder: Path, run: str) -> None:
    base = wrap_base(tiny_model(), tiny_tokenizer(), name="tiny")
    scorer = ScorerChoice("custom", scorer_file=str(folder / "scorer.py"))
    mid_eval = MidEval(str(folder / "train.jsonl"), 3, scorer, max_new_tokens=6)
    results = train_stack(base, members(folder, run), mid_eval=mid_eval)
    if [result.status for result in results] != ["done", "done"]:
        raise SystemExit(f"unexpected results: {results}")


def forked(folder: Path, run: str, work: Callable[[Path, str], None]) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work(folder, run)
        status = 0
    finally:
        os._exit(status)


def main(folder: Path, work: Callable[[Path, str], None]) -> int:
    torch.set_num_threads(1)
    started = time.monotonic()
    _, status = os.waitpid(forked(folder, "whole", work), 0)
    whole_s = time.monotonic() - started
    if status:
        return 1
    chance = random.Random(5)
    kills = 0
    while True:
        child = forked(folder, "killed", work)
        # The later attempts get longer, so that the driver ends however slow the machine is.
        time.sleep(chance.uniform(0.05, 0.6 + 0.05 * kills) * whole_s)
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            break
        kills += 1
    sys.stdout.write(f"{kills}\n")
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), search if "--search" in sys.argv else train))
