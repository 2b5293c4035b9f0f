"""Gradient checkpointing of the decoder layers: less memory for a second forward pass."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tools.engine.lora import Adapter

__all__ = ["recomputed"]


@contextlib.contextmanager
def recomputed(layers: Iterable[nn.Module], adapters: Sequence[Adapter]) -> Iterator[None]:
    """Compute each layer again in the backward pass, for the length of the block.

    The dropout of every adapter strikes the same places both times.
    """
    generators = [adapter.generator for adapter in adapters if adapter.dropout]
    contexts = functools.partial(_contexts, generators)
    wrapped = list(layers)
    for layer in wrapped:
        forward = functools.partial(
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
        )
        # Set past nn.Module, whose own __setattr__ is for parameters; it hides the class's method.
        layer.__dict__["forward"] = forward
    try:
        yield
    finally:
        for layer in wrapped:
            del layer.__dict__["forward"]


class _Replay(contextlib.AbstractContextManager[None]):
    """Sets generators back to where they stood, and forward again on leaving."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._generators = generators
        self._then = [generator.get_state() for generator in generators]

    def __enter__(self) -> None:
        self._now = [generator.get_state() for generator in self._generators]
        self._set(self._then)

    def __exit__(self, *_: object) -> None:
        self._set(self._now)

    def _set(self, states: Sequence[torch.Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)


def _contexts(generators: Sequence[torch.Generator]) -> tuple[Any, Any]:
    """Return the surroundings of a layer's first and second forward; called just before the first."""
    return contextlib.nullcontext(), _Replay(generators)
