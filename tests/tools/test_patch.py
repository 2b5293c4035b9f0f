"""Patches: what is refused, what applying gives, how a difference reads."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tools.errors import PatchError
from tools.patch import (
    RecipePatch,
    apply_patch,
    diff_recipes,
    format_diff,
    patch_between,
    patch_from_mapping,
    schema,
)
from tools.patch_space import DEFAULT_SPACE, PROJECTIONS, PatchSpace
from tools.recipe import TrainRecipe

RECIPE = TrainRecipe("base", "train.jsonl", "out", lora_rank=8, lora_alpha=16, epochs=1.0, micro_batch_size=8)
LOCKED = [
    "seed",
    "base_model",
    "dataset_jsonl",
    "output_dir",
    "backend",
    "container",
    "extra_env",
    "system_prompt_file",
    "torch_dtype",
    "notes",
    "seq_length",
    "smoke_steps",
    "save_interval",
    "eval_interval",
    "early_stop_patience",
    "use_dora",
    "gradient_checkpointing",
    "quantization",
    "most_recent_k",
]


def test_a_patch_gives_a_new_recipe_and_a_readable_difference() -> None:
    patch = RecipePatch(learning_rate=1e-3, lora_rank=16)
    patched = apply_patch(RECIPE, patch)
    assert (patched.learning_rate, patched.lora_rank) == (1e-3, 16)
    assert RECIPE.learning_rate == 1e-4
    assert format_diff(RECIPE, patched) == "lora_rank 8 -> 16, learning_rate 0.0001 -> 0.001"
    assert str(patch) == "learning_rate 0.001, lora_rank 16"


@pytest.mark.parametrize("field", LOCKED)
def test_a_field_outside_the_allow_list_is_refused_by_name(field: str) -> None:
    value = getattr(RECIPE, field)
    with pytest.raises(PatchError, match=f"'{field}': may not be patched; allowed fields"):
        patch_from_mapping({field: value, "learning_rate": 1e-3})


def test_every_field_of_a_recipe_is_either_patchable_or_locked() -> None:
    assert set(DEFAULT_SPACE.ranges) | set(LOCKED) == set(RECIPE.to_dict())
    assert set(DEFAULT_SPACE.ranges) == set(RecipePatch.model_fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", 0.011),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("learning_rate", "1e999"),
        ("learning_rate", "fast"),
        ("learning_rate", True),
        ("learning_rate", None),
        pytest.param("learning_rate", 10**5000, id="huge"),
        ("learning_rate", [1e-3]),
        ("lora_rank", 0),
        ("lora_rank", 257),
        ("lora_rank", 8.5),
        ("lora_rank", True),
        pytest.param("lora_rank", -(10**5000), id="huge-negative"),
        ("lr_schedule", "cosine "),
        ("lr_schedule", None),
        ("use_rslora", 1),
        ("packing", "true"),
        ("lora_target_modules", []),
        ("lora_target_modules", "q_proj"),
        ("lora_target_modules", ["q_proj", "q_proj"]),
        ("lora_target_modules", ["lm_head"]),
        ("lora_target_modules", [["q_proj"]]),
        ("lora_layers", []),
        ("lora_layers", [-1]),
        ("lora_layers", [1, 1]),
        ("lora_layers", [True]),
        ("lora_layers", [0.5]),
        ("epochs", 0.1),
        ("epochs", 11),
        ("max_steps", 0),
        ("weight_decay", 0.31),
    ],
)
def test_a_value_outside_its_range_is_refused_with_what_is_allowed(field: str, value: Any) -> None:
    with pytest.raises(PatchError, match=rf"{field}: came .+; allowed: ") as caught:
        patch_from_mapping({field: value})
    assert len(str(caught.value)) < 600
    with pytest.raises(ValueError, match=field):
        RecipePatch(**{field: value})


def test_every_problem_of_a_patch_is_named_at_once() -> None:
    with pytest.raises(PatchError) as caught:
        patch_from_mapping({"seed": 1, "lora_rank": 0, "learning_rate": "x", 7: 8})
    for name in ("'seed'", "lora_rank", "learning_rate", "7"):
        assert name in str(caught.value)


@pytest.mark.parametrize("data", [{}, [], None, "learning_rate: 1", 3])
def test_what_is_no_mapping_of_fields_is_refused(data: Any) -> None:
    with pytest.raises(PatchError):
        patch_from_mapping(data)


def test_a_number_written_as_yaml_1_1_reads_it_counts_as_a_number() -> None:
    assert patch_from_mapping({"learning_rate": "1e-3", "lora_rank": "16"}).values() == {
        "learning_rate": 1e-3,
        "lora_rank": 16,
    }


def test_a_patch_that_changes_nothing_is_refused() -> None:
    same = {"lora_rank": 8, "lora_target_modules": list(reversed(RECIPE.lora_target_modules))}
    with pytest.raises(PatchError, match="changes nothing"):
        apply_patch(RECIPE, patch_from_mapping(same))


def test_a_patch_that_another_field_overrides_is_refused() -> None:
    with pytest.raises(PatchError, match="max_steps 50 has no effect while epochs is 1"):
        apply_patch(RECIPE, RecipePatch(max_steps=50))
    counted = apply_patch(RECIPE, RecipePatch(max_steps=50, epochs=None))
    assert (counted.max_steps, counted.epochs) == (50, None)


def test_a_patch_that_makes_an_impossible_recipe_is_refused_with_the_reason() -> None:
    with pytest.raises(PatchError, match="must be a multiple of micro_batch_size"):
        apply_patch(RECIPE, RecipePatch(global_batch_size=12))
    with pytest.raises(PatchError, match="min_learning_rate"):
        apply_patch(RECIPE, RecipePatch(min_learning_rate=1e-3))


def test_null_is_told_apart_from_left_out() -> None:
    upper = RECIPE.replace(lora_layers=(2, 3))
    assert apply_patch(upper, RecipePatch(lora_layers=None)).lora_layers is None
    assert apply_patch(upper, RecipePatch(lora_rank=4)).lora_layers == (2, 3)


def test_lists_differ_by_what_joins_and_leaves() -> None:
    wider = RECIPE.replace(lora_target_modules=("q_proj", "up_proj"))
    assert format_diff(RECIPE, wider) == "lora_target_modules -k_proj -v_proj -o_proj +up_proj"
    assert format_diff(RECIPE, RECIPE.replace(notes="x", output_dir="elsewhere")) == "no change"


def test_numbers_that_differ_far_behind_the_point_read_differently() -> None:
    near = RECIPE.replace(learning_rate=1.00000001e-4)
    assert format_diff(RECIPE, near) == "learning_rate 0.0001 -> 0.000100000001"


def test_a_narrowed_space_holds_for_reading_and_for_applying() -> None:
    space = PatchSpace.from_mapping({"learning_rate": {"max": 5e-4}, "epochs": False})
    with pytest.raises(
        PatchError, match=r"learning_rate: came 0.001; allowed: a number in \[1e-06, 0.0005\]"
    ):
        patch_from_mapping({"learning_rate": 1e-3}, space=space)
    with pytest.raises(PatchError, match="epochs"):
        apply_patch(RECIPE, RecipePatch(epochs=2.0), space=space)


def test_the_schema_describes_every_field_as_plain_values() -> None:
    plain = json.loads(json.dumps(schema()))
    assert set(plain) == set(DEFAULT_SPACE.ranges)
    assert plain["lora_rank"]["allowed"] == "a whole number in [1, 256]"
    assert plain["lora_target_modules"]["choices"] == list(PROJECTIONS)


def _some(field: str) -> st.SearchStrategy[Any]:
    rule = DEFAULT_SPACE.ranges[field]
    if rule.kind == "subset":
        values: st.SearchStrategy[Any] = st.lists(st.sampled_from(PROJECTIONS), min_size=1, unique=True)
    elif rule.kind == "layers":
        values = st.lists(st.integers(0, 1023), min_size=1, unique=True, max_size=5)
    elif rule.kind == "flag":
        values = st.booleans()
    elif rule.choices is not None:
        values = st.sampled_from(rule.choices)
    elif rule.kind == "whole":
        values = st.integers(int(rule.low or 0), int(rule.high or 0))
    else:
        values = st.floats(rule.low, rule.high)
    return st.none() | values if rule.nullable else values


PATCHES = st.dictionaries(st.sampled_from(sorted(DEFAULT_SPACE.ranges)), st.none(), min_size=1).flatmap(
    lambda fields: st.fixed_dictionaries({name: _some(name) for name in fields})
)


@given(PATCHES)
def test_a_patch_survives_json_and_is_what_lies_between_the_recipes(values: dict[str, Any]) -> None:
    patch = patch_from_mapping(values)
    again = RecipePatch.model_validate_json(patch.model_dump_json())
    assert again == patch
    assert hash(again) == hash(patch)
    try:
        patched = apply_patch(RECIPE, patch)
    except PatchError:
        return
    patched.validate()
    assert {change.field for change in diff_recipes(RECIPE, patched)} <= set(values)
    assert apply_patch(RECIPE, patch_between(RECIPE, patched)) == patched


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.sampled_from(sorted(DEFAULT_SPACE.ranges)),
)
def test_hostile_data_is_a_patch_or_a_patch_error(value: Any, field: str) -> None:
    for data in (value, {field: value}):
        try:
            apply_patch(RECIPE, patch_from_mapping(data))
        except PatchError:
            continue
