"""Answering a file of prompts: ours beside transformers' own ways, in one run.

    python benchmarks/generation.py                        the demo's rows on the cached demo model
    python benchmarks/generation.py --adapter FOLDER       with an adapter that was trained
    python benchmarks/generation.py --adapters 8           eight adapters, each asked everything
    python benchmarks/generation.py --device cuda --model FOLDER --rows 400 --batch-size 64

Everyone answers the same prompts greedily, with the same adapters, at most --batch-size rows at a
time. Peers: peft on transformers' `generate`, fed batches of like length; the same on its
continuous batching, where that runs; with several adapters, peft's batches of mixed adapters too.
Before anything is timed, all answer the first rows in float32 and must give the same text. The
runs take turns, so that a busy machine is hard on all.

Without --model and without the demo's model in the cache, a tiny random model stands in: its
times say little. Without --adapter, random ones do: their answers are as long as allowed.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.chat import render_prompt  # noqa: E402
from tools.dataset import load_dataset  # noqa: E402
from tools.engine.adapter_files import load_adapter  # noqa: E402
from tools.engine.base import LoadedBase, load_base  # noqa: E402
from tools.engine.generation import (  # noqa: E402
    Asked,
    generate_answers,
    generate_for_all,
    shared_length,
    stop_ids_of,
)
from tools.engine.lora import Adapter  # noqa: E402

DEMO_MODEL = "smollm2-135m-instruct-q4_1"
EXAMPLE = ROOT / "examples" / "drone-router"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CHECKED_ROWS = 24
PAGE_TOKENS = 32

Prompts = list[tuple[int, ...]]
Said = list[list[list[int]]]
"""By adapter and prompt the generated tokens, short of the one that ended the answer."""
Answering = Callable[[Prompts], Said]
"""Has every adapter answer every prompt."""


@dataclass(frozen=True)
class Setting:
    """What all contenders share."""

    model: str
    adapters: tuple[str, ...]
    device: torch.device
    batch_size: int
    max_new_tokens: int


def load_ours(setting: Setting, dtype: str) -> tuple[LoadedBase, list[Adapter]]:
    base = load_base(setting.model, dtype, device=setting.device)
    adapters = [load_adapter(base.stack, f, device=base.device, dtype=base.dtype) for f in setting.adapters]
    return base, adapters


def ours(setting: Setting, dtype: str) -> Answering:
    """Return this project's engine: all adapters in one batch."""
    base, adapters = load_ours(setting, dtype)

    def answer(prompts: Prompts) -> Said:
        found = generate_for_all(
            base,
            [Asked(prompts, adapter) for adapter in adapters],
            max_new_tokens=setting.max_new_tokens,
            batch_size=setting.batch_size,
        )
        return [[list(answer.token_ids) for answer in answers] for answers in found]

    return answer


def ours_in_turn(setting: Setting, dtype: str) -> Answering:
    """Return this project's engine: one adapter after the other."""
    base, adapters = load_ours(setting, dtype)

    def answer(prompts: Prompts) -> Said:
        limits = {"max_new_tokens": setting.max_new_tokens, "batch_size": setting.batch_size}
        found = [generate_answers(base, prompts, adapter=adapter, **limits) for adapter in adapters]
        return [[list(answer.token_ids) for answer in answers] for answers in found]

    return answer


def load_peft(setting: Setting, dtype: str) -> tuple[Any, list[int]]:
    """Return the model with its adapters as peft loads them, and the tokens that end an answer."""
    from peft import PeftModel

    base = load_base(setting.model, dtype, device=setting.device)
    model = PeftModel.from_pretrained(base.model, setting.adapters[0], adapter_name="a0")
    for number, folder in enumerate(setting.adapters[1:], 1):
        model.load_adapter(folder, adapter_name=f"a{number}")
    return model.eval(), sorted(stop_ids_of(base))


def generate_batch(setting: Setting, model: Any, stops: list[int], batch: Prompts, **more: Any) -> Prompts:
    """Return what `generate` says to prompts of falling length, padded on the left."""
    width = len(batch[0])
    rows = [[0] * (width - len(prompt)) + list(prompt) for prompt in batch]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch]
    out = model.generate(
        input_ids=torch.tensor(rows, device=setting.device),
        attention_mask=torch.tensor(mask, device=setting.device),
        max_new_tokens=setting.max_new_tokens,
        do_sample=False,
        eos_token_id=stops,
        pad_token_id=0,
        **more,
    )
    return [tuple(until_stop(tokens, stops)) for tokens in out[:, width:].tolist()]


