"""Score rows: one item, answered once by one trained seed, and what it was worth."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from tools.errors import EvidenceError, ScorerError
from tools.evaluation.scorers import Scorer, is_forbidden
from tools.files import read_jsonl, write_text_atomic

__all__ = [
    "ScoreRow",
    "ScoreSummary",
    "error_kind",
    "read_scores",
    "score_answer",
    "summarise",
    "write_scores",
]

_MAX_PROBLEMS: Final = 50


@dataclass(frozen=True)
class ScoreRow:
    """What one answer was worth.

    The texts are None in a redacted row: of a sealed split only scores leave it.

    Raises:
        EvidenceError: a field of the wrong type, or a score outside [0, 1].
    """

    item_id: str
    seed: int
    score: float
    output: str | None = None
    expected: str | None = None
    prompt: str | None = None
    error: str | None = None
    """Why the score is not 1, as kind or kind:detail, e.g. "invalid_json", "missing:args"."""
    n_tokens: int | None = None
    """Tokens generated; None when nobody counted."""
    forbidden: bool = False

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise EvidenceError(f"score row {self.item_id!r}, seed {self.seed!r}: {problem}")

    def redacted(self) -> ScoreRow:
        """Return the row without its texts; of the error only the kind is left."""
        kind = None if self.error is None else error_kind(self.error)
        return replace(self, output=None, expected=None, prompt=None, error=kind)


@dataclass(frozen=True)
class ScoreSummary:
    """Rows counted. `mean` is None when there is none."""

    n: int
    mean: float | None
    errors: Mapping[str, int]
    """Rows per kind of error, the most frequent first."""
    n_forbidden: int


def score_answer(
    scorer: Scorer,
    *,
    item_id: str,
    seed: int,
    prompt: str,
    expected: str,
    output: str,
    n_tokens: int | None = None,
    forbidden_outputs: Sequence[str] = (),
) -> ScoreRow:
    """Judge one answer.

    Raises:
        ScorerError: the scorer failed on this row; the message starts with the item.
    """
    try:
        outcome = scorer(expected, output)
    except ScorerError as err:
        raise ScorerError(f"item {item_id!r}: {err}") from err
    return ScoreRow(
        item_id=item_id,
        seed=seed,
        score=outcome.score,
        output=output,
        expected=expected,
        prompt=prompt,
        error=outcome.error,
        n_tokens=n_tokens,
        forbidden=is_forbidden(output, forbidden_outputs),
    )


def write_scores(path: str | Path, rows: Iterable[ScoreRow], *, redact: bool) -> Path:
    """Replace path with rows as JSONL, whole or not at all.

    Args:
        redact: Leave out prompts, outputs and expected answers, as for `selection` and `test`.
    Raises:
        EvidenceError: two rows tell of the same item and seed.
    """
    kept = tuple(row.redacted() if redact else row for row in rows)
    twice = _repeated(kept)
    if twice:
        raise EvidenceError(f"{path}: items scored twice for one seed: {twice}; nothing was written")
    return write_text_atomic(path, "".join(_line(row) for row in kept))


def read_scores(path: str | Path) -> tuple[ScoreRow, ...]:
    """Read what write_scores wrote.

    A score file is written whole, so a torn or foreign line means that it was damaged: a
    verdict on what is left would be one on other items than were asked.

    Raises:
        EvidenceError: no such file, or a line that is no score row; all are listed.
    """
    target = Path(path)
    if not target.is_file():
        raise EvidenceError(f"no scores at {target}; evaluate the trial first")
    try:
        lines = read_jsonl(target)
    except RecursionError as err:
        raise EvidenceError(f"{target}: a line is nested too deeply to be a score row") from err
    problems = list(lines.problems)
    rows: list[ScoreRow] = []
    for number, value in enumerate(lines.rows, start=1):
        try:
            rows.append(_row(value))
        except EvidenceError as err:
            problems.append(f"{target}: row {number}: {err}")
    twice = _repeated(rows)
    if twice:
        problems.append(f"{target}: items scored twice for one seed: {twice}")
    if problems:
        shown = "\n".join(problems[:_MAX_PROBLEMS])
        raise EvidenceError(f"{len(problems)} bad lines; evaluate the trial again\n{shown}")
    return tuple(rows)


def summarise(rows: Iterable[ScoreRow]) -> ScoreSummary:
    """Count rows: mean score, errors by kind, forbidden outputs."""
    kept = tuple(rows)
    mean = math.fsum(row.score for row in kept) / len(kept) if kept else None
    kinds = Counter(error_kind(row.error) for row in kept if row.error is not None)
    ordered = dict(sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0])))
    return ScoreSummary(len(kept), mean, MappingProxyType(ordered), sum(row.forbidden for row in kept))


def error_kind(error: str) -> str:
    """Return the kind of an error: "mismatch" of "mismatch:args"."""
    return error.partition(":")[0]


def _line(row: ScoreRow) -> str:
    text = json.dumps(asdict(row), ensure_ascii=False, allow_nan=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair: JSON can escape it, UTF-8 cannot hold it
        text = json.dumps(asdict(row), allow_nan=False)
    return text + "\n"


def _row(value: Any) -> ScoreRow:
    names = {field.name for field in fields(ScoreRow)}
    if not isinstance(value, dict):
        raise EvidenceError(f"{type(value).__name__} where an object belongs")
    if not {"item_id", "seed", "score"} <= value.keys() <= names:
        raise EvidenceError(f"keys are {sorted(value)}; allowed: {sorted(names)}")
    return ScoreRow(**value)


def _problem(row: ScoreRow) -> str | None:
    if not isinstance(row.item_id, str) or not row.item_id:
        return "item_id must be a non-empty text"
    if type(row.seed) is not int:
        return "seed must be a whole number"
    if type(row.score) not in (int, float) or not 0.0 <= row.score <= 1.0:
        return f"score is {row.score!r}; allowed: a number in [0, 1]"
    for name in ("output", "expected", "prompt", "error"):
        if not isinstance(getattr(row, name), str | None):
            return f"{name} must be a text or null"
    if row.n_tokens is not None and (type(row.n_tokens) is not int or row.n_tokens < 0):
        return "n_tokens must be a whole number from 0, or null"
    return None if type(row.forbidden) is bool else "forbidden must be true or false"


def _repeated(rows: Iterable[ScoreRow]) -> list[str]:
    counts = Counter((row.item_id, row.seed) for row in rows)
    return [f"{item_id} (seed {seed})" for (item_id, seed), count in counts.items() if count > 1][:10]
