"""Train a bakeoff's recipes with this project's engine, one at a time or side by side.

    python benchmarks/bakeoff_ours.py JOB.json

Run by benchmarks/bakeoff.py. Needs torch, transformers, peft and safetensors alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.bakeoff_work import (  # noqa: E402
    Job,
    Measured,
    Recipe,
    Stopwatch,
    Work,
    peak_bytes,
    versions_of,
    write_measured,
)


def main(path: str) -> None:
    """Do what a job says."""
    import torch

    from tools.engine.base import load_base

    job = Job.read(path)
    if job.contender == "ceiling":
        print(json.dumps(measure_ceiling()))
        return
    base = load_base(job.work.model, "bfloat16", device=torch.device(job.work.device))
    write_measured(job, train(job, base))


def train(job: Job, base: Any) -> Measured:
    """Train the job's recipes and measure."""
    from tools.engine.spec import StackMember
    from tools.engine.trainer import train_stack

    work = job.work
    rows = work.token_rows()
    longest = max(len(row["input_ids"]) for row in rows)
    members = [
        StackMember(recipe.name, train_recipe(work, recipe), str(Path(job.folder) / recipe.name))
        for recipe in job.chosen
    ]
    watch = Stopwatch(work.device)
    passes = 0

    def look() -> bool:
        # Asked before every pass: the one place where the engine hands over the clock.
        nonlocal passes
        if passes == work.warm_steps:
            watch.start(sum(tokens for _, tokens in steps_of(members)))
        passes += 1
        return False

    abreast = 1 if job.contender == "bakehouse in turn" else len(members)
    results = train_stack(
        base, members, stack_tokens=abreast * work.rows_per_step * longest, should_stop=look
    )
    failed = [result for result in results if result.status != "done"]
    if failed:
        raise SystemExit(f"{failed[0].trial_id}: {failed[0].status}: {failed[0].error}")
    tokens = sum(result.tokens for result in results)
    speed = watch.speed(tokens)
    return Measured(
        speed.wall,
        speed.cpu,
        tokens,
        {member.trial_id: mean([loss for loss, _ in steps_of([member])]) for member in members},
        peak_bytes(work.device),
        versions_of(["torch", "transformers", "peft"]),
    )


def train_recipe(work: Work, recipe: Recipe, **changes: Any) -> Any:
    """Return the engine's recipe for a recipe of the benchmark."""
    from tools.recipe import TrainRecipe

    return TrainRecipe(
        base_model=work.model,
        dataset_jsonl=work.rows,
        output_dir=".",
        lora_rank=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=0.0,
        lora_target_modules=recipe.targets,
        seq_length=8192,
        micro_batch_size=work.rows_per_step,
        global_batch_size=work.rows_per_step,
        learning_rate=recipe.learning_rate,
        lr_schedule="cosine",
        lr_warmup_fraction=0.0,
        max_steps=work.steps,
        save_interval=10**6,
        seed=recipe.seed,
        system_prompt_file=work.system_prompt,
        **changes,
    )


def steps_of(members: Any) -> list[tuple[float, int]]:
    """Return loss and tokens of every step logged so far."""
    found = []
    for member in members:
        path = Path(member.run_dir) / "metrics.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            row = json.loads(line)
            if "loss" in row:
                found.append((row["loss"], row["tokens"]))
    return found


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def measure_ceiling(size: int = 8192, rounds: int = 30) -> dict[str, float]:
    """Return the FLOP/s of a large bfloat16 matrix product: what this device can do at best."""
    import torch

    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(rounds):
            a @ b
        end.record()
        torch.cuda.synchronize()
        best = max(best, 2 * size**3 * rounds / (begin.elapsed_time(end) / 1e3))
    return {"flops": best}


if __name__ == "__main__":
    main(sys.argv[1])
