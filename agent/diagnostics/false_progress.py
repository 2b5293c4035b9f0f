"""The five patterns of false progress: numbers that rise without the model improving.

Source: the skill `finetuning` of evo, which lists them; how each is detected is this project's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from agent.diagnostics.adapter_weights import AdapterWeights
from agent.diagnostics.finding import Finding
from tools.dataset import Dataset
from tools.errors import ScorerError
from tools.evaluation.scorers import Scorer
from tools.leakage import Leak, find_leaks
from tools.rows import Row

__all__ = [
    "find_conditioned_on_judged",
    "find_eval_in_synthetic",
    "find_objective_mismatch",
    "find_trained_on_held_out",
    "find_untrained_checkpoint",
    "is_generated",
]

_SHOWN: Final = 20
_SAME_TEXT: Final = ("exact", "normalized")
_SEALED: Final = ("selection", "test")
_GENERATED_KEYS: Final = frozenset(
    {"generated", "mended", "generator", "generated_by", "synthetic", "teacher", "augmented_from"}
)
_GENERATED_TAGS: Final = frozenset({"generated", "synthetic", "augmented"})
_ORIGIN_WORDS: Final = ("source", "item", "row", "failure", "from", "parent", "target", "seed")


def is_generated(row: Row) -> bool:
    """Return whether a row's own provenance says that a model wrote it."""
    return bool(_GENERATED_KEYS & row.meta.keys() or _GENERATED_TAGS & set(row.tags))


def find_trained_on_held_out(train: Dataset, judged: Mapping[str, Dataset]) -> Finding | None:
    """Pattern 1: a training row is a row of a judged split, word for word."""
    leaks = [leak for leak in find_leaks(train, judged) if leak.kind in _SAME_TEXT]
    if not leaks:
        return None
    return Finding(
        "trained_on_held_out",
        f"{_rows(leaks)} training row(s) are rows of {_splits(leaks)}",
        "Take them out of the training data; every score measured with them is void",
        _pairs(leaks),
    )


def find_eval_in_synthetic(train: Dataset, judged: Mapping[str, Dataset]) -> Finding | None:
    """Pattern 2: a generated training row repeats a judged one, also renamed or reworded in part."""
    generated = Dataset(train.path, tuple(row for row in train if is_generated(row)), train.digest)
    leaks = list(find_leaks(generated, judged)) if generated.rows else []
    if not leaks:
        return None
    return Finding(
        "eval_in_synthetic",
        f"{_rows(leaks)} generated row(s) are tied to rows of {_splits(leaks)}",
        "Clean the generated rows away and look at what the generator was shown",
        _pairs(leaks),
    )


def find_conditioned_on_judged(train: Dataset, judged: Mapping[str, Dataset]) -> Finding | None:
    """Pattern 3: a row was made from what went wrong on a split that decides.

    Read from the provenance of rows: one that names `selection` or `test` as its split, or a row
    of theirs as its source. dev is there to be worked on and does not count.
    """
    sealed = {row.id: split for split in _SEALED if split in judged for row in judged[split]}
    found = [(row.id, name) for row in train if (name := _judged_origin(row.meta, sealed)) is not None]
    if not found:
        return None
    return Finding(
        "conditioned_on_judged",
        f"{len(found)} training row(s) were made from rows of a split that decides",
        "Take them out, and generate from failures on dev alone",
        tuple(f"{row_id} from {name}" for row_id, name in found[:_SHOWN]),
    )


def find_untrained_checkpoint(
    name: str,
    weights: AdapterWeights,
    *,
    parent: AdapterWeights | None = None,
    others: Mapping[str, AdapterWeights] | None = None,
) -> Finding | None:
    """Pattern 4: an adapter that never moved, or that is its parent's or another trial's.

    Args:
        name: The trial.
        weights: Its adapter.
        parent: The adapter that it should have improved on; None is unknown.
        others: Adapters of trials with other recipes or seeds, by trial.
    """
    why = None
    if not weights.has_moved:
        why = "its update is all zeros, as before the first step"
    elif parent is not None and weights.digest == parent.digest:
        why = "its weights are its parent's"
    else:
        twin = next((other for other, one in (others or {}).items() if one.digest == weights.digest), None)
        if twin is not None:
            why = f"its weights are those of {twin}"
    if why is None:
        return None
    return Finding(
        "checkpoint_not_trained",
        f"{name} was not trained: {why}",
        "Discard it whatever it scores, and look at its log",
        (name,),
    )


def find_objective_mismatch(train: Dataset, dev: Dataset, scorer: Scorer) -> Finding | None:
    """Pattern 5: what is trained is not what is scored.

    Either the scorer refuses a training row's own answer, or no training answer has a form (the
    keys of its JSON object, JSON of another kind, or plain text) that a dev answer has.
    """
    refused = [row.id for row in train if not _passes(row, scorer)]
    if refused:
        return Finding(
            "objective_mismatch",
            f"the scorer refuses the gold answers of {len(refused)} of {len(train)} training rows",
            "Bring the training answers into the form that the scorer accepts",
            tuple(refused[:_SHOWN]),
        )
    wanted = {_form(row.expected) for row in dev}
    taught = {_form(row.expected) for row in train}
    if not wanted or not taught or wanted & taught:
        return None
    return Finding(
        "objective_mismatch",
        f"training answers look like {_some_forms(taught)}, dev answers like {_some_forms(wanted)}",
        "Teach the form that is scored",
    )


def _passes(row: Row, scorer: Scorer) -> bool:
    try:
        return scorer(row.expected, row.expected).score >= 1.0
    except ScorerError:
        return False


def _form(answer: str) -> str:
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return "plain text"
    if isinstance(value, dict):
        return "{" + ", ".join(sorted(value)) + "}"
    return f"JSON {type(value).__name__}"


def _some_forms(forms: set[str]) -> str:
    shown = sorted(forms)[:3]
    return " or ".join(shown) + (" ..." if len(forms) > len(shown) else "")


def _judged_origin(meta: Mapping[str, Any], sealed: Mapping[str, str]) -> str | None:
    for key, value in _texts(meta, ""):
        if "split" in key and value in _SEALED:
            return value
        if value in sealed and any(word in key for word in _ORIGIN_WORDS):
            return f"{sealed[value]} row {value}"
    return None


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield every text inside value with the keys that lead to it."""
    if isinstance(value, str):
        yield key.lower(), value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, key)


def _rows(leaks: list[Leak]) -> int:
    return len({leak.train_id for leak in leaks})


def _splits(leaks: list[Leak]) -> str:
    return ", ".join(sorted({leak.split for leak in leaks}))


def _pairs(leaks: list[Leak]) -> tuple[str, ...]:
    # Ids alone: a finding may be shown to a planner, and judged texts may not.
    return tuple(f"{leak.train_id} ~ {leak.split} {leak.judged_id} ({leak.kind})" for leak in leaks[:_SHOWN])