def peft_generate(setting: Setting, dtype: str) -> Answering:
    """Return `generate` on batches of like length, one adapter after the other."""
    model, stops = load_peft(setting, dtype)

    def answer(prompts: Prompts) -> Said:
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        said: Said = [[[] for _ in prompts] for _ in setting.adapters]
        for adapter, answers in enumerate(said):
            model.set_adapter(f"a{adapter}")
            for start in range(0, len(order), setting.batch_size):
                numbers = order[start : start + setting.batch_size]
                found = generate_batch(setting, model, stops, [prompts[i] for i in numbers])
                for i, tokens in zip(numbers, found, strict=True):
                    answers[i] = list(tokens)
        return said

    return answer


def peft_mixed(setting: Setting, dtype: str) -> Answering:
    """Return `generate` on batches of like length, in which each row names its adapter."""
    model, stops = load_peft(setting, dtype)

    def answer(prompts: Prompts) -> Said:
        every = [(adapter, i) for adapter in range(len(setting.adapters)) for i in range(len(prompts))]
        every.sort(key=lambda item: -len(prompts[item[1]]))
        said: Said = [[[] for _ in prompts] for _ in setting.adapters]
        for start in range(0, len(every), setting.batch_size):
            part = every[start : start + setting.batch_size]
            names = [f"a{adapter}" for adapter, _ in part]
            batch = [prompts[i] for _, i in part]
            found = generate_batch(setting, model, stops, batch, adapter_names=names)
            for (adapter, i), tokens in zip(part, found, strict=True):
                said[adapter][i] = list(tokens)
        return said

    return answer


def peft_continuous(setting: Setting, dtype: str) -> Answering:
    """Return transformers' continuous batching."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model, stops = load_peft(setting, dtype)
    wanted = GenerationConfig(
        max_new_tokens=setting.max_new_tokens, do_sample=False, eos_token_id=stops, pad_token_id=0
    )

    def answer_one(prompts: Prompts) -> list[list[int]]:
        # Left to itself it takes most of the machine's memory for its cache.
        pages = 1 + (max(map(len, prompts)) + setting.max_new_tokens) // PAGE_TOKENS
        limits = ContinuousBatchingConfig(
            max_requests_per_batch=setting.batch_size,
            page_size=PAGE_TOKENS,
            num_blocks=setting.batch_size * (pages + 1),
            max_batch_tokens=1024,
        )
        found = model.generate_batch(
            inputs=[list(prompt) for prompt in prompts],
            generation_config=wanted,
            continuous_batching_config=limits,
        )
        if len(found) != len(prompts):
            raise RuntimeError(f"{len(found)} answers came for {len(prompts)} prompts")
        in_order = sorted(found, key=lambda name: int(name.rsplit("_", 1)[-1]))
        return [until_stop(found[name].generated_tokens, stops) for name in in_order]

    def answer(prompts: Prompts) -> Said:
        said = []
        for adapter in range(len(setting.adapters)):
            model.set_adapter(f"a{adapter}")
            said.append(answer_one(prompts))
        return said

    return answer


CONTENDERS: dict[str, Callable[[Setting, str], Answering]] = {
    "peft + generate": peft_generate,
    "peft + generate, mixed": peft_mixed,
    "peft + continuous batching": peft_continuous,
    "bakehouse, in turn": ours_in_turn,
    "bakehouse": ours,
}
OF_SEVERAL = ("peft + generate, mixed", "bakehouse, in turn")
"""With one adapter these are what the others are."""


def until_stop(tokens: Sequence[int], stops: Sequence[int]) -> list[int]:
    """Return the tokens before the first that ends an answer."""
    return list(tokens[: next((i for i, token in enumerate(tokens) if token in stops), len(tokens))])


def check_same_text(setting: Setting, prompts: Prompts, names: Sequence[str]) -> dict[str, str]:
    """Have everyone answer in float32; returns who cannot run and why.

    Raises:
        SystemExit: a contender that runs says something else.
    """
    absent: dict[str, str] = {}
    expected: Said | None = None
    for name in names:
        print(f"  {name}: answering in float32", file=sys.stderr)
        try:
            said = CONTENDERS[name](setting, "float32")(prompts)
        except Exception as err:  # noqa: BLE001 - whatever keeps a peer from running is what is reported
            absent[name] = f"{type(err).__name__}: {err}".splitlines()[0][:160]
            continue
        expected = said if expected is None else expected
        pairs = zip(itertools.chain(*expected), itertools.chain(*said), strict=True)
        differing = [i for i, (a, b) in enumerate(pairs) if a != b]
        if differing:
            raise SystemExit(f"{name} gives {len(differing)} answers otherwise: {differing}")
    return absent


def time_contenders(
    setting: Setting, dtype: str, prompts: Prompts, names: Sequence[str], reps: int
) -> dict[str, list[tuple[float, int]]]:
    """Return seconds and tokens of each run, the contenders taking turns."""
    answering = {name: CONTENDERS[name](setting, dtype) for name in names}
    runs: dict[str, list[tuple[float, int]]] = {name: [] for name in names}
    for rep in range(-1, reps):
        for name, answer in answering.items():
            print(f"  {name}: {'warming up' if rep < 0 else f'run {rep + 1} of {reps}'}", file=sys.stderr)
            gc.collect()
            started = time.perf_counter()
            said = answer(prompts[: setting.batch_size] if rep < 0 else prompts)
            if rep >= 0:
                n_tokens = sum(len(tokens) + 1 for answers in said for tokens in answers)
                runs[name].append((time.perf_counter() - started, n_tokens))
    return runs


def read_prompts(tokenizer: Any, n_rows: int) -> Prompts:
    """Return the prompts of the example's dev and selection rows, repeated where they run out."""
    system_prompt = (EXAMPLE / "system_prompt.md").read_text(encoding="utf-8").strip()
    rows = [
        row
        for split in ("selection", "dev")
        for row in load_dataset(EXAMPLE / "data" / f"{split}.jsonl").rows
    ]
    prompts = [tuple(render_prompt(tokenizer, row.prompt, system_prompt=system_prompt)) for row in rows]
    return [prompts[i % len(prompts)] for i in range(n_rows)]


