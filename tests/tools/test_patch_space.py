"""The patch space: a workspace may narrow it and never widen it."""

from __future__ import annotations

from typing import Any

import pytest

from tools.errors import PatchError
from tools.patch_space import DEFAULT_SPACE, PatchSpace


def test_nothing_given_is_the_default_space() -> None:
    assert PatchSpace.from_mapping(None) == DEFAULT_SPACE
    assert PatchSpace.from_mapping({}) == DEFAULT_SPACE
    assert hash(PatchSpace.from_mapping({})) == hash(DEFAULT_SPACE)


def test_ranges_choices_and_fields_are_narrowed() -> None:
    space = PatchSpace.from_mapping(
        {
            "learning_rate": {"min": "1e-5", "max": 1e-3},
            "lora_rank": {"choices": [32, 8]},
            "lora_target_modules": {"choices": ["v_proj", "q_proj"]},
            "lr_schedule": {"choices": ["constant"]},
            "packing": False,
            "epochs": True,
        }
    )
    assert "packing" not in space
    assert "epochs" in space
    allowed = {
        "learning_rate": 1e-4,
        "lora_rank": 8,
        "lr_schedule": "constant",
        "lora_target_modules": ("q_proj",),
    }
    assert space.problems(allowed) == ()
    refused = {
        "learning_rate": 2e-3,
        "lora_rank": 16,
        "lr_schedule": "cosine",
        "lora_target_modules": ("o_proj",),
    }
    assert len(space.problems(refused)) == 4


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"learning_rate": {"max": 0.1}}, "outside the allowed range"),
        ({"learning_rate": {"min": 1e-3, "max": 1e-4}}, "is above max"),
        ({"learning_rate": {"max": float("nan")}}, "outside the allowed range"),
        ({"lora_rank": {"choices": [8, 512]}}, "512 is outside"),
        ({"lora_rank": {"choices": []}}, "non-empty"),
        ({"lora_rank": {"choices": [8], "min": 4}}, "alone"),
        ({"lora_rank": {}}, "a rule has"),
        ({"lora_rank": {"low": 4}}, "unknown key"),
        ({"lora_rank": 8}, "give min and max"),
        ({"lora_target_modules": {"choices": ["lm_head"]}}, "'lm_head' is outside"),
        ({"lora_target_modules": {"choices": [["q_proj"]]}}, "outside"),
        ({"lora_target_modules": {"min": 1}}, "fit numbers"),
        ({"lora_layers": {"choices": [1]}}, "cannot be narrowed"),
        ({"seed": True}, "not a patchable field"),
        ({5: False}, "not a patchable field"),
        ([], "mapping"),
        ("learning_rate", "mapping"),
        (dict.fromkeys(DEFAULT_SPACE.ranges, False), "leave at least one"),
    ],
)
def test_a_rule_that_is_malformed_or_widens_is_refused(data: Any, said: str) -> None:
    with pytest.raises(PatchError, match=said):
        PatchSpace.from_mapping(data)


def test_the_description_has_a_line_for_every_field() -> None:
    lines = DEFAULT_SPACE.describe().splitlines()
    assert len(lines) == len(DEFAULT_SPACE.ranges)
    assert "learning_rate: a number in [1e-06, 0.01]; peak learning rate of the adapter" in lines


def test_a_space_does_not_change() -> None:
    with pytest.raises(TypeError):
        DEFAULT_SPACE.ranges["seed"] = DEFAULT_SPACE.ranges["epochs"]  # type: ignore[index]
