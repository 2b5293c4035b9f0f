"""One pass: forward and backward of several adapters' rows through the frozen base."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch

from tools.engine.base import LoadedBase
from tools.engine.batches import Stream
from tools.engine.frozen_prefix import upper_layers
from tools.engine.lora import Adapter, Span
from tools.engine.loss import supervised_loss
from tools.engine.recompute import recomputed

__all__ = ["forward_backward"]


def forward_backward(
    base: LoadedBase, adapters: Sequence[Adapter], stream: Stream, *, recompute: bool = False
) -> list[torch.Tensor]:
    """Add the gradients of a stream to its adapters and return each adapter's weighted loss.

    Args:
        recompute: Keep the input of each decoder layer alone and compute the rest of it again
            for the backward pass. The numbers are the same.
    """
    spans = [
        Span(adapter, place.start, place.length)
        for adapter, place in zip(adapters, stream.places, strict=True)
    ]
    first = min(adapter.lowest_layer for adapter in adapters)
    kept = base.prefix.states(base, stream.parts, first)
    entry = {"input_ids": stream.input_ids_1_N} if kept is None else {"inputs_embeds": kept.hidden_1_N_D}
    with (
        base.packed(),
        base.stack.placed(spans, dim=1),
        contextlib.nullcontext() if kept is None else upper_layers(base, first),
        recomputed(base.decoder.layers, adapters) if recompute else contextlib.nullcontext(),
    ):
        hidden_1_N_D = base.decoder(
            position_ids=stream.positions_1_N, use_cache=False, documents=stream.documents, **entry
        ).last_hidden_state
        hidden_S_D = hidden_1_N_D[0].index_select(0, stream.predicting_S)
        loss = supervised_loss(hidden_S_D, base.head_V_D, stream.targets_S, stream.weights_S)
        torch.autograd.backward(loss.total)
    for adapter, n_saved in zip(adapters, () if kept is None else kept.n_saved, strict=kept is not None):
        adapter.prefix_tokens_saved += n_saved
    weighted_S = loss.per_token_S * stream.weights_S
    return [weighted_S.narrow(0, place.supervised_start, place.n_supervised).sum() for place in stream.places]
