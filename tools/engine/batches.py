"""Rows as tokens, the order in which a member sees them, and streams of several members' rows."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from tools.chat import render
from tools.dataset import Dataset, load_dataset
from tools.engine.attention import Document, PackedDocuments, pack_places
from tools.engine.transfer import send
from tools.errors import DatasetError
from tools.token_rows import is_token_file, load_token_rows

__all__ = ["EncodedRow", "EpochRows", "RowEncoder", "Stream", "StreamPart", "lay_out", "rows_of_step"]

_MOST_FILLER: Final = 16


@dataclass(frozen=True)
class EncodedRow:
    """One row's tokens, and which of them are learned."""

    row_id: str
    input_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]

    @property
    def n_supervised(self) -> int:
        """Tokens to learn; the first of a row has nothing before it that could predict it."""
        return sum(self.loss_mask[1:])

    @functools.cached_property
    def n_read(self) -> int:
        """Tokens that go through the model: what comes after them predicts no supervised token."""
        return max((i for i, wanted in enumerate(self.loss_mask) if wanted), default=0)

    @property
    def read_ids(self) -> tuple[int, ...]:
        """The tokens that go through the model."""
        return self.input_ids[: self.n_read]


@dataclass(frozen=True)
class EncodedDataset:
    """A dataset's rows in file order, and the digest of what they were made from."""

    rows: tuple[EncodedRow, ...]
    digest: str


@dataclass(frozen=True)
class EpochRows:
    """The rows of one epoch of a member, in the dataset's order."""

    rows: tuple[EncodedRow, ...]

    @functools.cached_property
    def digest(self) -> str:
        """Tells apart rows that are read differently."""
        found = hashlib.sha256()
        for row in self.rows:
            found.update(repr(row.read_ids).encode())
        return found.hexdigest()


