"""The fit: how much memory a recipe needs, and whether the machine has it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.engine.pass_size import rows_per_pass
from tools.errors import HardwareError, ModelError
from tools.hardware.machine import Hardware, detect
from tools.hardware.shape import ModelShape, read_shape
from tools.recipe import TrainRecipe

__all__ = ["Fit", "check_fit", "estimate"]

_LOG = logging.getLogger(__name__)
_GIB: Final = 2**30
_DTYPE_BYTES: Final = {"bfloat16": 2, "float16": 2, "float32": 4}
# What a process with torch and its device context holds before the model is there.
_RUNTIME_BYTES: Final = {"cpu": 0.7 * _GIB, "cuda": 0.9 * _GIB, "mps": 0.9 * _GIB}
# Part of the free memory that a run may plan with. Allocators fragment; and where CPU and GPU
# share one memory, running out can take the whole machine down, not the process alone.
_USABLE: Final = 0.92
_USABLE_UNIFIED: Final = 0.85
# The engine computes logits in chunks of this size, in the base's precision and in float32.
_LOGITS_CHUNK_BYTES: Final = 128 * 2**20
# A token of running text is four characters and more; short words, digits and code need fewer.
_CHARACTERS_A_TOKEN: Final = 2.5
_TOKENS_A_TURN: Final = 16


@dataclass(frozen=True)
class Fit:
    """Peak memory of training a recipe, in parts, and whether it fits."""

    weights_bytes: int
    adapter_bytes: int
    """The adapters' weights and gradients."""
    optimizer_bytes: int
    activation_bytes: int
    logits_bytes: int
    runtime_bytes: int
    available_bytes: int
    """What of the free memory a run may plan with."""
    reasons: tuple[str, ...]
    """Why it does not fit and what to change; empty when it fits."""

    @property
    def total_bytes(self) -> int:
        return (
            self.weights_bytes
            + self.adapter_bytes
            + self.optimizer_bytes
            + self.activation_bytes
            + self.logits_bytes
            + self.runtime_bytes
        )

    @property
    def fits(self) -> bool:
        return not self.reasons


def estimate(
    recipe: TrainRecipe, shape: ModelShape, hardware: Hardware, *, row_tokens: int, members: int = 1
) -> Fit:
    """Return the peak memory of training, from what the engine keeps for the backward pass.

    Args:
        recipe: Gives precision, rank, targets and micro batch.
        shape: The base model's sizes.
        hardware: Where it would run.
        row_tokens: Tokens of the longest row.
        members: Adapters that train side by side on one base.
    """
    width = _DTYPE_BYTES[recipe.torch_dtype]
    longest = min(row_tokens, recipe.seq_length)
    tokens = rows_per_pass(recipe, longest) * longest * members
    adapter_params = members * _adapter_params(recipe, shape)
    usable = _USABLE_UNIFIED if hardware.unified else _USABLE
    parts = {
        "weights_bytes": shape.n_params * width,
        # float32 weights and gradients, and a copy of the weights in the base's precision
        "adapter_bytes": adapter_params * (4 + 4 + width),
        "optimizer_bytes": adapter_params * 8,
        "activation_bytes": tokens * _token_bytes(recipe, shape, width),
        "logits_bytes": _logits_bytes(tokens, shape, width),
        "runtime_bytes": int(_RUNTIME_BYTES[hardware.kind]),
    }
    available = int(usable * hardware.memory_available_bytes)
    reasons = () if sum(parts.values()) <= available else _advise(recipe, parts, available, members)
    return Fit(**parts, available_bytes=available, reasons=reasons)


def check_fit(
    recipe: TrainRecipe,
    *,
    hardware: Hardware | None = None,
    shape: ModelShape | None = None,
    row_tokens: int | None = None,
    members: int = 1,
) -> Fit | None:
    """Refuse a recipe that the machine has no memory for.

    Args:
        recipe: With its paths resolved.
        hardware: None looks at this machine.
        shape: None reads it from the recipe's base model.
        row_tokens: Tokens of the longest row; None estimates them from the recipe's rows.
        members: Adapters that train side by side on one base.
    Returns:
        The estimate, or None where the base model is not on this disk yet, so that nothing
        can be said.
    Raises:
        HardwareError: it does not fit; the message says by how much and what to change.
    """
    if shape is None:
        try:
            shape = read_shape(recipe.base_model)
        except ModelError as err:
            _LOG.info("memory is not checked: %s", err)
            return None
    machine = detect() if hardware is None else hardware
    longest = row_tokens if row_tokens is not None else _longest_row(recipe)
    fit = estimate(recipe, shape, machine, row_tokens=longest, members=members)
    if not fit.fits:
        raise HardwareError(f"the recipe does not fit {machine.describe()}: " + "; ".join(fit.reasons))
    return fit