def find_model(wanted: str | None, folder: Path) -> str:
    """Return the model to use: the one asked for, the cached demo model, or a tiny random one."""
    if wanted is not None:
        return wanted
    from tools.errors import ModelError
    from tools.models import resolve_base_model

    try:
        return str(resolve_base_model(DEMO_MODEL))
    except ModelError as err:
        print(f"no demo model ({err}); a tiny random model stands in")
    from tests.tiny import save_tiny_base

    save_tiny_base(folder / "tiny")
    return str(folder / "tiny")


def random_adapters(model: str, folder: Path, n: int) -> tuple[str, ...]:
    """Save adapters of rank 16 on all projections that change the model a little, each otherwise."""
    from peft import LoraConfig, get_peft_model

    base = load_base(model, "float32", device=torch.device("cpu"))
    torch.manual_seed(0)
    config = LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, task_type="CAUSAL_LM")
    adapted = get_peft_model(base.model, config)
    folders = tuple(str(folder / f"adapter{number}") for number in range(n))
    for where in folders:
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=1e-3)
        adapted.save_pretrained(where)
    return folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder, a .gguf file or a Hub id")
    parser.add_argument(
        "--adapter", action="append", help="folder of a peft adapter of that model; repeatable"
    )
    parser.add_argument("--adapters", type=int, default=1, help="how many random ones where none is given")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=40)
    parser.add_argument("--max-new-tokens", type=int, default=56)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch, on a CPU")
    parser.add_argument("--without", action="append", default=[], choices=CONTENDERS, help="leave a peer out")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        model = find_model(asked.model, Path(scratch))
        adapters = tuple(asked.adapter or random_adapters(model, Path(scratch), asked.adapters))
        device = torch.device(asked.device)
        setting = Setting(model, adapters, device, asked.batch_size, asked.max_new_tokens)
        prompts = read_prompts(load_base(model, asked.dtype, device=device).tokenizer, asked.rows)
        left_out = {*(OF_SEVERAL if len(adapters) == 1 else ()), *asked.without}
        names = [name for name in CONTENDERS if name not in left_out]
        absent = check_same_text(setting, prompts[:CHECKED_ROWS], names)
        names = [name for name in names if name not in absent]
        runs = time_contenders(setting, asked.dtype, prompts, names, asked.reps)
    lengths = [len(prompt) for prompt in prompts]
    print(
        f"{Path(model).name}, {asked.dtype} on {asked.device}, {len(adapters)} x {len(prompts)} rows of "
        f"{median(lengths):.0f} prompt tokens ({shared_length(prompts)} shared), batches of "
        f"{asked.batch_size}, median of {asked.reps}; torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"the same text from all in float32 on {min(len(prompts), CHECKED_ROWS)} rows")
    first = median(wall_s for wall_s, _ in runs[names[0]])
    print(f"{'':28} {'s':>8} {'tokens/s':>9} {'ratio':>7}")
    for name in names:
        wall_s = median(wall_s for wall_s, _ in runs[name])
        speed = median(tokens / wall_s for wall_s, tokens in runs[name])
        print(f"{name:28} {wall_s:8.2f} {speed:9.0f} {first / wall_s:6.2f}x")
    for name, reason in absent.items():
        print(f"{name:28} absent: {reason}")


if __name__ == "__main__":
    main()
