"""A spec divided, and its results joined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tools.engine.results import AdapterResult, MemberResult
from tools.errors import TrainError
from tools.lanes.parts import divide, join
from tools.recipe import TrainRecipe


def train_spec(tmp_path: Path, *steps: int, **changes: Any) -> dict[str, Any]:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"x": 1}\n' * 8, encoding="utf-8")
    recipe = TrainRecipe("base", str(rows), str(tmp_path), smoke_steps=1)
    members = [
        {"trial_id": f"t{n}", "recipe": recipe.replace(max_steps=count).to_dict(), "run_dir": f"r{n}"}
        for n, count in enumerate(steps)
    ]
    whole = {"kind": "train", "base_model": "base", "mode": "full", "members": members}
    return {**whole, "result_path": str(tmp_path / "all.json"), **changes}


def names(part: dict[str, Any]) -> list[str]:
    return [item["trial_id"] for item in part["members"]]


def test_the_longest_members_go_first_to_whoever_has_the_least(tmp_path):
    parts = divide(train_spec(tmp_path, 10, 80, 20, 30, 40), 2)
    assert [names(part) for part in parts] == [["t0", "t1"], ["t2", "t3", "t4"]]
    assert [Path(part["result_path"]).name for part in parts] == ["all.part0.json", "all.part1.json"]
    assert all(part["base_model"] == "base" for part in parts)


def test_no_worker_is_started_for_nothing(tmp_path):
    assert [names(part) for part in divide(train_spec(tmp_path, 5, 5), 8)] == [["t0"], ["t1"]]
    whole = train_spec(tmp_path, 5)
    assert divide(whole, 8) == (whole,)


def test_members_that_compete_stay_together(tmp_path):
    whole = train_spec(tmp_path, 5, 5, 5, search={"keep": 0.5})
    assert divide(whole, 3) == (whole,)


def test_a_recipe_that_cannot_be_read_costs_nothing_and_is_still_handed_on(tmp_path):
    whole = train_spec(tmp_path, 5, 5)
    whole["members"][0]["recipe"] = {"nonsense": 1}
    assert sorted(name for part in divide(whole, 2) for name in names(part)) == ["t0", "t1"]


def result(*ids: str, **changes: Any) -> dict[str, Any]:
    members = [{"trial_id": name, "status": "done"} for name in ids]
    numbers = {"base_load_s": 1.0, "peak_memory_bytes": 5, "saved_steps": 0}
    return {"members": members, **numbers, "usage": {"wall_s": 2.0, "gpus": 1}, **changes}


def test_results_are_joined_in_the_specs_order(tmp_path):
    whole = train_spec(tmp_path, 10, 80, 20)
    parts = divide(whole, 2)
    more = {"base_load_s": 3.0, "peak_memory_bytes": 9, "saved_steps": 4, "usage": {"wall_s": 7.0, "gpus": 1}}
    joined = join(whole, parts, [result(*names(parts[0])), result(*names(parts[1]), **more)])
    assert [entry["trial_id"] for entry in joined["members"]] == ["t0", "t1", "t2"]
    assert {key: joined[key] for key in more} == {**more, "usage": {"wall_s": 7.0, "gpus": 2}}


def test_of_a_dead_worker_only_its_own_members_fail(tmp_path):
    whole = train_spec(tmp_path, 10, 80, 20)
    parts = divide(whole, 2)
    joined = join(whole, parts, [TrainError("killed"), result(*names(parts[1]))])
    ended = {entry["trial_id"]: entry for entry in joined["members"]}
    assert all(ended[name]["error"] == "the worker died: killed" for name in names(parts[0]))
    assert all(ended[name]["status"] == "done" for name in names(parts[1]))
    # What is built here is what the engine's own record holds.
    MemberResult(**ended[names(parts[0])[0]])


def test_a_dead_worker_fails_its_adapters_in_the_engines_own_words(tmp_path):
    adapters = [{"trial_id": name, "seed": 1, "adapter_dir": None} for name in ("a", "b")]
    whole = {"kind": "evaluate", "adapters": adapters, "result_path": str(tmp_path / "x.json")}
    parts = divide(whole, 2)
    told = {"adapters": [{"trial_id": "b", "splits": {}}], "base_load_s": 1.0, "peak_memory_bytes": 5}
    joined = join(whole, parts, [TrainError("killed"), told])
    assert AdapterResult(**joined["adapters"][0]).error == "the worker died: killed"
    assert joined["usage"] is None


def test_where_all_workers_died_the_first_ones_error_is_raised(tmp_path):
    whole = train_spec(tmp_path, 10, 80)
    with pytest.raises(TrainError, match="first"):
        join(whole, divide(whole, 2), [TrainError("first"), TrainError("second")])
