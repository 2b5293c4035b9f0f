"""A workspace's continued pretraining: its base, its judged rows, its place on disk."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tools.dataset import Dataset, load_dataset
from tools.errors import LeakError, TaskError
from tools.leakage import LEAKS_SHOWN, Leak, LeakGate
from tools.pretraining.corpus import Corpus, Document, read_corpus
from tools.rows import Message, Row
from tools.task import JUDGED_SPLITS
from tools.workspace import Workspace

__all__ = ["Gated", "gate_corpus", "pretrain_folder", "read_gated_corpus"]

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_PART: Final = re.compile(r"\n\s*\n|\n|(?<=[.!?])\s+")
_PARAGRAPH: Final = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Gated:
    """A corpus that holds no row by which a result is judged."""

    corpus: Corpus
    n_leaking: int
    """Documents that were left out because they did."""


def pretrain_folder(workspace: Workspace, name: str) -> Path:
    """Return where a workspace's pretraining of a name lies.

    Raises:
        TaskError: the name is no plain one.
    """
    if not _NAME.fullmatch(name):
        raise TaskError(f"name is {name!r}; lower-case letters, digits, '.', '_' and '-' are allowed")
    return workspace.state_dir / "pretrain" / name


def read_gated_corpus(workspace: Workspace, paths: Sequence[Path], *, drop_leaks: bool) -> Gated:
    """Read a corpus and hold it against dev, selection and test.

    Raises:
        DatasetError: files or lines that cannot be used, all of them listed.
        LeakError: documents tied to a judged split, and drop_leaks is False.
    """
    task = workspace.load_task()
    judged = {split: load_dataset(workspace.split_file(task, split)) for split in JUDGED_SPLITS}
    return gate_corpus(read_corpus(paths), judged, drop_leaks=drop_leaks)


def gate_corpus(corpus: Corpus, judged: Mapping[str, Dataset], *, drop_leaks: bool) -> Gated:
    """Refuse documents that give a judged row away, or leave them out.

    Raises:
        LeakError: names the documents and the rows, and drop_leaks is False; or none is left.
    """
    gate = LeakGate(judged)
    leaks: dict[str, Leak] = {}
    for document in corpus.documents:
        found = gate.find(_passages(document))
        if found:
            leaks[document.name] = found[0]
    if not leaks:
        return Gated(corpus, 0)
    kept = tuple(document for document in corpus.documents if document.name not in leaks)
    if drop_leaks and kept:
        return Gated(replace(corpus, documents=kept), len(leaks))
    shown = "\n".join(f"  {leak}" for leak in list(leaks.values())[:LEAKS_SHOWN])
    raise LeakError(
        f"{len(leaks)} of {len(corpus.documents)} documents are tied to rows that judge a result; take the "
        f"passages out, or leave the documents out with --drop-leaks:\n{shown}",
        problems=tuple(str(leak) for leak in leaks.values()),
    )


def _passages(document: Document) -> Iterator[Row]:
    """Yield a document's paragraphs, lines and sentences, each once, as rows that ask them.

    A short judged row is found where it stands alone, a long one inside anything.
    """
    seen: set[str] = set()
    for pattern in (_PARAGRAPH, _PART):
        for part in pattern.split(document.text):
            text = part.strip()
            if text and text not in seen:
                seen.add(text)
                yield Row(document.name, (Message("user", text),))
