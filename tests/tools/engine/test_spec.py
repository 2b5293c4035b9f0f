from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tools.engine.halving import Halving
from tools.engine.spec import (
    AdapterRef,
    EvaluateSpec,
    MidEval,
    ScorerChoice,
    StackMember,
    TrainSpec,
    read_spec,
    spec_from_json,
    spec_to_json,
)
from tools.errors import RecipeError, TrainError

Make = Callable[..., StackMember]


@pytest.fixture
def train(member: Make) -> TrainSpec:
    mid_eval = MidEval("dev.jsonl", 3, ScorerChoice("json", ("confidence",)))
    members = (member("a"), member("b", lora_layers=(1,)))
    return TrainSpec("base", members, "full", "out.json", mid_eval, 2, search=Halving((0.3, 0.6)))


@pytest.fixture
def evaluate() -> EvaluateSpec:
    refs = (AdapterRef("base", 0, None), AdapterRef("t", 17, "/run/iter_0000001"))
    splits = {"dev": "dev.jsonl"}
    return EvaluateSpec(
        "base", "float32", refs, splits, ScorerChoice("exact"), "scores", "out.json", "Be brief."
    )


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_a_spec_survives_json(name: str, request: pytest.FixtureRequest) -> None:
    spec = request.getfixturevalue(name)
    assert spec_from_json(json.loads(json.dumps(spec_to_json(spec)))) == spec


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"threads": 0}, "threads"),
        ({"threads": True}, "threads"),
        ({"mode": "half"}, "mode"),
        ({"colour": 1}, "colour"),
        ({"members": []}, "trial ids"),
        ({"members": [{"trial_id": "../up"}]}, "lacks"),
        ({"base_model": None}, "base_model"),
        ({"search": {"rungs": [0.5, 0.5]}}, r"search\.rungs"),
        ({"search": {"rungs": ["half"]}}, r"search\.rungs\[0\]"),
        ({"search": {"keep": True}}, r"search\.keep"),
        ({"search": {}, "mid_eval": None}, "search needs mid_eval"),
        ({"mid_eval": {"rows": "d", "n_items": "3", "scorer": {"name": "json"}}}, r"mid_eval\.n_items"),
    ],
)
def test_a_wrong_train_spec_is_refused_by_field(train: TrainSpec, change: dict[str, Any], hint: str) -> None:
    with pytest.raises(TrainError, match=hint):
        spec_from_json({**spec_to_json(train), **change})


@pytest.mark.parametrize("trial_id", ["../up", "", ".hidden", "a/b"])
def test_a_trial_id_that_is_a_path_is_refused(train: TrainSpec, trial_id: str) -> None:
    plain = spec_to_json(train)
    plain["members"][0]["trial_id"] = trial_id
    with pytest.raises(TrainError, match="trial ids"):
        spec_from_json(plain)


def test_two_members_of_one_name_or_of_two_precisions_are_refused(train: TrainSpec) -> None:
    plain = spec_to_json(train)
    plain["members"][0]["recipe"]["torch_dtype"] = "bfloat16"
    with pytest.raises(TrainError, match="dtype"):
        spec_from_json(plain)
    plain["members"][0]["recipe"] |= {"torch_dtype": "float32", "quantization": "nf4"}
    with pytest.raises(TrainError, match="nf4"):
        spec_from_json(plain)
    plain["members"][0] = plain["members"][1]
    with pytest.raises(TrainError, match="distinct"):
        spec_from_json(plain)


def test_a_wrong_recipe_in_a_spec_is_refused(train: TrainSpec) -> None:
    plain = spec_to_json(train)
    plain["members"][0]["recipe"]["learning_rate"] = -1
    with pytest.raises(RecipeError, match="learning_rate"):
        spec_from_json(plain)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"torch_dtype": "int4"}, "int4"),
        ({"splits": {"../dev": "x"}}, "split"),
        ({"splits": {"dev": 3}}, "splits"),
    ],
)
def test_a_wrong_evaluate_spec_is_refused(evaluate: EvaluateSpec, change: dict[str, Any], hint: str) -> None:
    with pytest.raises(TrainError, match=hint):
        spec_from_json({**spec_to_json(evaluate), **change})


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_a_file_that_holds_no_spec_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(TrainError):
        read_spec(tmp_path / "spec.json")
