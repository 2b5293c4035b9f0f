"""How wide a stack may be on the device at hand, by the memory that the loaded base has left."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from tools.engine.base import LoadedBase
from tools.hardware.fit import longest_row
from tools.hardware.machine import Hardware, read_memory
from tools.hardware.shape import shape_of_config
from tools.hardware.stack import choose_stack
from tools.recipe import TrainRecipe

__all__ = ["device_hardware", "stack_tokens_for"]


def stack_tokens_for(base: LoadedBase, recipes: Sequence[TrainRecipe], hardware: Hardware) -> int:
    """Return the most tokens of one pass; 0 is one adapter at a time.

    Args:
        recipes: With their paths resolved: their longest row counts.
        hardware: With the memory that is free while the base is loaded.
    Raises:
        ModelError: the base's config does not say its sizes.
    """
    if hardware.kind == "cpu":
        return 0
    shape = shape_of_config(base.model.config.to_dict(), base.name)
    longest = max(longest_row(recipe) for recipe in recipes)
    return choose_stack(recipes, shape, hardware, row_tokens=longest, base_is_loaded=True).stack_tokens


def device_hardware(device: torch.device) -> Hardware:
    """Return a device with the memory that is free on it now."""
    memory = read_memory()
    cores = os.cpu_count() or 1
    if device.type == "mps":
        return Hardware("mps", "mps", memory.total, memory.available, cores, bf16=True, unified=True)
    if device.type != "cuda":
        return Hardware("cpu", "cpu", memory.total, memory.available, cores, bf16=True)
    properties = torch.cuda.get_device_properties(device)
    unified = bool(properties.is_integrated)
    free, total = torch.cuda.mem_get_info(device)
    # What the allocator holds without using it is free to us, though not to others.
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    # There, cudaMemGetInfo counts page cache as used.
    total, free = (memory.total, memory.available) if unified else (total, free)
    return Hardware("cuda", properties.name, total, free, cores, properties.major >= 8, unified)
