"""Contexts that planners are asked with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agent.plan import PlanContext, TrialSummary
from tools.recipe import TrainRecipe

START = TrainRecipe("base", "train.jsonl", "out", lora_rank=8, lora_alpha=16, epochs=1.0, micro_batch_size=8)


@pytest.fixture
def make_context() -> Callable[..., PlanContext]:
    """Return a maker of contexts whose history holds the starting recipe alone, unless told."""

    def make(**changes: Any) -> PlanContext:
        given: dict[str, Any] = {
            "incumbent": START,
            "incumbent_score": 0.3,
            "n_candidates": 3,
            "history": (TrialSummary("t0", START, 0.3, "baseline", train_s=60.0),),
            "n_train_rows": 400,
        }
        return PlanContext(**{**given, **changes})

    return make
