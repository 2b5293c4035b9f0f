"""The priors: settings that the literature would try first, before anything was measured here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from agent.plan import PlanContext
from tools.patch_space import PROJECTIONS

__all__ = ["PRIORS", "Prior", "prior_values"]


@dataclass(frozen=True)
class Prior:
    """Field values worth a trial, and why."""

    values: Mapping[str, Any]
    reason: str


_ALL_LINEAR: Final = "adapters on every linear projection, not attention alone, match full fine-tuning best"
PRIORS: Final = (
    Prior(
        {"learning_rate": 1e-3, "lora_rank": 16, "lora_target_modules": PROJECTIONS, "epochs": 2.0},
        f"LoRA wants about ten times the learning rate of full fine-tuning; {_ALL_LINEAR}",
    ),
    Prior(
        {"learning_rate": 5e-4, "lora_rank": 32, "lora_target_modules": PROJECTIONS, "epochs": 3.0},
        "rank 32 is a good default, and a milder rate leaves room for a third pass over few rows",
    ),
    Prior(
        {"learning_rate": 2e-3, "lora_rank": 16, "lora_target_modules": PROJECTIONS, "epochs": 3.0},
        "small models and few rows often bear a still higher rate",
    ),
    Prior(
        {"learning_rate": 2e-4, "lora_rank": 32, "lora_target_modules": PROJECTIONS, "epochs": 3.0},
        "large models often want the low end of the usual rates",
    ),
)
"""Sources: Schulman et al. 2025, "LoRA Without Regret"; Dettmers et al. 2023, arXiv:2305.14314."""


def prior_values(prior: Prior, context: PlanContext) -> Iterator[dict[str, Any]]:
    """Yield what of a prior the patch space allows, then the same with fewer passes, down to the incumbent's.

    A prior never trains for fewer passes than the incumbent, and says nothing about passes
    where the incumbent counts steps.
    """
    incumbent, space = context.incumbent, context.patch_space
    values = {
        name: value
        for name, value in prior.values.items()
        if name in space and space.ranges[name].problem(value) is None
    }
    passes = values.pop("epochs", None)
    if passes is not None and incumbent.epochs is not None:
        for fewer in sorted({passes, 2.0, 1.0}, reverse=True):
            if incumbent.epochs < fewer <= passes:
                yield {**values, "epochs": fewer}
    yield values
