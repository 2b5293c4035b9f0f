from __future__ import annotations

import pytest

from tools.engine.schedule import learning_rate_at
from tools.recipe import TrainRecipe


def rates(total: int, **changes: object) -> list[float]:
    recipe = TrainRecipe("b", "d", "o", learning_rate=1.0, **changes)  # type: ignore[arg-type]
    return [learning_rate_at(recipe, step, total) for step in range(total)]


def test_warm_up_rises_in_equal_parts_and_wastes_no_step() -> None:
    assert rates(10, lr_warmup_fraction=0.4, lr_schedule="constant") == [0.25, 0.5, 0.75] + [1.0] * 7


def test_linear_decay_heads_for_the_floor() -> None:
    found = rates(4, lr_warmup_fraction=0.0, lr_schedule="linear", min_learning_rate=0.2)
    assert found == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_cosine_decay_is_half_way_in_the_middle() -> None:
    found = rates(8, lr_warmup_fraction=0.0, lr_schedule="cosine")
    assert found[0] == 1.0
    assert found[4] == pytest.approx(0.5)
    assert found == sorted(found, reverse=True)
    assert found[-1] > 0


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_a_run_of_one_step_takes_it_at_the_full_rate(schedule: str) -> None:
    assert rates(1, lr_warmup_fraction=1.0, lr_schedule=schedule) == [1.0]
