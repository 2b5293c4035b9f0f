"""Memory estimates, held against what the engine really keeps."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tools.engine.pass_size import rows_per_pass
from tools.errors import HardwareError
from tools.hardware import Hardware, ModelShape, check_fit, estimate
from tools.hardware.footprint import Answering, Footprint
from tools.patch_space import PROJECTIONS
from tools.recipe import TrainRecipe

GIB = 2**30
BOX = Hardware("cpu", "a box", 32 * GIB, 24 * GIB, 8, bf16=True)
SMOL = ModelShape(30, 576, 1536, 9, 3, 64, 49152, tied=True)
LLAMA_8B = ModelShape(32, 4096, 14336, 32, 8, 128, 128256, tied=False)
RECIPE = TrainRecipe("base", "train.jsonl", "out", lora_target_modules=PROJECTIONS)


def test_the_parts_sum_to_the_total_and_follow_the_recipe() -> None:
    fit = estimate(RECIPE, SMOL, BOX, row_tokens=128)
    assert fit.fits
    assert fit.weights_bytes == 2 * SMOL.n_params
    n_adapter = 30 * 16 * sum(a + b for a, b in SMOL.projections.values())
    assert fit.optimizer_bytes == 8 * n_adapter
    stacked = estimate(RECIPE, SMOL, BOX, row_tokens=128, members=4)
    assert stacked.activation_bytes == pytest.approx(4 * fit.activation_bytes, rel=1e-6)
    assert stacked.adapter_bytes == 4 * fit.adapter_bytes
    assert stacked.weights_bytes == fit.weights_bytes
    some = estimate(RECIPE.replace(lora_layers=(28, 29)), SMOL, BOX, row_tokens=128)
    assert some.optimizer_bytes * 15 == fit.optimizer_bytes


def test_four_bits_a_weight_and_recomputed_layers_take_a_part_of_the_memory() -> None:
    # What bitsandbytes itself says of SmolLM2-135M in nf4, its embedding in bfloat16: 109.8 million bytes.
    packed = estimate(RECIPE.replace(quantization="nf4"), SMOL, BOX, row_tokens=128)
    assert packed.weights_bytes == pytest.approx(109.8e6, rel=0.05)
    whole = estimate(RECIPE, LLAMA_8B, BOX, row_tokens=128)
    saving = estimate(RECIPE.replace(gradient_checkpointing=True), LLAMA_8B, BOX, row_tokens=128)
    assert saving.activation_bytes < whole.activation_bytes / 8
    assert saving.optimizer_bytes == whole.optimizer_bytes


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("dropout", [0.0, 0.05])
@pytest.mark.parametrize("targets", [PROJECTIONS, PROJECTIONS[:4]])
def test_the_estimate_is_what_the_engine_keeps_for_the_backward_pass(
    dtype: str, dropout: float, targets: tuple[str, ...]
) -> None:
    recipe = RECIPE.replace(
        torch_dtype=dtype, lora_dropout=dropout, lora_target_modules=targets, micro_batch_size=4
    )
    shape = ModelShape(6, 256, 704, 8, 2, 32, 512, tied=True)
    kept = _kept_bytes_a_token(recipe, shape, row_tokens=64)
    assert Footprint(recipe, shape, "cpu", 64).saved_bytes_a_token == pytest.approx(kept, rel=0.1)


@pytest.mark.parametrize(
    ("change", "row_tokens"),
    [({}, 600), ({"lora_layers": (4, 5)}, 64), ({"gradient_checkpointing": True}, 64)],
)
@pytest.mark.parametrize("has_qk_norm", [False, True])
def test_long_rows_upper_layers_and_normalised_queries_keep_what_is_estimated(
    change: dict[str, Any], row_tokens: int, has_qk_norm: bool
) -> None:
    recipe = RECIPE.replace(lora_dropout=0.0, micro_batch_size=2, **change)
    shape = ModelShape(6, 256, 704, 8, 2, 32, 512, tied=True, has_qk_norm=has_qk_norm)
    kept = _kept_bytes_a_token(recipe, shape, row_tokens=row_tokens)
    saved = Footprint(recipe, shape, "cpu", row_tokens).saved_bytes_a_token
    if recipe.gradient_checkpointing:
        # The layer that is computed again is not there yet after the forward pass.
        saved -= Footprint(recipe, shape, "cpu", row_tokens).layer_bytes_a_token
    assert saved == pytest.approx(kept, rel=0.15)


def _kept_bytes_a_token(recipe: TrainRecipe, shape: ModelShape, *, row_tokens: int) -> float:
    """Run one forward pass of the engine and weigh every tensor that autograd holds on to."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tools.engine.attention import PACKED_ATTENTION, pack_documents, register_packed_attention
    from tools.engine.lora import AdapterStack, LoraShape, Span
    from tools.engine.norms import fuse_norms
    from tools.engine.recompute import recomputed

    register_packed_attention()
    kind = transformers.Qwen3Config if shape.has_qk_norm else transformers.LlamaConfig
    config = kind(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        num_hidden_layers=shape.n_layers,
        vocab_size=shape.vocab,
        attn_implementation=PACKED_ATTENTION,
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, recipe.torch_dtype))
    stack = AdapterStack(model)
    fuse_norms(model)
    adapter = stack.new_adapter("a", LoraShape.of(recipe), device=torch.device("cpu"))
    adapter.initialise(0)
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), adapter.flat)}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    n_rows = rows_per_pass(recipe, row_tokens)
    n_tokens = n_rows * row_tokens
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        stack.placed([Span(adapter, 0, n_tokens)], dim=1),
        recomputed(model.model.layers, [adapter]) if recipe.gradient_checkpointing else nullcontext(),
    ):
        model.model(
            input_ids=torch.randint(0, shape.vocab, (1, n_tokens)),
            position_ids=torch.arange(row_tokens).repeat(n_rows)[None],
            documents=pack_documents([row_tokens] * n_rows),
            use_cache=False,
        )
    return sum(storage.nbytes() for storage in kept.values()) / n_tokens


