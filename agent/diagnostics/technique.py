"""The technique that fits a reward: chosen by the reward's shape, with reasons.

Source: the decision table of the skill `finetuning` of evo. It is a prior: evidence on the task
at hand outweighs it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

__all__ = ["RewardShape", "Technique", "TechniqueChoice", "choose_technique", "reward_shape"]


class RewardShape(StrEnum):
    """What there is to learn from."""

    VERIFIABLE = "verifiable"
    """A program decides whether an answer is right; there are no answers to copy."""
    PREFERENCES = "preferences"
    """Pairs of a chosen and a rejected answer."""
    DEMONSTRATIONS = "demonstrations"
    """Good answers, and nothing that could tell a good one from a bad one."""
    SCORED_DEMONSTRATIONS = "scored demonstrations"
    """Good answers, and a program that decides."""


class Technique(StrEnum):
    """How weights are moved."""

    SFT = "sft"
    RFT = "rft"
    """Sample, keep what the scorer accepts, fine-tune on that."""
    PREFERENCE = "preference optimisation"
    """DPO, KTO, ORPO."""
    RL = "rl"
    """GRPO, RLOO, PPO, with the scorer as the reward."""


@dataclass(frozen=True)
class TechniqueChoice:
    """The technique to use, what would fit better or as well, and why."""

    technique: Technique
    fitting: tuple[Technique, ...]
    """All that fit the reward, the best first, at hand or not."""
    reasons: tuple[str, ...]

    @property
    def is_best_fit(self) -> bool:
        """Whether nothing that fits better had to be passed over."""
        return self.technique is self.fitting[0]

    def __str__(self) -> str:
        return f"{self.technique.value}: " + "; ".join(self.reasons)


_REASONS: Final = {
    Technique.SFT: "good answers to copy install format, tone and habits that the base lacks",
    Technique.RFT: "sampling and keeping what the scorer accepts has the stability of fine-tuning on answers",
    Technique.PREFERENCE: "pairs say which answer is better without rollouts, cheaper than full RL",
    Technique.RL: "a reward that a program decides, format included, is optimised itself",
}
AT_HAND: Final = frozenset({Technique.SFT})
"""What the lanes of this project train."""


def reward_shape(*, has_answers: bool, has_scorer: bool, has_pairs: bool = False) -> RewardShape | None:
    """Return the shape of a reward, None where there is nothing to learn from."""
    if has_scorer:
        return RewardShape.SCORED_DEMONSTRATIONS if has_answers else RewardShape.VERIFIABLE
    if has_pairs:
        return RewardShape.PREFERENCES
    return RewardShape.DEMONSTRATIONS if has_answers else None


def choose_technique(
    shape: RewardShape,
    *,
    base_score: float | None = None,
    is_stuck_at_zero: bool = False,
    at_hand: Collection[Technique] = AT_HAND,
) -> TechniqueChoice:
    """Return the technique for a shape of reward: the best fit among those at hand.

    Args:
        shape: What there is to learn from.
        base_score: The untrained base's mean score; None is unknown. A base that is often right
            already has the format, and learns more from the reward than from copying.
        is_stuck_at_zero: Whether fine-tuning on answers was tried and left the score at 0.
        at_hand: Techniques that can be run.
    """
    fitting = _fitting(shape, base_score, is_stuck_at_zero)
    chosen = next((one for one in fitting if one in at_hand), Technique.SFT)
    reasons = [f"the reward is {shape.value}", _REASONS[chosen]]
    passed = fitting[: fitting.index(chosen)] if chosen in fitting else fitting
    if passed:
        reasons.append(f"{', '.join(one.value for one in passed)} would fit better and is not at hand")
    if is_stuck_at_zero and chosen is Technique.SFT:
        reasons.append("it is stuck at 0: read outputs before training again")
    return TechniqueChoice(chosen, fitting, tuple(reasons))


def _fitting(shape: RewardShape, base_score: float | None, is_stuck: bool) -> tuple[Technique, ...]:
    if shape is RewardShape.PREFERENCES:
        return (Technique.PREFERENCE,)
    if shape is RewardShape.DEMONSTRATIONS:
        return (Technique.SFT,)
    if shape is RewardShape.VERIFIABLE:
        return (Technique.RL, Technique.RFT)
    is_competent = base_score is not None and base_score >= 0.2
    if is_competent or is_stuck:
        return (Technique.RL, Technique.RFT, Technique.SFT)
    return (Technique.SFT, Technique.RFT, Technique.RL)
