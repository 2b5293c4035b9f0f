"""Train two members with plenty of memory, then again under a limit that a whole pass does not fit.

Run as `python memory_driver.py FOLDER cpu|cuda`; prints how the second training's members ended
and exits with 0 where their adapters are those of the first, within rounding.
"""

from __future__ import annotations

import logging
import resource
import sys
from pathlib import Path

import torch

from tests.tiny import tiny_model, tiny_tokenizer
from tests.tools.engine.conftest import adapter_tensors, write_rows
from tools.engine.base import LoadedBase, wrap_base
from tools.engine.memory import give_back_memory, peak_memory_bytes, reset_peak_memory
from tools.engine.spec import StackMember
from tools.engine.trainer import train_stack
from tools.recipe import TrainRecipe


def members(folder: Path, run: str) -> list[StackMember]:
    common = {
        "base_model": "tiny",
        "dataset_jsonl": str(folder / "train.jsonl"),
        "output_dir": str(folder),
        "global_batch_size": 16,
        "micro_batch_size": 16,
        "max_steps": 2,
        "smoke_steps": 1,
        "torch_dtype": "float32",
    }
    recipes = {
        "dropped": TrainRecipe(**common, lora_dropout=0.2),
        "plain": TrainRecipe(**common, lora_dropout=0.0),
    }
    return [StackMember(name, recipe, str(folder / run / name)) for name, recipe in recipes.items()]


def used_bytes(line: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(text.split(f"{line}:")[1].split()[0])


def train(base: LoadedBase, folder: Path, run: str) -> list[dict[str, torch.Tensor]]:
    results = train_stack(base, members(folder, run), stack_tokens=10**6)
    sys.stdout.write("".join(f"{result.status}\n" for result in results) if run == "tight" else "")
    return [adapter_tensors(str(result.adapter_dir)) for result in results]


def limit_memory(device: torch.device, needed: int) -> None:
    """Leave half of what a training needs."""
    give_back_memory()
    if device.type == "cuda":
        _, total = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device)
        torch.cuda.set_per_process_memory_fraction((held + needed // 2) / total, device)
        return
    # The limit is one of address space, so what a training takes of that is what counts.
    used = used_bytes("VmSize")
    limit = used + (used_bytes("VmPeak") - used) // 2
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(folder: Path, device: torch.device) -> int:
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    write_rows(folder / "train.jsonl", 32)
    # Wide inside, so that what a pass leaves behind is far more than anything else.
    model = tiny_model(hidden_size=128, intermediate_size=2048, num_hidden_layers=4).to(device)
    base = wrap_base(model, tiny_tokenizer(), name="tiny")
    train(base, folder, "warm")
    give_back_memory()
    reset_peak_memory()
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else used_bytes("VmRSS")
    plenty = train(base, folder, "plenty")
    limit_memory(device, peak_memory_bytes(device) - before)
    tight = train(base, folder, "tight")
    for mine, twin in zip(tight, plenty, strict=True):
        for key, tensor in mine.items():
            gap = torch.linalg.vector_norm(tensor - twin[key])
            if gap > 1e-4 * torch.linalg.vector_norm(twin[key]):
                raise SystemExit(f"{key} is off by {float(gap)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), torch.device(sys.argv[2])))
