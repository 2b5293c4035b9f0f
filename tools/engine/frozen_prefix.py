"""What enters the lowest adapted layer, computed once a row.

Below the lowest layer that any adapter of a pass changes, a row's hidden states depend on the base
alone: they are the same in every epoch and for every recipe. They are kept with the base, by token
ids and layer, as long as all rows of a set fit into a share of the memory.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from tools.engine.batches import EncodedRow, EpochRows, Stream, StreamPart, lay_out, shared_length
from tools.hardware.machine import read_memory

if TYPE_CHECKING:
    from tools.engine.base import LoadedBase

__all__ = ["FrozenPrefix", "PrefixStates", "upper_layers"]

logger = logging.getLogger(__name__)

# What is kept may take this part of the device's whole memory; of the whole, not of what is free at
# the moment, so that a run that is resumed keeps the same.
_SHARE: Final = 1 / 16
# Rows are computed in groups of about this many tokens. The groups follow from the set of rows
# alone, not from who asks first: rounding, which depends on the group, is the same in every run.
_GROUP_TOKENS: Final = 1024


@dataclass(frozen=True)
class _Group:
    """Rows that were computed together; what all begin with lies at the start, once."""

    hidden_N_D: torch.Tensor
    n_shared: int
    starts: tuple[int, ...]
    """Where each row's own part begins."""

    def pieces(self, number: int, start: int, stop: int) -> Iterator[torch.Tensor]:
        """Yield the states of tokens start to stop of a row."""
        if start < self.n_shared:
            yield self.hidden_N_D[start : min(stop, self.n_shared)]
        own = max(start, self.n_shared)
        if own < stop:
            offset = self.starts[number] - self.n_shared
            yield self.hidden_N_D[own + offset : stop + offset]


class _RowSet:
    """The rows of one dataset in front of one layer."""

    def __init__(self, rows: Sequence[EncodedRow], first: int) -> None:
        self.first = first
        self._groups = _grouped(rows)
        self._places = {
            row.read_ids: (number, place)
            for number, group in enumerate(self._groups)
            for place, row in enumerate(group)
        }
        self._computed: dict[int, _Group] = {}
        self.n_tokens = sum(
            sum(row.n_read for row in group) - (len(group) - 1) * shared_length(group)
            for group in self._groups
        )

    def pieces(self, row: EncodedRow, start: int, stop: int) -> Iterator[torch.Tensor]:
        """Yield the states of tokens start to stop of a row of this set."""
        number, place = self._places[row.read_ids]
        yield from self._computed[number].pieces(place, start, stop)

    def compute(self, base: LoadedBase, rows: Sequence[EncodedRow]) -> int:
        """Have the states of rows at hand and return how many tokens went through the layers for it."""
        n_tokens = 0
        for row in rows:
            number, _ = self._places[row.read_ids]
            if number not in self._computed:
                self._computed[number] = _compute(base, self._groups[number], self.first)
                n_tokens += len(self._computed[number].hidden_N_D)
        return n_tokens


@dataclass(frozen=True)
class PrefixStates:
    """What enters a layer, and how many tokens each part was spared the layers below."""

    hidden_1_N_D: torch.Tensor
    n_saved: tuple[int, ...]


