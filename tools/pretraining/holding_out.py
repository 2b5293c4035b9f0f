"""The share of a corpus that is not learned from, so that what was learned can be measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from tools.errors import DatasetError
from tools.files import digest_bytes
from tools.pretraining.corpus import Document

__all__ = ["HeldOut", "hold_out"]

_PARAGRAPH: Final = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class HeldOut:
    """Documents to learn from, and documents to measure on."""

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]


def hold_out(documents: Sequence[Document], share: float, *, seed: int) -> HeldOut:
    """Part documents, so that about `share` of the characters is held out, and one document at least.

    Which ones depends on the seed and their words, not on their order or on the other documents,
    so that a corpus that grows keeps them. Of a single document the last paragraphs are held out.

    Raises:
        DatasetError: share is out of range, or a single document has one paragraph only.
    """
    if not 0 < share <= 0.5:
        raise DatasetError(f"the held-out share is {share}; a number above 0 and up to 0.5 is needed")
    if not documents:
        raise DatasetError("there are no documents to learn from")
    if len(documents) == 1:
        return _cut(documents[0], share)
    drawn = sorted(documents, key=lambda document: digest_bytes(f"{seed}:{document.key}".encode()))
    wanted = share * sum(len(document.text) for document in documents)
    taken, size = set[str](), 0
    for document in drawn[:-1]:
        if taken and size + len(document.text) / 2 > wanted:
            break
        taken.add(document.key)
        size += len(document.text)
    return HeldOut(
        tuple(document for document in documents if document.key not in taken),
        tuple(document for document in documents if document.key in taken),
    )


def _cut(document: Document, share: float) -> HeldOut:
    paragraphs = _PARAGRAPH.split(document.text)
    if len(paragraphs) < 2:
        raise DatasetError(
            f"the corpus is one document of one paragraph ({document.name}), of which nothing can be held "
            "out; add documents, or part it by empty lines"
        )
    n_held = max(1, round(share * len(paragraphs)))
    head, end = paragraphs[:-n_held], paragraphs[-n_held:]
    return HeldOut(
        (replace(document, text="\n\n".join(head)),),
        (replace(document, name=f"{document.name} (end)", text="\n\n".join(end)),),
    )
