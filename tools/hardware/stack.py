"""The stack: how much a pass may hold so that it fills the device and fits its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tools.errors import HardwareError
from tools.hardware.fit import usable_bytes
from tools.hardware.footprint import Footprint
from tools.hardware.machine import Hardware
from tools.hardware.shape import ModelShape
from tools.recipe import TrainRecipe

__all__ = ["StackChoice", "choose_stack"]

# A pass of this many tokens keeps the largest device busy; a wider one costs memory and gains nothing.
_BUSY_TOKENS: Final = 16384


@dataclass(frozen=True)
class StackChoice:
    """How many adapters train side by side."""

    stack_tokens: int
    """Most tokens of one pass; 0 is one adapter at a time."""
    members: int
    """How many of the recipes share a pass, from the first on."""


def choose_stack(
    recipes: Sequence[TrainRecipe],
    shape: ModelShape,
    hardware: Hardware,
    *,
    row_tokens: int,
    base_is_loaded: bool = False,
) -> StackChoice:
    """Choose how many recipes of one base train side by side, by the memory that is left.

    One at least, whether or not it fits: `check_fit` is what refuses.

    Args:
        recipes: In the order in which they would be seated.
        shape: The base model's sizes.
        hardware: Its free memory counts; where CPU and GPU share one, that of the machine.
        row_tokens: Tokens of the longest row.
        base_is_loaded: The free memory is what the base has left.
    Raises:
        HardwareError: there is no recipe.
    """
    if not recipes:
        raise HardwareError("there is no recipe to choose a stack for; give one at least")
    if hardware.kind == "cpu":
        # A wider pass gains nothing there, and alone a killed run resumes bit for bit.
        return StackChoice(0, 1)
    footprints = [
        Footprint(recipe, shape, hardware.kind, min(row_tokens, recipe.seq_length)) for recipe in recipes
    ]
    first = footprints[0]
    left = usable_bytes(hardware) - (0 if base_is_loaded else first.weights_bytes + first.runtime_bytes)
    tokens = members = 0
    activations = held = 0
    for footprint in footprints:
        tokens += footprint.pass_tokens
        activations += footprint.activation_bytes(1)
        held += footprint.adapter_bytes + footprint.optimizer_bytes
        needed = held + activations + first.logits_bytes(members + 1)
        if members and (needed > left or tokens > _BUSY_TOKENS):
            break
        members += 1
    return StackChoice(sum(footprint.pass_tokens for footprint in footprints[:members]), members)
