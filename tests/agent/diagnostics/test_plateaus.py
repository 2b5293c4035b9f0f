"""The four diagnostics: each has a history that fires it and one that does not."""

from __future__ import annotations

from typing import Any

import pytest

from agent.diagnostics import (
    diagnose_history,
    find_base_below_random,
    find_exhausted_method,
    find_same_score,
    find_stuck_at_zero,
    list_moves,
)
from agent.plan import TrialSummary
from tools.patch_space import PROJECTIONS
from tools.recipe import TrainRecipe

START = TrainRecipe("base", "train.jsonl", "out", lora_rank=8, lora_alpha=16, epochs=1.0, micro_batch_size=8)
FASTER = START.replace(learning_rate=5e-4)
WIDER = START.replace(lora_target_modules=PROJECTIONS)
UPPER = START.replace(lora_layers=(20, 21, 22))
OTHER_DATA = START.replace(dataset_jsonl="more.jsonl")


def trial(name: str, recipe: TrainRecipe, score: float | None, **more: Any) -> TrialSummary:
    return TrialSummary(name, recipe, score, "discard", **more)


def test_two_recipes_at_zero_are_stuck() -> None:
    found = find_stuck_at_zero(list_moves([trial("a", START, 0.0), trial("b", FASTER, 0.0)]))
    assert found is not None
    assert found.code == "stuck_at_zero"
    assert found.evidence == ("a", "b")


@pytest.mark.parametrize(
    "history",
    [
        [],
        [trial("a", START, 0.0)],
        [trial("a-s17", START.replace(seed=17), 0.0), trial("a-s29", START.replace(seed=29), 0.0)],
        [trial("a", START, 0.0), trial("b", FASTER, None)],
        [trial("a", START, 0.0), trial("b", FASTER, 0.01)],
    ],
    ids=["nothing", "one run", "two seeds of one recipe", "a crash", "one above"],
)
def test_fewer_or_other_runs_are_not_stuck(history: list[TrialSummary]) -> None:
    assert find_stuck_at_zero(list_moves(history)) is None


def test_a_base_that_answers_in_form_and_worse_than_guessing_lacks_knowledge() -> None:
    found = find_base_below_random(score=0.10, chance=0.25, n_items=120, well_formed=0.95)
    assert found is not None
    assert found.code == "base_below_random"
    assert found.evidence == ("12 of 120 items right",)


@pytest.mark.parametrize(
    ("score", "chance", "n_items", "well_formed"),
    [
        (0.0, 0.25, 120, 0.1),
        (0.22, 0.25, 120, 0.95),
        (0.10, 0.25, 10, 0.95),
        (0.40, 0.25, 120, 0.95),
        (None, 0.25, 120, 0.95),
        (0.10, None, 120, 0.95),
        (0.10, 0.25, 120, None),
    ],
    ids=["no form", "within luck", "too few items", "above", "no score", "no chance", "form unknown"],
)
def test_a_low_base_is_not_always_ignorant(
    score: float | None, chance: float | None, n_items: int, well_formed: float | None
) -> None:
    assert (
        find_base_below_random(score=score, chance=chance, n_items=n_items, well_formed=well_formed) is None
    )


def gains(*values: float | None) -> list[TrialSummary]:
    return [
        trial(f"t{n}", START.replace(learning_rate=n * 1e-5), 0.4 + 0.01 * n, gain=gain)
        for n, gain in enumerate(values, start=1)
    ]


def test_a_row_of_candidates_without_gain_exhausts_a_method() -> None:
    found = find_exhausted_method(list_moves(gains(0.1, -0.01, 0.0, -0.02, -0.03)))
    assert found is not None
    assert found.evidence == ("t2", "t3", "t4", "t5")


@pytest.mark.parametrize(
    "history",
    [gains(-0.1, -0.1, -0.1), gains(-0.1, -0.1, -0.1, 0.02), gains(-0.1, None, -0.1, -0.1)],
    ids=["too few", "one gained", "one was never measured"],
)
def test_a_method_with_a_gain_is_not_exhausted(history: list[TrialSummary]) -> None:
    assert find_exhausted_method(list_moves(history)) is None


def test_one_score_across_three_techniques_points_at_the_objective() -> None:
    history = [trial("a", START, 0.40), trial("b", WIDER, 0.402), trial("c", UPPER, 0.40)]
    found = find_same_score(list_moves(history), n_items=120)
    assert found is not None
    assert found.code == "same_score"
    assert set(found.evidence) == {"a", "b", "c"}


@pytest.mark.parametrize(
    "history",
    [
        [trial("a", START, 0.4), trial("b", FASTER, 0.4), trial("c", START.replace(lora_rank=32), 0.4)],
        [trial("a", START, 0.4), trial("b", WIDER, 0.4), trial("c", UPPER, 0.5)],
        [trial("a", START, 0.0), trial("b", WIDER, 0.0), trial("c", UPPER, 0.0)],
        [trial("a", START, 0.4), trial("b", WIDER, None), trial("c", UPPER, 0.4)],
    ],
    ids=["numbers alone differ", "another score", "zero is its own diagnostic", "one was never scored"],
)
def test_the_same_score_needs_distinct_techniques_and_a_score(history: list[TrialSummary]) -> None:
    assert find_same_score(list_moves(history), n_items=120) is None


def test_other_data_is_another_technique() -> None:
    history = [trial("a", START, 0.4), trial("b", WIDER, 0.4), trial("c", OTHER_DATA, 0.4)]
    assert find_same_score(list_moves(history), n_items=120) is not None


def test_the_panel_reads_a_history_at_once() -> None:
    history = [trial("a", START, 0.0, gain=None), *(trial(f"t{n}", r, 0.0, gain=0.0) for n, r in _some())]
    assert [finding.code for finding in diagnose_history(history)] == ["stuck_at_zero", "method_exhausted"]
    assert diagnose_history([trial("a", START, 0.4)]) == ()


def _some() -> list[tuple[int, TrainRecipe]]:
    return list(enumerate([FASTER, WIDER, UPPER, START.replace(lora_rank=64)]))
