"""The recipe: what is refused, what round-trips, and what its digest covers."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tools.errors import RecipeError
from tools.recipe import TrainRecipe
from tools.yaml_text import dump_yaml, parse_yaml


def recipe(**changes: Any) -> TrainRecipe:
    paths = {"base_model": "base", "dataset_jsonl": "rows.jsonl", "output_dir": "out"}
    return TrainRecipe(**{**paths, **changes})


def test_documented_defaults_hold() -> None:
    made = recipe()
    assert (made.lora_rank, made.lora_alpha, made.lora_dropout) == (16, 32, 0.05)
    assert made.lora_target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert (made.seq_length, made.micro_batch_size, made.global_batch_size) == (4096, 2, 16)
    assert (made.learning_rate, made.lr_schedule, made.lr_warmup_fraction) == (1e-4, "cosine", 0.05)
    assert (made.max_steps, made.save_interval, made.most_recent_k, made.smoke_steps) == (625, 50, 3, 10)
    assert (made.torch_dtype, made.seed, made.backend) == ("bfloat16", 42, "local")


def test_a_recipe_round_trips_through_yaml(tmp_path: Path) -> None:
    made = recipe(
        backend="nemo",
        extra_env={"NCCL_DEBUG": "WARN"},
        lora_layers=(20, 21),
        epochs=1.5,
        notes="säure: ‘x’\n- y",
    )
    path = made.to_yaml(tmp_path / "deep" / "recipe.yaml")
    assert TrainRecipe.from_yaml(path) == made
    assert hash(TrainRecipe.from_yaml(path)) == hash(made)
    assert pickle.loads(pickle.dumps(made)) == made


@given(
    st.floats(min_value=1e-12, max_value=1, allow_nan=False),
    st.integers(min_value=0, max_value=2**62),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
)
def test_any_number_and_text_survives_the_round_trip(rate: float, seed: int, notes: str) -> None:
    made = recipe(learning_rate=rate, seed=seed, notes=notes)
    assert TrainRecipe.from_dict(parse_yaml(dump_yaml(made.to_dict()))) == made


def test_a_number_in_scientific_notation_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("base_model: a\ndataset_jsonl: b\noutput_dir: c\nlearning_rate: 1e-4\nmax_steps: 1e3\n")
    found = TrainRecipe.from_yaml(path)
    assert (found.learning_rate, found.max_steps) == (1e-4, 1000)
    assert isinstance(found.max_steps, int)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"lora_target_modules": "q_proj"}, "lora_target_modules"),
        ({"lora_target_modules": ()}, "lora_target_modules"),
        ({"lora_target_modules": ("q_proj", "q_proj")}, "lora_target_modules"),
        ({"lora_target_modules": ("q_proj; rm",)}, "lora_target_modules"),
        ({"lora_rank": True}, "lora_rank"),
        ({"lora_rank": 1.5}, "lora_rank"),
        ({"lora_rank": 0}, "lora_rank"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"lr_schedule": "cosin"}, "lr_schedule"),
        ({"backend": "slurm"}, "backend"),
        ({"most_recent_k": 0}, "most_recent_k"),
        ({"micro_batch_size": 3, "global_batch_size": 16}, "global_batch_size"),
        ({"min_learning_rate": 1.0}, "min_learning_rate"),
        ({"smoke_steps": 11, "max_steps": 10}, "smoke_steps"),
        ({"backend": "nemo", "seq_length": 100}, "seq_length"),
        ({"backend": "nemo", "lora_target_modules": ("wte",)}, "lora_target_modules"),
        ({"early_stop_patience": 2}, "eval_interval"),
        ({"use_dora": True}, "use_dora"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing"),
        ({"gradient_checkpointing": True, "backend": "unsloth"}, "gradient_checkpointing"),
        ({"extra_env": {"A": "b"}}, "extra_env"),
        ({"extra_env": {"A": 1}, "backend": "nemo"}, "extra_env"),
        ({"lora_layers": (1, 1)}, "lora_layers"),
        ({"epochs": 0.0}, "epochs"),
        ({"seed": -1}, "seed"),
        ({"base_model": " "}, "base_model"),
        ({"output_dir": "a\0b"}, "output_dir"),
    ],
)
def test_an_impossible_recipe_is_refused_by_the_fields_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(RecipeError, match=field):
        recipe(**changes).validate()


def test_unknown_missing_and_double_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="learning_rat'"):
        TrainRecipe.from_dict({**recipe().to_dict(), "learning_rat": 1})
    with pytest.raises(RecipeError, match="output_dir"):
        TrainRecipe.from_dict({"base_model": "a", "dataset_jsonl": "b"})
    path = tmp_path / "recipe.yaml"
    path.write_text("base_model: a\nbase_model: b\ndataset_jsonl: c\noutput_dir: d\n")
    with pytest.raises(RecipeError, match="given twice"):
        TrainRecipe.from_yaml(path)


@pytest.mark.parametrize("text", ["[1, 2]", "", "a: [", "!!python/object:os.system {}", "\x00"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError):
        TrainRecipe.from_yaml(path)


def test_targets_are_translated_for_megatron_in_one_order() -> None:
    assert recipe(backend="nemo").lora_target_modules_for_backend() == ("linear_qkv", "linear_proj")
    mlp = recipe(backend="nemo", lora_target_modules=("down_proj", "up_proj", "gate_proj"))
    assert mlp.lora_target_modules_for_backend() == ("linear_fc1", "linear_fc2")
    assert recipe(backend="unsloth").lora_target_modules_for_backend() == recipe().lora_target_modules


def test_containers_have_their_documented_names() -> None:
    assert recipe(backend="nemo").resolved_container() == "nemo-train"
    assert recipe(backend="unsloth").resolved_container() == "ps-train"
    assert recipe(backend="nemo", container="mine").resolved_container() == "mine"
    with pytest.raises(RecipeError, match="runs in no container"):
        recipe().resolved_container()


def test_the_digest_covers_what_changes_weights_and_nothing_else() -> None:
    assert recipe().digest == recipe(notes="hello").replace(output_dir="elsewhere").digest
    assert recipe().digest == recipe(gradient_checkpointing=True).digest
    assert recipe().digest != recipe(seed=43).digest
    assert recipe().digest != recipe(lora_rank=8).digest


def test_equal_recipes_have_equal_digests() -> None:
    whole, fraction = recipe(epochs=2, max_grad_norm=1), recipe(epochs=2.0, max_grad_norm=1.0)
    assert whole == fraction
    assert whole.digest == fraction.digest


def test_a_recipe_is_frozen_all_the_way_down() -> None:
    made = recipe(backend="nemo", extra_env={"A": "b"})
    with pytest.raises(TypeError, match="frozen"):
        made.extra_env["A"] = "c"  # type: ignore[index]
    assert {made: 1}[recipe(backend="nemo", extra_env={"A": "b"})] == 1


def test_epochs_take_the_place_of_steps() -> None:
    made = recipe(epochs=2, global_batch_size=16)
    assert made.total_steps(400) == 50
    assert made.total_steps(401) == 52
    assert made.total_steps(400, "smoke") == 10
    assert recipe(max_steps=7, smoke_steps=5).total_steps(400) == 7


def test_preflight_names_the_missing_path(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    with pytest.raises(RecipeError, match="dataset_jsonl"):
        TrainRecipe("hub/id", str(rows), str(tmp_path / "out")).preflight()
    rows.touch()
    TrainRecipe("hub/id", str(rows), str(tmp_path / "out")).preflight()
    with pytest.raises(RecipeError, match="base_model"):
        TrainRecipe("./nowhere", str(rows), str(tmp_path / "out")).preflight()
    with pytest.raises(RecipeError, match="output_dir"):
        TrainRecipe("hub/id", str(rows), str(tmp_path / "a" / "b")).preflight()


def test_relative_paths_are_fixed_to_the_workspace(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    made = TrainRecipe("model", "data/x.jsonl", "runs", system_prompt_file="p.md").resolve(tmp_path)
    assert made.base_model == str(tmp_path / "model")
    assert made.dataset_jsonl == str(tmp_path / "data/x.jsonl")
    assert made.system_prompt_file == str(tmp_path / "p.md")
    assert TrainRecipe("hub/id", "x", "y").resolve(tmp_path).base_model == "hub/id"


def test_rank_stabilised_scale() -> None:
    assert recipe(lora_rank=16, lora_alpha=32).lora_scale() == 2.0
    assert recipe(lora_rank=16, lora_alpha=32, use_rslora=True).lora_scale() == 8.0
