"""What a recipe will take of this machine, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.forecast import make_forecast
from tests.tiny import save_tiny_base
from tools.hardware import Hardware
from tools.recipe import TrainRecipe
from tools.task import Task
from tools.workspace import Workspace

GIB = 2**30
BOX = Hardware("cpu", "a box", 32 * GIB, 24 * GIB, 8, bf16=True)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "task.yaml").write_text("name: forecast\n", encoding="utf-8")
    return Workspace.find(tmp_path)


@pytest.fixture
def recipe(tmp_path: Path) -> TrainRecipe:
    save_tiny_base(tmp_path / "base")
    turns = [{"role": "user", "content": "x" * 200}, {"role": "assistant", "content": "y" * 70}]
    rows = tmp_path / "train.jsonl"
    rows.write_text((json.dumps({"messages": turns}) + "\n") * 16, encoding="utf-8")
    return TrainRecipe(str(tmp_path / "base"), str(rows), str(tmp_path), max_steps=10)


def test_time_rests_on_products_until_a_run_has_shown_its_speed(
    workspace: Workspace, recipe: TrainRecipe
) -> None:
    first = make_forecast(workspace, Task(name="forecast"), recipe, 16, hardware=BOX)
    assert first is not None
    assert first.train_s is not None
    assert first.train_s > 0
    assert "TFLOP/s" in first.measured_by
    run = workspace.runs_dir / "i0001-c1-s17" / "runs-full"
    run.mkdir(parents=True)
    lines = [{"step": i, "tokens_per_s": 100.0 + i} for i in range(3)]
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"torn', encoding="utf-8"
    )
    later = make_forecast(workspace, Task(name="forecast"), recipe, 16, hardware=BOX)
    assert later is not None
    # 10 steps of 16 rows of 270 characters and two turns, at 101 tokens a second.
    assert later.train_s == pytest.approx(160 * (270 + 80) / 3.5 / 101, rel=0.01)
    assert "the last run's 101 tokens a second" in "\n".join(later.describe())


def test_memory_counts_the_answers_too(workspace: Workspace, recipe: TrainRecipe) -> None:
    few = make_forecast(workspace, Task(name="forecast", eval_batch_size=1), recipe, 16, hardware=BOX)
    many = make_forecast(workspace, Task(name="forecast", eval_batch_size=4096), recipe, 16, hardware=BOX)
    assert few is not None
    assert many is not None
    assert many.fit.total_bytes > few.fit.total_bytes > 0
    assert few.facts()["memory_bytes"] == few.fit.total_bytes
    assert "GiB that a run may use" in few.describe()[0]


def test_a_base_that_is_not_on_this_disk_is_not_foretold(workspace: Workspace, recipe: TrainRecipe) -> None:
    absent = recipe.replace(base_model="someone/some-model")
    assert make_forecast(workspace, Task(name="forecast"), absent, 16, hardware=BOX) is None
