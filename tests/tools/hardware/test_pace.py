"""How long training takes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools.hardware import ModelShape
from tools.hardware.pace import last_tokens_per_s, measure_flops, train_flops, train_s
from tools.recipe import TrainRecipe

TINY = ModelShape(2, 64, 128, 4, 2, 16, 512, tied=True)
RECIPE = TrainRecipe("base", "train.jsonl", "out")


def test_a_step_costs_four_flop_a_weight_and_six_where_layers_are_recomputed() -> None:
    layers = TINY.n_params - 512 * 64
    plain = train_flops(RECIPE, TINY, 100, supervised_share=0)
    assert plain == 400 * layers
    again = train_flops(RECIPE.replace(gradient_checkpointing=True), TINY, 100, supervised_share=0)
    assert again == 600 * layers
    assert train_flops(RECIPE, TINY, 100, supervised_share=1) == 400 * TINY.n_params
    assert train_s(RECIPE, TINY, 100, flops_per_s=1e9, reached=1.0) == pytest.approx(
        train_flops(RECIPE, TINY, 100) / 1e9
    )


def test_products_of_this_machine_are_timed() -> None:
    pytest.importorskip("torch")
    assert 1e8 < measure_flops(TINY, "float32") < 1e16


def test_the_newest_run_that_says_its_speed_counts(tmp_path: Path) -> None:
    assert last_tokens_per_s(tmp_path) is None
    texts = {
        "old": '{"tokens_per_s": 5}\n',
        "new": '{"tokens_per_s": 7}\n{"eval_score": 1}\n[]\n{"tokens_per_s": null}\n{"tok',
        "empty": "",
    }
    for age, (name, text) in enumerate(texts.items()):
        path = tmp_path / name / "runs-full" / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
        os.utime(path, (1000 + age, 1000 + age))
    assert last_tokens_per_s(tmp_path) == 7
