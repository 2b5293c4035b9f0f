"""The verdict: keep, discard or inconclusive, from an interval and the guards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from tools.comparison import Comparison
from tools.errors import EvidenceError
from tools.evaluation.scores import ScoreRow

__all__ = ["Guard", "Ruling", "Verdict", "forbidden_guard", "probe_guard", "reach_verdict"]


class Verdict(StrEnum):
    """What the evidence says about a candidate."""

    KEEP = "keep"
    DISCARD = "discard"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Guard:
    """A metric that must not fall, whatever the gain. base and candidate are None if unknown."""

    name: str
    base: float | None
    candidate: float | None
    passed: bool
    detail: str


@dataclass(frozen=True)
class Ruling:
    """A verdict with the evidence it was reached on."""

    verdict: Verdict
    reason: str
    comparison: Comparison
    guards: tuple[Guard, ...]

    @property
    def vetoed(self) -> bool:
        """Whether a guard fell: no further seed can make this candidate one to keep."""
        return any(not guard.passed for guard in self.guards)


class ProbeRow(Protocol):
    """One metric of a reasoning probe's comparison."""

    @property
    def metric(self) -> str: ...
    @property
    def baseline(self) -> float | None: ...
    @property
    def current(self) -> float | None: ...
    @property
    def ratio(self) -> float | None: ...
    @property
    def threshold(self) -> float: ...


class ProbeResult(Protocol):
    """A probe of the candidate, compared with the base's."""

    @property
    def all_pass(self) -> bool: ...
    @property
    def nothing_to_lose(self) -> bool:
        """Whether the base, fully measured, showed nothing of what is probed."""
        ...

    @property
    def rows(self) -> Sequence[ProbeRow]: ...


def reach_verdict(
    comparison: Comparison,
    *,
    minimum_gain: float = 0.0,
    guards: Iterable[Guard] = (),
    n_candidates: int = 1,
    n_looks: int = 1,
    metric: str = "selection",
) -> Ruling:
    """Rule on a candidate.

    Keep: the whole interval lies above minimum_gain and no guard fell. Discard: no part of it
    does, or a guard fell where the gain would have sufficed. Else inconclusive.

    Args:
        comparison: Taken at the corrected level.
        minimum_gain: What a gain must exceed, in score units.
        n_candidates: For the reason's wording: what the comparison's level was corrected for.
        n_looks: For the reason's wording, likewise.
        metric: For the reason's wording: what was scored.
    Raises:
        EvidenceError: minimum_gain is outside [0, 1), or the comparison's level cannot have been
            corrected for these counts.
    """
    if not 0.0 <= minimum_gain < 1.0:
        raise EvidenceError(f"minimum_gain is {minimum_gain!r}; allowed: from 0 and below 1")
    level = _level(comparison.level, n_candidates, n_looks)
    held = tuple(guards)
    fallen = [guard for guard in held if not guard.passed]
    verdict = _by_interval(comparison, minimum_gain)
    if verdict is Verdict.KEEP and fallen:
        verdict = Verdict.DISCARD
    parts = [
        f"{metric} {_movement(comparison.gain)} ({level}: {_points(comparison.low)} to "
        f"{_points(comparison.high)}; {_extent(comparison)})"
    ]
    if minimum_gain > 0:
        parts.append(f"more than {_points(minimum_gain)} are asked for")
    parts.extend(f"{guard.name} fell: {guard.detail}" for guard in fallen)
    return Ruling(verdict, f"{'; '.join(parts)}: {verdict.value}", comparison, held)


def forbidden_guard(base_rows: Iterable[ScoreRow], candidate_rows: Iterable[ScoreRow]) -> Guard:
    """Return the guard on forbidden outputs: any rise of their rate over the base's fails it.

    Raises:
        EvidenceError: no rows on one side.
    """
    base, n_base = _forbidden_count(base_rows, "base")
    candidate, n_candidate = _forbidden_count(candidate_rows, "candidate")
    before, after = base / n_base, candidate / n_candidate
    return Guard(
        name="forbidden outputs",
        base=before,
        candidate=after,
        passed=after <= before,
        detail=f"{candidate} of {n_candidate} answers, where the base gave {base} of {n_base}",
    )


def probe_guard(result: ProbeResult, *, name: str = "reasoning probe") -> Guard:
    """Return the guard on what a probe asks for: the probe's own thresholds decide.

    Its numbers are those of the metric nearest to its threshold, or beyond it; None where the
    base showed nothing to lose. A probe that measured nothing does not pass.
    """
    measured = [row for row in result.rows if row.ratio is not None]
    worst = min(measured, key=lambda row: (row.ratio or 0.0) - row.threshold, default=None)
    detail = "; ".join(
        f"{row.metric} at {row.ratio:.0%} of the base, {row.threshold:.0%} needed" for row in measured
    )
    if result.nothing_to_lose:
        detail = "the base shows nothing of it that could be lost"
    elif not measured:
        detail = "nothing was measured: too few questions were answered on both sides, or chains were cut off"
    elif not result.all_pass and all((row.ratio or 0.0) >= row.threshold for row in measured):
        detail += "; too few questions were answered on both sides"
    return Guard(
        name=name,
        base=worst.baseline if worst else None,
        candidate=worst.current if worst else None,
        passed=result.all_pass or result.nothing_to_lose,
        detail=detail,
    )


def _by_interval(comparison: Comparison, minimum_gain: float) -> Verdict:
    if comparison.low > minimum_gain:
        return Verdict.KEEP
    return Verdict.DISCARD if comparison.high <= minimum_gain else Verdict.INCONCLUSIVE


def _forbidden_count(rows: Iterable[ScoreRow], side: str) -> tuple[int, int]:
    flags = [row.forbidden for row in rows]
    if not flags:
        raise EvidenceError(f"the {side} has no score rows; a rate of nothing is unknown")
    return sum(flags), len(flags)


def _movement(gain: float) -> str:
    if _points(gain) == "0.0":
        return "did not move"
    return f"{'rose' if gain > 0 else 'fell'} {_points(abs(gain))} points"


def _level(level: float, n_candidates: int, n_looks: int) -> str:
    nominal = 1.0 - (1.0 - level) * n_candidates * n_looks
    if n_candidates < 1 or n_looks < 1 or nominal <= 0.0:
        raise EvidenceError(
            f"an interval at level {level:.6g} was not corrected for {n_candidates} candidates and "
            f"{n_looks} looks; give compare the result of corrected_level"
        )
    parts = [f"{n_candidates} candidates"] if n_candidates > 1 else []
    parts += [f"{n_looks} looks"] if n_looks > 1 else []
    correction = f", corrected for {' and '.join(parts)}" if parts else ""
    return f"{100 * nominal:.4g}% interval{correction}"


def _extent(comparison: Comparison) -> str:
    base, candidate = comparison.n_seeds_base, comparison.n_seeds_candidate
    if base == candidate:
        seeds = "1 seed each" if base == 1 else f"{base} seeds each"
    else:
        seeds = f"seeds: {candidate} of the candidate, {base} of the base"
    luck = "" if comparison.seed_variance_known else ", so the luck of a seed is not in the interval"
    return f"{comparison.n_items} items, {seeds}{luck}"


def _points(value: float) -> str:
    # Adding 0.0 turns the -0.0 that rounding leaves into 0.0.
    return f"{round(100 * value, 1) + 0.0:.1f}"
