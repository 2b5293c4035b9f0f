"""The technique by the shape of the reward, and runs that were over too soon."""

from __future__ import annotations

from typing import Any

import pytest

from agent.diagnostics import (
    RewardShape,
    Technique,
    choose_technique,
    find_implausibly_fast,
    reward_shape,
)
from agent.records import TrialRecord
from tools.recipe import TrainRecipe

ALL = frozenset(Technique)
START = TrainRecipe("base", "train.jsonl", "out", lora_rank=8, lora_alpha=16, epochs=1.0, micro_batch_size=8)


@pytest.mark.parametrize(
    ("shape", "more", "technique"),
    [
        (RewardShape.VERIFIABLE, {}, Technique.RL),
        (RewardShape.PREFERENCES, {}, Technique.PREFERENCE),
        (RewardShape.DEMONSTRATIONS, {}, Technique.SFT),
        (RewardShape.SCORED_DEMONSTRATIONS, {}, Technique.SFT),
        (RewardShape.SCORED_DEMONSTRATIONS, {"base_score": 0.0}, Technique.SFT),
        (RewardShape.SCORED_DEMONSTRATIONS, {"base_score": 0.5}, Technique.RL),
        (RewardShape.SCORED_DEMONSTRATIONS, {"is_stuck_at_zero": True}, Technique.RL),
    ],
)
def test_the_reward_decides_the_technique(
    shape: RewardShape, more: dict[str, Any], technique: Technique
) -> None:
    choice = choose_technique(shape, at_hand=ALL, **more)
    assert choice.technique is technique
    assert choice.is_best_fit
    assert shape.value in str(choice)


def test_what_fits_better_and_is_not_at_hand_is_named() -> None:
    choice = choose_technique(RewardShape.VERIFIABLE)
    assert choice.technique is Technique.SFT
    assert not choice.is_best_fit
    assert "rl, rft would fit better and is not at hand" in str(choice)


def test_the_shape_is_read_from_what_there_is() -> None:
    assert reward_shape(has_answers=True, has_scorer=True) is RewardShape.SCORED_DEMONSTRATIONS
    assert reward_shape(has_answers=False, has_scorer=True) is RewardShape.VERIFIABLE
    assert reward_shape(has_answers=False, has_scorer=False, has_pairs=True) is RewardShape.PREFERENCES
    assert reward_shape(has_answers=True, has_scorer=False) is RewardShape.DEMONSTRATIONS
    assert reward_shape(has_answers=False, has_scorer=False) is None


def run(name: str, train_s: float, status: Any = "done", **patch: Any) -> TrialRecord:
    return TrialRecord(
        trial_id=name,
        candidate_id=name,
        parent_id="",
        recipe=START.replace(**patch).to_dict(),
        seed=17,
        status=status,
        run_dir="runs",
        train_s=train_s,
    )


def test_a_run_that_was_over_too_soon_is_found() -> None:
    (found,) = find_implausibly_fast([run("a", 100), run("b", 110), run("c", 15)], n_train_rows=400)
    assert found.evidence == ("c",)
    assert "15 s" in found.summary


@pytest.mark.parametrize(
    "trials",
    [
        [run("a", 100), run("b", 110), run("c", 60)],
        [run("a", 100), run("b", 15)],
        [run("a", 100), run("b", 110), run("c", 15, "stopped_early")],
        [run("a", 400, epochs=4.0), run("b", 410, epochs=4.0), run("c", 60, epochs=0.5)],
    ],
    ids=["a little faster", "no cohort", "stopped early", "less work"],
)
def test_faster_runs_with_a_reason_are_not(trials: list[TrialRecord]) -> None:
    assert find_implausibly_fast(trials, n_train_rows=400) == ()
