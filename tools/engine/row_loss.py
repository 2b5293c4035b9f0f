"""The loss of rows that are read and not learned: one number a row, nothing kept for a backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from tools.engine.batches import EncodedRow, StreamPart, lay_out
from tools.engine.lora import Adapter, Span
from tools.engine.loss import supervised_loss

if TYPE_CHECKING:
    from tools.engine.base import LoadedBase

__all__ = ["RowLoss", "row_losses"]

# As much as a pass of training takes at most on a CPU, and nothing of it is kept.
_PASS_TOKENS: Final = 1024


@dataclass(frozen=True)
class RowLoss:
    """The cross-entropy of a row's supervised tokens."""

    total: float
    n_tokens: int

    @property
    def mean(self) -> float:
        return self.total / self.n_tokens


@torch.no_grad()
def row_losses(
    base: LoadedBase, rows: Sequence[EncodedRow], adapter: Adapter | None = None
) -> tuple[RowLoss, ...]:
    """Return the loss of every row, in their order; each has a supervised token at least.

    Args:
        adapter: Dropout is off; None is the bare base.
    """
    found: list[RowLoss] = []
    for batch in _batches(rows):
        stream = lay_out([StreamPart(batch, 1.0)], base.device)
        (place,) = stream.places
        spans = [] if adapter is None else [Span(adapter, place.start, place.length)]
        with base.packed(), base.stack.placed(spans, dim=1):
            hidden_1_N_D = base.decoder(
                input_ids=stream.input_ids_1_N,
                position_ids=stream.positions_1_N,
                use_cache=False,
                documents=stream.documents,
            ).last_hidden_state
            hidden_S_D = hidden_1_N_D[0].index_select(0, stream.predicting_S)
            loss = supervised_loss(hidden_S_D, base.head_V_D, stream.targets_S, stream.weights_S)
        counts = [row.n_supervised for row in batch]
        totals = torch.stack([part.sum() for part in torch.split(loss.per_token_S.double(), counts)])
        found += [RowLoss(total, n) for total, n in zip(totals.tolist(), counts, strict=True)]
    return tuple(found)


def _batches(rows: Sequence[EncodedRow]) -> Iterator[tuple[EncodedRow, ...]]:
    batch: list[EncodedRow] = []
    size = 0
    for row in rows:
        if batch and size + row.n_read > _PASS_TOKENS:
            yield tuple(batch)
            batch, size = [], 0
        batch.append(row)
        size += row.n_read
    if batch:
        yield tuple(batch)
