"""Predicted against real: peak memory of training and answering, in fresh workers.

    python benchmarks/memory.py                     on this machine's CPU
    python benchmarks/memory.py --device cuda --models smollm2-135m,qwen3-0.6b,qwen3-8b

Each case trains a few steps in a worker of its own, as the local lane starts it, and compares
the worker's peak (all its resident memory on a CPU, the allocator's peak on CUDA) with what
`tools.hardware` says beforehand. Models have random weights, which take as much room as others.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.bakeoff_prepare import Request  # noqa: E402
from benchmarks.bakeoff_run import environment_for  # noqa: E402
from benchmarks.bakeoff_work import n_cores, versions_of  # noqa: E402
from tools.hardware import Answering, Hardware, estimate, read_shape  # noqa: E402
from tools.recipe import TrainRecipe  # noqa: E402

MIB: Final = 2**20
ATTENTION: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL: Final = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
WIDE: Final = 10**9


@dataclass(frozen=True)
class Case:
    """One run: adapters side by side, or an evaluation."""

    name: str
    row_tokens: int
    members: int = 1
    recipe: dict[str, Any] = field(default_factory=dict)
    answered_rows: int = 0
    """Answers as many rows at once instead of training."""


CASES: Final = (
    Case("8 short rows, attention", 64, recipe={"micro_batch_size": 8, "global_batch_size": 8}),
    Case(
        "4 long rows, all, rank 64, dropout",
        256,
        recipe={
            "micro_batch_size": 4,
            "global_batch_size": 4,
            "lora_rank": 64,
            "lora_dropout": 0.05,
            "lora_target_modules": ALL,
        },
    ),
    Case("4 adapters side by side", 128, members=4, recipe={"micro_batch_size": 4, "global_batch_size": 4}),
    Case(
        "4 rows, recomputed layers",
        448,
        recipe={
            "micro_batch_size": 4,
            "global_batch_size": 4,
            "gradient_checkpointing": True,
            "lora_target_modules": ALL,
        },
    ),
    Case("a very long row", 768, recipe={"micro_batch_size": 1, "global_batch_size": 1}),
    Case("64 rows answered at once", 256, answered_rows=64),
)
NEW_TOKENS: Final = 64


def train_spec(case: Case, model: str, rows: str, folder: Path) -> dict[str, Any]:
    """Return what the worker is asked to train."""
    members = [
        {
            "trial_id": f"m{i}",
            "recipe": recipe_of(case, model, rows).replace(seed=i).to_dict(),
            "run_dir": str(folder / f"m{i}"),
        }
        for i in range(case.members)
    ]
    return {
        "kind": "train",
        "base_model": model,
        "mode": "full",
        "members": members,
        "mid_eval": None,
        "result_path": str(folder / "result.json"),
        "stack_tokens": WIDE,
    }


def evaluate_spec(case: Case, model: str, rows: str, folder: Path) -> dict[str, Any]:
    """Return what the worker is asked to answer: rows whose prompts are nearly all of them."""
    return {
        "kind": "evaluate",
        "base_model": model,
        "torch_dtype": "bfloat16",
        "adapters": [{"trial_id": "base", "seed": 0, "adapter_dir": None}],
        "splits": {"dev": rows},
        "scorer": {"name": "exact"},
        "scores_dir": str(folder / "scores"),
        "result_path": str(folder / "result.json"),
        "max_new_tokens": NEW_TOKENS,
        "batch_size": case.answered_rows,
    }


def recipe_of(case: Case, model: str, rows: str) -> TrainRecipe:
    plain: dict[str, Any] = {
        "lora_dropout": 0.0,
        "lora_target_modules": ATTENTION,
        "max_steps": 3,
        "smoke_steps": 1,
        "seq_length": 2048,
        "save_interval": 1000,
    }
    return TrainRecipe(base_model=model, dataset_jsonl=rows, output_dir=".", **{**plain, **case.recipe})


def predict(case: Case, model: str, rows: str, facts: dict[str, Any], device: str) -> int:
    """Return the peak that is foretold; on CUDA without what the allocator does not count."""
    hardware = Hardware("cuda" if device == "cuda" else "cpu", device, 2**50, 2**50, n_cores(), bf16=True)
    recipe = recipe_of(case, model, rows)
    answering = None
    if case.answered_rows:
        longest = facts["longest_prompt"]
        answering = Answering(case.answered_rows, longest, NEW_TOKENS, facts["shared_prefix"])
    fit = estimate(
        recipe,
        read_shape(model),
        hardware,
        row_tokens=facts["longest"],
        members=case.members,
        answering=answering,
    )
    outside = fit.runtime_bytes if device == "cuda" else 0
    if answering is not None:
        # No adapter is trained in that worker, and the base alone answers.
        return fit.weights_bytes + fit.runtime_bytes + fit.answering_bytes - outside
    return fit.total_bytes - outside


def measure(spec: dict[str, Any], folder: Path, device: str, threads: int) -> int:
    """Run a worker on a spec and return its peak."""
    path = folder / "spec.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    environment = {**environment_for(device, threads), "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "tools.engine", str(path)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the worker ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    if any(member["status"] != "done" for member in result.get("members", [])):
        raise SystemExit(f"a member failed: {result['members']}")
    return int(result["peak_memory_bytes"])


def prepare(model: str, case: Case, folder: Path, made: str | None, device: str) -> dict[str, Any]:
    """Make the rows of a case, and the model unless it is made already."""
    n_rows = 3 * case.recipe.get("global_batch_size", 8) if not case.answered_rows else case.answered_rows
    request = Request(
        str(folder),
        model,
        made,
        device,
        None,
        n_rows,
        case.row_tokens,
        0.0,
        0.05 if case.answered_rows else 0.33,
    )
    path = folder / "request.json"
    path.write_text(json.dumps(asdict(request)), encoding="utf-8")
    argv = [sys.executable, str(ROOT / "benchmarks" / "bakeoff_prepare.py"), str(path)]
    subprocess.run(argv, env=environment_for(device, n_cores()), check=True, capture_output=True)
    facts = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))
    assert isinstance(facts, dict)
    return facts


def compare(model: str, cases: tuple[Case, ...], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield prediction and measurement of each case."""
    with tempfile.TemporaryDirectory(prefix="memory-") as scratch:
        made: str | None = None
        for number, case in enumerate(cases):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            facts = prepare(model, case, folder, made, options.device)
            made = facts["model"]
            make = evaluate_spec if case.answered_rows else train_spec
            real = measure(make(case, made, facts["rows"], folder), folder, options.device, options.threads)
            foretold = predict(case, made, facts["rows"], facts, options.device)
            yield {"model": model, "case": case.name, "foretold": foretold, "real": real}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--models", default="smollm2-135m,qwen3-0.6b")
    parser.add_argument("--cases", help="numbers of the cases to run, by comma, from 1 on; all by default")
    parser.add_argument("--threads", type=int, default=n_cores())
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    chosen = [int(n) - 1 for n in options.cases.split(",")] if options.cases else range(len(CASES))
    cases = tuple(CASES[n] for n in chosen)
    rows = []
    print(f"{'model':16} {'case':36} {'foretold':>12} {'real':>10} {'error':>7}")
    for model in options.models.split(","):
        for row in compare(model, cases, options):
            error = row["foretold"] / row["real"] - 1
            print(
                f"{model:16} {row['case']:36} {row['foretold'] / MIB:8.0f} MiB "
                f"{row['real'] / MIB:6.0f} MiB {100 * error:+6.1f}%",
                flush=True,
            )
            rows.append({**row, "error": error})
    worst = max(abs(row["error"]) for row in rows)
    print(f"worst error {100 * worst:.1f}% of {len(rows)} runs")
    if options.json:
        found = {
            "when": datetime.now(tz=UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
            "versions": versions_of(["torch", "transformers"]),
            "cores": os.cpu_count(),
            "rows": rows,
        }
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
