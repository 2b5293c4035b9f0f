"""The fit: how much memory a recipe needs, and whether the machine has it."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tools.errors import HardwareError, ModelError
from tools.hardware.footprint import Answering, Footprint
from tools.hardware.machine import Hardware, detect
from tools.hardware.shape import ModelShape, read_shape
from tools.recipe import TrainRecipe

__all__ = ["Answering", "Fit", "check_fit", "estimate", "longest_row", "mean_row", "usable_bytes"]

_LOG = logging.getLogger(__name__)
_GIB: Final = 2**30
# Part of the free memory that a run may plan with. Allocators fragment; and where CPU and GPU
# share one memory, running out can take the whole machine down, not the process alone.
_USABLE: Final = 0.92
_USABLE_UNIFIED: Final = 0.85
# A token of running text is four characters and more; short words, digits and code need fewer.
_CHARACTERS_A_TOKEN: Final = 2.5
_CHARACTERS_A_USUAL_TOKEN: Final = 3.5
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
    answering_bytes: int
    """An evaluation, which takes the place of activations and logits; 0 where there is none."""
    runtime_bytes: int
    available_bytes: int
    """What of the free memory a run may plan with."""
    reasons: tuple[str, ...]
    """Why it does not fit and what to change; empty when it fits."""

    @property
    def total_bytes(self) -> int:
        """The peak: training or answering, whichever takes more."""
        held = self.weights_bytes + self.adapter_bytes + self.optimizer_bytes + self.runtime_bytes
        return held + max(self.activation_bytes + self.logits_bytes, self.answering_bytes)

    def describe(self) -> str:
        """Return one line for a person."""
        sizes = ", ".join(f"{name} {size / _GIB:.1f}" for name, size in self._parts().items() if size)
        return f"about {self.total_bytes / _GIB:.1f} GiB ({sizes})"

    def _parts(self) -> dict[str, int]:
        names = ("weights", "adapter", "optimizer", "activation", "logits", "answering", "runtime")
        return {name: getattr(self, f"{name}_bytes") for name in names}

    @property
    def fits(self) -> bool:
        return not self.reasons


def estimate(
    recipe: TrainRecipe,
    shape: ModelShape,
    hardware: Hardware,
    *,
    row_tokens: int,
    members: int = 1,
    answering: Answering | None = None,
) -> Fit:
    """Return the peak memory of training, from what the engine keeps for the backward pass.

    Args:
        recipe: Gives precision, rank, targets and micro batch.
        shape: The base model's sizes.
        hardware: Where it would run.
        row_tokens: Tokens of the longest row.
        members: Adapters that train side by side on one base.
        answering: The evaluations between and after the steps; None counts none.
    """
    footprint = Footprint(recipe, shape, hardware.kind, min(row_tokens, recipe.seq_length))
    fit = Fit(
        weights_bytes=footprint.weights_bytes,
        adapter_bytes=members * footprint.adapter_bytes,
        optimizer_bytes=members * footprint.optimizer_bytes,
        activation_bytes=footprint.activation_bytes(members),
        logits_bytes=footprint.logits_bytes(members),
        answering_bytes=0 if answering is None else footprint.answering_bytes(answering),
        runtime_bytes=footprint.runtime_bytes,
        available_bytes=usable_bytes(hardware),
        reasons=(),
    )
    return (
        fit if fit.total_bytes <= fit.available_bytes else replace(fit, reasons=_advise(recipe, fit, members))
    )


def usable_bytes(hardware: Hardware) -> int:
    """Return what of the free memory a run may plan with."""
    return int((_USABLE_UNIFIED if hardware.unified else _USABLE) * hardware.memory_available_bytes)


def check_fit(
    recipe: TrainRecipe,
    *,
    hardware: Hardware | None = None,
    shape: ModelShape | None = None,
    row_tokens: int | None = None,
    members: int = 1,
    answering: Answering | None = None,
) -> Fit | None:
    """Refuse a recipe that the machine has no memory for.

    Args:
        recipe: With its paths resolved.
        hardware: None looks at this machine.
        shape: None reads it from the recipe's base model.
        row_tokens: Tokens of the longest row; None estimates them from the recipe's rows.
        members: Adapters that train side by side on one base.
        answering: The evaluations between and after the steps; None counts none.
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
    longest = row_tokens if row_tokens is not None else longest_row(recipe)
    fit = estimate(recipe, shape, machine, row_tokens=longest, members=members, answering=answering)
    if not fit.fits:
        raise HardwareError(f"the recipe does not fit {machine.describe()}: " + "; ".join(fit.reasons))
    return fit