def _adapter_params(recipe: TrainRecipe, shape: ModelShape) -> int:
    n_layers = shape.n_layers if recipe.lora_layers is None else len(recipe.lora_layers)
    return n_layers * sum(recipe.lora_rank * (n_in + n_out) for n_in, n_out in _targets(recipe, shape))


def _targets(recipe: TrainRecipe, shape: ModelShape) -> list[tuple[int, int]]:
    # A target that is no projection of ours counts as the widest one: too much rather than too little.
    widest = max(shape.projections.values(), key=sum)
    return [shape.projections.get(name, widest) for name in recipe.lora_target_modules]


def _token_bytes(recipe: TrainRecipe, shape: ModelShape, width: int) -> int:
    """Return what one token leaves behind for the backward pass, over all layers."""
    attention = shape.heads * shape.head_dim
    # both norms keep their input in float32
    layer = 2 * 4 * shape.hidden
    # the inputs of the two blocks; q, k, v and the output, with what padding the documents takes
    layer += width * (2 * shape.hidden + 4 * attention + 2 * shape.kv_width)
    # gate, its activation and up; their product only where an adapter reads it
    layer += width * (3 + ("down_proj" in recipe.lora_target_modules)) * shape.intermediate
    for n_in, _ in _targets(recipe, shape):
        layer += width * recipe.lora_rank
        if recipe.lora_dropout:
            layer += width * 2 * n_in
    # the backward pass of one layer holds its gradients beside all that is kept
    transient = width * (4 * shape.intermediate + 6 * attention) + 4 * 2 * shape.hidden
    return layer * shape.n_layers + transient


def _logits_bytes(tokens: int, shape: ModelShape, width: int) -> int:
    whole = tokens * shape.vocab * 4
    return int(min(whole, _LOGITS_CHUNK_BYTES) * (4 + width) / 4) + tokens * shape.hidden * 2 * width


def _longest_row(recipe: TrainRecipe) -> int:
    """Estimate the tokens of the longest row; what cannot be read counts as a full row."""
    longest = 0
    try:
        with Path(recipe.dataset_jsonl).open("rb") as file:
            for line in file:
                row = json.loads(line) if line.strip() else {}
                longest = max(longest, _characters(row))
        prompt = Path(recipe.system_prompt_file).stat().st_size if recipe.system_prompt_file else 0
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return recipe.seq_length
    return min(recipe.seq_length, round((longest + prompt) / _CHARACTERS_A_TOKEN) + 2 * _TOKENS_A_TURN)


def _characters(row: Mapping[str, object]) -> int:
    messages = row.get("messages")
    if not isinstance(messages, list):
        return sum(len(value) for value in row.values() if isinstance(value, str))
    turn = _TOKENS_A_TURN * _CHARACTERS_A_TOKEN
    return round(sum(len(message["content"]) + turn for message in messages))


def _advise(recipe: TrainRecipe, parts: Mapping[str, int], available: int, members: int) -> tuple[str, ...]:
    total = sum(parts.values())
    words = ", ".join(f"{name.removesuffix('_bytes')} {size / _GIB:.1f}" for name, size in parts.items())
    reasons = [f"it needs about {total / _GIB:.1f} GiB ({words}) and may use {available / _GIB:.1f} GiB"]
    fixed = parts["weights_bytes"] + parts["runtime_bytes"]
    if fixed > available:
        smaller = " or torch_dtype bfloat16" if recipe.torch_dtype == "float32" else ""
        reasons.append(f"the base alone is too large: choose a smaller base_model{smaller}")
        return tuple(reasons)
    if members > 1:
        reasons.append(f"train fewer than {members} adapters at once")
    if recipe.micro_batch_size > 1:
        reasons.append(f"lower micro_batch_size ({recipe.micro_batch_size})")
    if recipe.lora_dropout and parts["activation_bytes"] > available / 4:
        reasons.append("set lora_dropout to 0, which keeps two copies of every input less")
    if parts["adapter_bytes"] + parts["optimizer_bytes"] > available / 8:
        reasons.append(f"lower lora_rank ({recipe.lora_rank})")
    reasons.append("shorten the longest rows, or free memory")
    return tuple(reasons)