class RowEncoder:
    """Encodes a dataset once for all members that share it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._datasets: dict[str, Dataset] = {}
        self._encoded: dict[tuple[str, str | None], EncodedDataset] = {}

    def encode(self, path: str, system_prompt: str | None) -> EncodedDataset:
        """Return the rows of a file as tokens.

        Raises:
            DatasetError, ChatError: rows that cannot be read or rendered.
        """
        if is_token_file(path):
            return self._plain_text(path)
        if path not in self._datasets:
            self._datasets[path] = load_dataset(Path(path))
        dataset = self._datasets[path]
        key = (dataset.digest, system_prompt)
        if key not in self._encoded:
            rows = []
            for row in dataset.rows:
                rendered = render(self._tokenizer, row.messages, system_prompt=system_prompt)
                rows.append(EncodedRow(row.id, tuple(rendered.input_ids), tuple(rendered.loss_mask)))
            self._encoded[key] = EncodedDataset(tuple(rows), dataset.digest)
        return self._encoded[key]

    def _plain_text(self, path: str) -> EncodedDataset:
        """Return rows that are tokens already and are learned whole."""
        if (path, None) not in self._encoded:
            found = load_token_rows(path, vocab_size=len(self._tokenizer))
            rows = [EncodedRow(row.id, row.input_ids, (True,) * len(row.input_ids)) for row in found.rows]
            self._encoded[path, None] = EncodedDataset(tuple(rows), found.digest)
        return self._encoded[path, None]


def check_rows(rows: Sequence[EncodedRow], seq_length: int) -> None:
    """Refuse rows that are too long or teach nothing.

    Raises:
        DatasetError: names the rows.
    """
    if not rows:
        raise DatasetError("the training set holds no rows")
    long = [f"{row.row_id} ({len(row.input_ids)})" for row in rows if len(row.input_ids) > seq_length]
    if long:
        raise DatasetError(
            f"{len(long)} rows have more than seq_length={seq_length} tokens: {', '.join(long[:20])}; "
            "raise seq_length or shorten them: a row is never cut"
        )
    mute = [row.row_id for row in rows if not row.n_supervised]
    if mute:
        raise DatasetError(f"{len(mute)} rows have no token to learn: {', '.join(mute[:20])}")


def rows_of_step(n_rows: int, batch_size: int, seed: int, step: int) -> tuple[int, ...]:
    """Return the row numbers of an optimizer step, counted from 0.

    Every epoch is its own shuffle, a function of seed and epoch alone, so that the step is the
    whole data cursor. The last batch of an epoch may be short.
    """
    epoch, turn = divmod(step, math.ceil(n_rows / batch_size))
    return _shuffled(n_rows, seed, epoch)[turn * batch_size : (turn + 1) * batch_size]


# Steps of an epoch ask one after the other; drawn for each, the order of a large dataset would take
# longer than the step.
@functools.lru_cache(maxsize=16)
def _shuffled(n_rows: int, seed: int, epoch: int) -> tuple[int, ...]:
    draw = int.from_bytes(hashlib.sha256(f"{seed}:{epoch}".encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(draw)
    return tuple(torch.randperm(n_rows, generator=generator).tolist())


@dataclass(frozen=True)
class StreamPart:
    """One member's rows of a pass, and the weight of each of its supervised tokens."""

    rows: tuple[EncodedRow, ...]
    token_weight: float
    shares_prefix: bool = True
    """Lay what all rows begin with once. Not with dropout, which must strike each row alone."""
    epoch: EpochRows | None = None
    """All rows of the member, where they come often enough for what is frozen to be kept."""

    @functools.cached_property
    def n_shared(self) -> int:
        """Tokens that are laid once for all rows."""
        return shared_length(self.rows) if self.shares_prefix else 0

    @property
    def n_filler(self) -> int:
        """Tokens behind the last row that nothing sees, at most a sixteenth of the part.

        They make parts of nearly the same length equally long: a length that a processor has not
        met yet costs it a tenth of a step in preparing kernels.
        """
        n_tokens = self.n_shared + sum(row.n_read - self.n_shared for row in self.rows)
        granule = 1 << max(0, (n_tokens // _MOST_FILLER).bit_length() - 1)
        return -n_tokens % granule


@dataclass(frozen=True)
class PartPlace:
    """Where a part lies: in the stream, and among the supervised positions."""

    start: int
    length: int
    supervised_start: int
    n_supervised: int


@dataclass(frozen=True)
class Stream:
    """The rows of all parts end to end, ready for one pass."""

    input_ids_1_N: torch.Tensor
    positions_1_N: torch.Tensor
    documents: PackedDocuments
    predicting_S: torch.Tensor
    """Positions whose next token is supervised."""
    targets_S: torch.Tensor
    weights_S: torch.Tensor
    places: tuple[PartPlace, ...]
    parts: tuple[StreamPart, ...]


def lay_out(parts: Sequence[StreamPart], device: torch.device) -> Stream:
    """Lay the rows of all parts end to end: no padding, positions from 0 in each row.

    What all rows of a part begin with is laid once and shared; what follows a row's last
    prediction is left out. Filler behind the last row of a part belongs to that row, so that
    causality keeps it from all others.
    """
    ids: list[int] = []
    positions: list[int] = []
    documents: list[Document] = []
    predicting: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    places: list[PartPlace] = []
    for part in parts:
        start, first = len(ids), len(predicting)
        shared = part.n_shared
        ids.extend(part.rows[0].input_ids[:shared])
        positions.extend(range(shared))
        for number, row in enumerate(part.rows, 1):
            extra = part.n_filler if number == len(part.rows) else 0
            document = Document(start, shared, len(ids), row.n_read - shared + extra)
            learned = [i for i, wanted in enumerate(row.loss_mask) if wanted and i > 0]
            where = document.places()
            predicting.extend(where[i - 1] for i in learned)
            targets.extend(row.input_ids[i] for i in learned)
            ids.extend(row.input_ids[shared : row.n_read])
            ids.extend([row.input_ids[-1]] * extra)
            positions.extend(range(shared, row.n_read + extra))
            documents.append(document)
        n_supervised = len(predicting) - first
        weights.extend([part.token_weight] * n_supervised)
        places.append(PartPlace(start, len(ids) - start, first, n_supervised))
    return Stream(
        input_ids_1_N=send(torch.tensor([ids], dtype=torch.long), device),
        positions_1_N=send(torch.tensor([positions], dtype=torch.long), device),
        documents=pack_places(documents, len(ids), device),
        predicting_S=send(torch.tensor(predicting, dtype=torch.long), device),
        targets_S=send(torch.tensor(targets, dtype=torch.long), device),
        weights_S=send(torch.tensor(weights, dtype=torch.float32), device),
        places=tuple(places),
        parts=tuple(parts),
    )


def shared_length(rows: Sequence[EncodedRow]) -> int:
    """Return how many tokens all rows begin with, short of any row's first supervised or last token."""
    if len(rows) < 2:
        return 0
    limits = [len(row.input_ids) - 1 for row in rows]
    limits += [row.loss_mask.index(True) for row in rows if any(row.loss_mask)]
    # The smallest and the largest row agree on what all rows agree on.
    ids = [row.input_ids for row in rows]
    low, high = min(ids), max(ids)
    agree = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(limits))
    return min(agree, *limits)