def longest_row(recipe: TrainRecipe) -> int:
    """Estimate the tokens of the longest row; what cannot be read counts as a full row."""
    lengths = _row_characters(recipe)
    if lengths is None:
        return recipe.seq_length
    tokens = round((max(lengths, default=0) + _prompt_bytes(recipe)) / _CHARACTERS_A_TOKEN)
    return min(recipe.seq_length, tokens + 2 * _TOKENS_A_TURN)


def mean_row(recipe: TrainRecipe) -> float | None:
    """Estimate the tokens of a row without the system prompt; None where the rows cannot be read."""
    lengths = _row_characters(recipe)
    return None if not lengths else sum(lengths) / len(lengths) / _CHARACTERS_A_USUAL_TOKEN


def _row_characters(recipe: TrainRecipe) -> list[int] | None:
    try:
        with Path(recipe.dataset_jsonl).open("rb") as file:
            return [_characters(json.loads(line)) for line in file if line.strip()]
    except (OSError, ValueError, AttributeError, TypeError, KeyError, RecursionError):
        return None


def _prompt_bytes(recipe: TrainRecipe) -> int:
    # One that cannot be read is refused elsewhere.
    with contextlib.suppress(OSError):
        return Path(recipe.system_prompt_file).stat().st_size if recipe.system_prompt_file else 0
    return 0


def _characters(row: Mapping[str, object]) -> int:
    messages = row.get("messages")
    if not isinstance(messages, list):
        return sum(len(value) for value in row.values() if isinstance(value, str))
    turn = _TOKENS_A_TURN * _CHARACTERS_A_TOKEN
    return round(sum(len(message["content"]) + turn for message in messages))


def _advise(recipe: TrainRecipe, fit: Fit, members: int) -> tuple[str, ...]:
    available = fit.available_bytes
    reasons = [f"it needs {fit.describe()} and may use {available / _GIB:.1f} GiB"]
    if fit.weights_bytes + fit.runtime_bytes > available:
        smaller = " or torch_dtype bfloat16" if recipe.torch_dtype == "float32" else ""
        if recipe.quantization == "none" and recipe.backend in ("local", "ray"):
            smaller += " or quantization nf4"
        reasons.append(f"the base alone is too large: choose a smaller base_model{smaller}")
        return tuple(reasons)
    if fit.answering_bytes > fit.activation_bytes + fit.logits_bytes:
        reasons.append("answer fewer rows at once (eval_batch_size)")
    if members > 1:
        reasons.append(f"train fewer than {members} adapters at once")
    if recipe.micro_batch_size > 1:
        reasons.append(f"lower micro_batch_size ({recipe.micro_batch_size})")
    if not recipe.gradient_checkpointing and recipe.backend in ("local", "ray"):
        reasons.append("set gradient_checkpointing to true, which keeps little more than one layer")
    if recipe.lora_dropout and fit.activation_bytes > available / 4:
        reasons.append("set lora_dropout to 0, which keeps two copies of every input less")
    if fit.adapter_bytes + fit.optimizer_bytes > available / 8:
        reasons.append(f"lower lora_rank ({recipe.lora_rank})")
    reasons.append("shorten the longest rows, or free memory")
    return tuple(reasons)