class FrozenPrefix:
    """The hidden states that are kept with one base.

    Args:
        limit_bytes: Most that is kept; None takes a share of the device's memory.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        self._limit_bytes = limit_bytes
        self._sets: dict[tuple[int, str], _RowSet] = {}
        self._is_exact: dict[int, bool] = {}

    def states(self, base: LoadedBase, parts: Sequence[StreamPart], first: int) -> PrefixStates | None:
        """Return what enters layer first, for the parts as lay_out lays them.

        None where the first layer is adapted, a part asks for nothing to be kept, the rows of all
        parts do not fit, or this architecture cannot be entered in the middle.
        """
        epochs = [part.epoch for part in parts if part.epoch is not None]
        if first <= 0 or len(epochs) < len(parts) or not self._enters(base, first):
            return None
        sets = self._admit(base, epochs, first)
        if sets is None:
            return None
        pieces: list[torch.Tensor] = []
        saved: list[int] = []
        with torch.no_grad():
            for part, rows in zip(parts, sets, strict=True):
                computed = rows.compute(base, part.rows)
                n_before = len(pieces)
                pieces += rows.pieces(part.rows[0], 0, part.n_shared)
                for row in part.rows:
                    pieces += rows.pieces(row, part.n_shared, row.n_read)
                saved.append(sum(map(len, pieces[n_before:])) - computed)
                pieces.append(pieces[-1].new_zeros((part.n_filler, pieces[-1].shape[1])))
            return PrefixStates(torch.cat(pieces)[None], tuple(saved))

    def _enters(self, base: LoadedBase, first: int) -> bool:
        """Whether a pass that begins at layer first gives what a whole one gives; tried once."""
        if first not in self._is_exact:
            self._is_exact[first] = is_exact = _is_exact(base, first)
            if not is_exact:
                logger.info("%s cannot be entered at layer %d; all layers are computed", base.name, first)
        return self._is_exact[first]

    def _admit(self, base: LoadedBase, wanted: Sequence[EpochRows], first: int) -> list[_RowSet] | None:
        """Return the sets of rows, the least recently used others dropped to make room."""
        token_bytes = base.head_V_D.shape[1] * base.dtype.itemsize
        limit = _share_bytes(base.device) if self._limit_bytes is None else self._limit_bytes
        keys = [(first, epoch.digest) for epoch in wanted]
        sets: dict[tuple[int, str], _RowSet] = {}
        for key, epoch in zip(keys, wanted, strict=True):
            sets[key] = sets.get(key) or self._sets.pop(key, None) or _RowSet(epoch.rows, first)
        if token_bytes * sum(item.n_tokens for item in sets.values()) > limit:
            return None
        # The latest last: what is dropped first was used longest ago.
        self._sets.update(sets)
        while token_bytes * sum(item.n_tokens for item in self._sets.values()) > limit:
            del self._sets[next(iter(self._sets))]
        return [sets[key] for key in keys]


def _grouped(rows: Sequence[EncodedRow]) -> list[tuple[EncodedRow, ...]]:
    """Cut rows, in their order, into groups of about _GROUP_TOKENS tokens besides what all begin with."""
    shared = shared_length(rows)
    groups: list[list[EncodedRow]] = [[]]
    room = _GROUP_TOKENS
    for row in rows:
        own = row.n_read - shared
        if groups[-1] and own > room:
            groups.append([])
            room = _GROUP_TOKENS
        groups[-1].append(row)
        room -= own
    return [tuple(group) for group in groups]


def _share_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(_SHARE * torch.cuda.get_device_properties(device).total_memory)
    return int(_SHARE * read_memory().total)


@contextlib.contextmanager
def _only_layers(decoder: Any, part: slice) -> Iterator[None]:
    """Leave a decoder only a part of its layers for the length of the block."""
    layers = decoder.layers
    decoder.layers = layers[part]
    try:
        yield
    finally:
        decoder.layers = layers


@contextlib.contextmanager
def upper_layers(base: LoadedBase, first: int) -> Iterator[None]:
    """Have the decoder begin at layer first for the length of the block."""
    with _only_layers(base.decoder, slice(first, None)):
        yield


def _compute(base: LoadedBase, rows: Sequence[EncodedRow], first: int) -> _Group:
    stream = lay_out([StreamPart(tuple(rows), 0.0)], base.device)
    n_shared = shared_length(rows)
    starts = [n_shared]
    for row in rows[:-1]:
        starts.append(starts[-1] + row.n_read - n_shared)
    return _Group(_entering(base, stream, first), n_shared, tuple(starts))


@torch.no_grad()
def _entering(base: LoadedBase, stream: Stream, first: int) -> torch.Tensor:
    """Return what enters layer first, [N, D], without any adapter."""
    found: list[torch.Tensor] = []

    def keep(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])

    hook = base.decoder.layers[first].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        # The layer itself is computed too: ending before it would take knowledge of the architecture.
        with base.packed(), base.stack.placed([], dim=1), _only_layers(base.decoder, slice(0, first + 1)):
            _decode(base, stream, input_ids=stream.input_ids_1_N)
    finally:
        hook.remove()
    return found[0][0]


@torch.no_grad()
def _is_exact(base: LoadedBase, first: int) -> bool:
    if not isinstance(getattr(base.decoder, "layers", None), torch.nn.ModuleList):
        return False
    rows = [EncodedRow(str(n), tuple(range(n)), (True,) * n) for n in (9, 6)]
    stream = lay_out([StreamPart(tuple(rows), 0.0, shares_prefix=False)], base.device)
    with base.packed(), base.stack.placed([], dim=1):
        whole = _decode(base, stream, input_ids=stream.input_ids_1_N)
    states = _entering(base, stream, first)[None]
    with base.packed(), base.stack.placed([], dim=1), upper_layers(base, first):
        halved = _decode(base, stream, inputs_embeds=states)
    return torch.equal(whole, halved)


def _decode(base: LoadedBase, stream: Stream, **entry: torch.Tensor) -> torch.Tensor:
    hidden: torch.Tensor = base.decoder(
        position_ids=stream.positions_1_N, use_cache=False, documents=stream.documents, **entry
    ).last_hidden_state
    return hidden
