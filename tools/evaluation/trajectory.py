"""The trajectory of an agent's search over knobs, as its JSONL log tells it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, overload

from tools.errors import EvaluationError
from tools.evaluation.metrics import known_number
from tools.evaluation.records import load_records

__all__ = ["Trajectory", "TrajectoryIter"]


@dataclass(frozen=True, slots=True)
class TrajectoryIter:
    """One proposal that was evaluated. raw is the record as it came."""

    iter: int
    knob: str
    value: Any
    decision: str
    score: float
    raw: dict[str, Any]


@dataclass
class Trajectory:
    """The evaluated proposals of a search, in the order of the log.

    A log is JSONL: optionally a header, an object without "iter" that may hold
    `baseline_<score_field>`, then records with "iter", "proposal" ({"knob", "new_value"}),
    "decision" and the score. Records of a stage other than "evaluated" are no outcomes and are
    left out, as are lines that are malformed, which n_malformed counts.
    """

    iters: list[TrajectoryIter]
    baseline: float | None = None
    score_field: str = "val_bpb"
    lower_is_better: bool = True
    header: dict[str, Any] = field(default_factory=dict)
    n_malformed: int = 0

    @classmethod
    def from_jsonl(
        cls, path: str | Path, *, score_field: str = "val_bpb", lower_is_better: bool = True
    ) -> Self:
        """Read a log.

        Raises:
            FileNotFoundError: there is none at path.
        """
        records = load_records(path)
        rows = list(records.rows)
        header = rows.pop(0) if rows and "iter" not in rows[0] else {}
        outcomes = [row for row in rows if row.get("stage") in (None, "evaluated")]
        iters = [step for row in outcomes if (step := _step(row, score_field)) is not None]
        return cls(
            iters=iters,
            baseline=_float(header.get(f"baseline_{score_field}")),
            score_field=score_field,
            lower_is_better=lower_is_better,
            header=header,
            n_malformed=records.n_malformed + len(outcomes) - len(iters),
        )

    @overload
    def knob_coverage(self, all_knobs: None = None) -> dict[str, int]: ...
    @overload
    def knob_coverage(self, all_knobs: Sequence[str]) -> dict[str, Any]: ...
    def knob_coverage(self, all_knobs: Sequence[str] | None = None) -> dict[str, Any]:
        """Return how often each knob was proposed, the most frequent first.

        Args:
            all_knobs: All knobs there are. With it the counts come in a report, under
                "knob_count", beside knobs_touched, knobs_total, knobs_untouched and
                knobs_touched_pct (None where all_knobs is empty).
        """
        counts = dict(Counter(step.knob for step in self.iters if step.knob).most_common())
        if all_knobs is None:
            return counts
        if isinstance(all_knobs, str):
            raise EvaluationError(f"all_knobs is the text {all_knobs!r}; give a list: [{all_knobs!r}]")
        known = list(dict.fromkeys(all_knobs))
        untouched = [knob for knob in known if knob not in counts]
        return {
            "knobs_touched": len(counts),
            "knob_count": counts,
            "knobs_total": len(known),
            "knobs_untouched": untouched,
            "knobs_touched_pct": 100 * (len(known) - len(untouched)) / len(known) if known else None,
        }

    @overload
    def repeat_rate(self, *, window: None = None) -> float | None: ...
    @overload
    def repeat_rate(self, *, window: int) -> list[dict[str, Any]]: ...
    def repeat_rate(self, *, window: int | None = None) -> float | list[dict[str, Any]] | None:
        """Return the part of the proposals that were made before; None where there are none.

        Args:
            window: With it, one dict (first, last, n, repeats, rate) per so many proposals.
        Raises:
            EvaluationError: window is below 1.
        """
        repeats = list(self._repeats())
        if window is None:
            return sum(repeats) / len(repeats) if repeats else None
        if window < 1:
            raise EvaluationError(f"window is {window}; allowed: 1 or more")
        parts = [(start, repeats[start : start + window]) for start in range(0, len(repeats), window)]
        return [
            {
                "first": start + 1,
                "last": start + len(part),
                "n": len(part),
                "repeats": sum(part),
                "rate": sum(part) / len(part),
            }
            for start, part in parts
        ]

    @overload
    def mode_dominance(self, *, top_n: None = None) -> dict[str, float]: ...
    @overload
    def mode_dominance(self, *, top_n: int) -> list[dict[str, Any]]: ...
    def mode_dominance(self, *, top_n: int | None = None) -> dict[str, float] | list[dict[str, Any]]:
        """Return each mode's part of the proposals, the most frequent first.

        A mode is one value of one knob, written "knob=value" with the value as JSON.

        Args:
            top_n: With it, the so many most frequent as dicts of knob, value and n.
        """
        first: dict[str, TrajectoryIter] = {}
        counts: Counter[str] = Counter()
        for step in self.iters:
            if step.knob:
                mode = f"{step.knob}={_canonical(step.value)}"
                first.setdefault(mode, step)
                counts[mode] += 1
        if top_n is None:
            total = counts.total()
            return {mode: n / total for mode, n in counts.most_common()}
        return [
            {"knob": first[mode].knob, "value": first[mode].value, "n": n}
            for mode, n in counts.most_common(top_n)
        ]

    def cumulative_best(self, *, baseline: float | None = None) -> list[float]:
        """Return the best score so far after each proposal, the baseline's included.

        Args:
            baseline: Takes the place of the header's.
        """
        better = min if self.lower_is_better else max
        start = self.baseline if baseline is None else baseline
        best: list[float] = []
        for step in self.iters:
            before = best[-1] if best else start
            best.append(step.score if before is None else better(before, step.score))
        return best

    def keeps(self) -> list[TrajectoryIter]:
        """Return the proposals that the search kept."""
        return [step for step in self.iters if step.decision == "keep"]

    def best(self) -> TrajectoryIter | None:
        """Return the proposal with the best score, the earliest of equals."""
        choose = min if self.lower_is_better else max
        return choose(self.iters, key=lambda step: step.score, default=None)

    def _repeats(self) -> Iterator[bool]:
        seen: set[tuple[str, str]] = set()
        for step in self.iters:
            pair = (step.knob, _canonical(step.value))
            yield pair in seen
            seen.add(pair)


def _step(row: Mapping[str, Any], score_field: str) -> TrajectoryIter | None:
    """Return a record's outcome; None where its number or its score is unknown."""
    number, score = known_number(row.get("iter")), _float(row.get(score_field))
    proposal = row.get("proposal")
    if number is None or score is None or not isinstance(proposal, dict | None):
        return None
    proposal = proposal or {}
    return TrajectoryIter(
        iter=int(number),
        knob=str(proposal.get("knob") or ""),
        value=proposal.get("new_value"),
        decision=str(row.get("decision") or ""),
        score=score,
        raw=dict(row),
    )


def _float(value: Any) -> float | None:
    """Return a number, or a text that is one, as a finite float."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    number = known_number(value)
    return None if number is None else float(number)


def _canonical(value: Any) -> str:
    """Return value so that equal values, and they alone, give equal texts: 1 and 1.0, not true."""
    return json.dumps(_whole(value), sort_keys=True, default=str, ensure_ascii=False)


def _whole(value: Any) -> Any:
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {str(key): _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list | tuple) else value
