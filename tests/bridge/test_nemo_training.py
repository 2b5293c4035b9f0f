"""The shipped NeMo trainer on real Megatron-Bridge, and what comes of its checkpoints."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tools.errors import TrainError
from tools.merge import merge_and_export
from tools.poll import poll_run_progress
from tools.recipe import TrainRecipe
from tools.train import run

pytestmark = pytest.mark.bridge

CHECKOUT = Path(__file__).parent / "checkout"
_LINE = re.compile(
    r"iteration +(\d+)/.*learning rate: (\S+) .*lm loss: (\S+) ",
)


def log_lines(run_dir: Path) -> dict[int, tuple[float, float]]:
    """Iteration -> the learning rate of the next step, and the loss."""
    text = (run_dir / "train.log").read_text(encoding="utf-8", errors="replace")
    return {int(line[1]): (float(line[2]), float(line[3])) for line in _LINE.finditer(text)}


def answer_loss(recipe: TrainRecipe, step: int) -> float:
    """The mean loss of a step's learned tokens under the untouched base, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tools.engine.batches import RowEncoder, rows_of_step

    tokenizer = AutoTokenizer.from_pretrained(recipe.base_model)
    model = AutoModelForCausalLM.from_pretrained(recipe.base_model, dtype=torch.float32)
    rows = RowEncoder(tokenizer).encode(recipe.dataset_jsonl, None).rows
    losses: list[Any] = []
    for number in rows_of_step(len(rows), recipe.global_batch_size, recipe.seed, step):
        row = rows[number]
        with torch.no_grad():
            logits = model(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        learned = [i for i, wanted in enumerate(row.loss_mask) if wanted and i > 0]
        losses += [-logits[i - 1, row.input_ids[i]] for i in learned]
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("yarn", [False, True])
def test_a_run_trains_the_answers_at_the_local_lanes_rates(recipe, make_model, yarn):
    if yarn:
        recipe = recipe.replace(base_model=str(make_model("llama", yarn=True)))
    recipe = recipe.replace(lr_warmup_fraction=0.4)
    result = run(recipe, poll_interval=0.5)
    assert (result.final_iter, result.iter_dirs) == (5, (2, 4, 5))
    assert (Path(result.run_dir) / "iter_0000005" / "run_config.yaml").is_file()
    said = log_lines(Path(result.run_dir))
    # The adapter starts as nothing, so that the first loss is the base model's.
    assert said[1][1] == pytest.approx(answer_loss(recipe, 0), rel=2e-5)
    rates = [rate for rate, _ in said.values()]
    assert rates == pytest.approx([1e-2, 1e-2, 7.5e-3, 2.5e-3, 2.5e-3], rel=1e-4)


def test_a_run_that_is_cut_short_goes_on_and_ends_like_a_whole_one(recipe, tmp_path):
    long = recipe.replace(max_steps=40, save_interval=5, extra_env={"MCORE_BASE": str(tmp_path / "base")})
    whole = run(long, poll_interval=0.5)
    cut = long.replace(output_dir=str(tmp_path / "cut"))

    def has_saved() -> bool:
        return poll_run_progress(cut.run_dir("full"))[0] >= 5

    with pytest.raises(TrainError, match="stopped on request"):
        run(cut, poll_interval=0.05, should_stop=has_saved)
    reached = poll_run_progress(cut.run_dir("full"))[0]
    assert 5 <= reached < 40
    continued = run(cut, poll_interval=0.5)
    assert continued.final_iter == 40
    wanted, found = log_lines(Path(whole.run_dir)), log_lines(Path(continued.run_dir))
    assert found.keys() == wanted.keys()
    for step, (rate, loss) in wanted.items():
        assert found[step] == pytest.approx((rate, loss), rel=1e-4), step


def test_a_smoke_run_with_scaling_by_the_root_of_the_rank(recipe):
    result = run(recipe.replace(use_rslora=True), mode="smoke", poll_interval=0.5)
    assert (result.final_iter, result.iter_dirs) == (2, (2,))
    config = (Path(result.run_dir) / "iter_0000002" / "run_config.yaml").read_text(encoding="utf-8")
    # 8 / sqrt(4), which Megatron writes as alpha / dim.
    assert re.search(r"^  alpha: 16\.0$", config, re.MULTILINE)


def test_a_missing_base_model_is_the_runs_error_with_its_reason(recipe):
    (Path(recipe.base_model) / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(TrainError, match="could not be converted"):
        run(recipe, poll_interval=0.5)
    assert not (Path(recipe.output_dir) / "mcore-base").exists()


def test_the_adapter_is_merged_and_exported_by_the_bridges_scripts(recipe, run_program):
    recipe = recipe.replace(extra_env={"BRIDGE_DIR": str(CHECKOUT)})
    run(recipe, poll_interval=0.5)
    result = merge_and_export(recipe, expect_iter=5)
    checkpoint = recipe.run_dir("full") / "iter_0000005"
    gap = run_program("compare_merged.py", recipe.base_model, checkpoint, result.merged_hf_dir)
    # bfloat16 keeps 8 bits; the adapter moved the logits by far more than that.
    assert gap["adapter_vs_merged"] < 0.05 < gap["base_vs_merged"]
    config = json.loads((Path(result.merged_hf_dir) / "config.json").read_text(encoding="utf-8"))
    assert config["rope_theta"] == 10000.0