def test_a_large_model_needs_what_is_known_of_it() -> None:
    h200 = Hardware("cuda", "NVIDIA H200", 140 * GIB, 139 * GIB, 16, bf16=True)
    fit = estimate(RECIPE, LLAMA_8B, h200, row_tokens=2048)
    assert fit.weights_bytes == pytest.approx(16.06e9, rel=0.01)
    assert fit.fits
    laptop = replace(BOX, memory_available_bytes=8 * GIB)
    tight = estimate(RECIPE, LLAMA_8B, laptop, row_tokens=2048)
    assert "choose a smaller base_model" in tight.reasons[-1]


def test_a_recipe_that_does_not_fit_is_refused_with_what_to_change() -> None:
    recipe = RECIPE.replace(micro_batch_size=16)
    with pytest.raises(HardwareError) as caught:
        check_fit(recipe, hardware=BOX, shape=LLAMA_8B, row_tokens=4096, members=4)
    text = str(caught.value)
    for said in ("a box", "GiB", "lower micro_batch_size (16)", "fewer than 4", "lora_dropout"):
        assert said in text


def test_shared_memory_keeps_a_larger_reserve() -> None:
    spark = replace(BOX, kind="cuda", unified=True)
    apart = replace(BOX, kind="cuda")
    shared, own = (estimate(RECIPE, SMOL, box, row_tokens=128).available_bytes for box in (spark, apart))
    assert shared < own < BOX.memory_available_bytes


def test_a_base_that_is_not_on_this_disk_is_unknown() -> None:
    assert check_fit(RECIPE.replace(base_model="someone/some-model"), hardware=BOX) is None


def _row(text: str) -> str:
    return json.dumps(
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "x"}]}
    )


def test_the_longest_row_of_the_data_decides(tmp_path: Path) -> None:
    rows = tmp_path / "train.jsonl"
    recipe = RECIPE.replace(dataset_jsonl=str(rows), global_batch_size=2)

    def activation() -> int:
        fit = check_fit(recipe, hardware=BOX, shape=SMOL)
        assert fit is not None
        return fit.activation_bytes

    rows.write_text(_row("short") + "\n", encoding="utf-8")
    short = activation()
    rows.write_text("\n".join([_row("short"), "", _row("long " * 400), _row("short")]), encoding="utf-8")
    assert activation() > 5 * short
    rows.write_text("{torn", encoding="utf-8")
    roomy = replace(BOX, memory_available_bytes=500 * GIB)
    unknown = check_fit(recipe, hardware=roomy, shape=SMOL)
    whole = check_fit(recipe, hardware=roomy, shape=SMOL, row_tokens=recipe.seq_length)
    assert unknown == whole


def test_an_evaluation_that_takes_more_than_training_decides() -> None:
    asked = Answering(rows=400, prompt_tokens=500, new_tokens=100, shared_tokens=400)
    plain = estimate(RECIPE, SMOL, BOX, row_tokens=64)
    fit = estimate(RECIPE, SMOL, BOX, row_tokens=64, answering=asked)
    cache = 2 * 30 * (400 + 400 * 200) * 192 * 2
    assert cache < fit.answering_bytes
    assert fit.total_bytes > plain.total_bytes
    assert "answering" in fit.describe()
    few = replace(asked, rows=1)
    assert estimate(RECIPE, SMOL, BOX, row_tokens=512, answering=few).total_bytes == (
        estimate(RECIPE, SMOL, BOX, row_tokens=512).total_bytes
    )
    small = replace(BOX, memory_available_bytes=2 * GIB)
    tight = estimate(RECIPE, SMOL, small, row_tokens=64, answering=replace(asked, rows=4000))
    assert any("eval_batch_size" in reason for reason in tight.reasons)
