"""Calibration: how far the gains that a planner expected were from those that were measured."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from agent.plan import TrialSummary

__all__ = ["Calibration", "calibrate", "describe_calibration"]


@dataclass(frozen=True)
class Calibration:
    """One planner's expectations beside what came of them. Gains in score units."""

    planner: str
    n: int
    """Candidates with both an expected and a measured gain."""
    mean_expected: float
    mean_realised: float
    mean_error: float
    """Expected minus realised; above 0 is too hopeful."""
    mean_absolute_error: float
    n_right_sign: int
    """Candidates whose gain had the sign that was expected."""

    def __str__(self) -> str:
        return (
            f"{self.planner}: over {self.n} candidates expected {self.mean_expected:+.3f} and got "
            f"{self.mean_realised:+.3f} on average, off by {self.mean_absolute_error:.3f} each, "
            f"sign right in {self.n_right_sign}"
        )


def calibrate(trials: Iterable[TrialSummary]) -> tuple[Calibration, ...]:
    """Return a calibration for every planner that ever said what it expected, by name.

    The seeds of one candidate share one measured gain and count once.
    """
    pairs: dict[str, dict[str, tuple[float, float]]] = {}
    for trial in trials:
        if trial.expected_gain is None or trial.gain is None:
            continue
        if math.isfinite(trial.expected_gain) and math.isfinite(trial.gain):
            candidate = trial.trial_id.rpartition("-s")[0] or trial.trial_id
            pairs.setdefault(trial.planner, {})[candidate] = (trial.expected_gain, trial.gain)
    return tuple(_summarise(planner, list(found.values())) for planner, found in sorted(pairs.items()))


def describe_calibration(found: Iterable[Calibration]) -> str:
    """Return a line a planner, or that nothing is known yet."""
    return "\n".join(str(one) for one in found) or "no expectation was measured yet"


def _summarise(planner: str, pairs: list[tuple[float, float]]) -> Calibration:
    n = len(pairs)
    errors = [expected - realised for expected, realised in pairs]
    return Calibration(
        planner=planner,
        n=n,
        mean_expected=sum(expected for expected, _ in pairs) / n,
        mean_realised=sum(realised for _, realised in pairs) / n,
        mean_error=sum(errors) / n,
        mean_absolute_error=sum(map(abs, errors)) / n,
        n_right_sign=sum((expected > 0) == (realised > 0) for expected, realised in pairs),
    )
