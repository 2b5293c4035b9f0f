"""Documents as token rows: each in pieces of at most so many tokens, an end after its last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tools.errors import DatasetError
from tools.pretraining.corpus import Document
from tools.token_rows import TokenRow

__all__ = ["chunk_documents"]


def chunk_documents(documents: Iterable[Document], tokenizer: Any, seq_length: int) -> Iterator[TokenRow]:
    """Yield the rows of documents, in their order. No row holds parts of two.

    A piece begins with the last token of the one before, so that every token of a document is
    learned once. What looks like a control token in a text is taken as text.

    Raises:
        DatasetError: the tokenizer has no token that ends a text, or seq_length is below 2.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise DatasetError("the base's tokenizer has no end-of-sequence token to put between documents")
    if seq_length < 2:
        raise DatasetError(f"seq_length is {seq_length}; it must be at least 2")
    for document in documents:
        ids = list(tokenizer(document.text, verbose=False, split_special_tokens=True)["input_ids"])
        if ids and ids[-1] != end:
            ids.append(end)
        yield from _pieces(document.name, ids, seq_length)


def _pieces(name: str, ids: Sequence[int], seq_length: int) -> Iterator[TokenRow]:
    starts = range(0, len(ids) - 1, seq_length - 1)
    for number, start in enumerate(starts, start=1):
        suffix = f"#{number}" if len(starts) > 1 else ""
        yield TokenRow(f"{name}{suffix}", tuple(ids[start : start + seq_length]))
