from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import tiny_model, tiny_tokenizer
from tests.tools.engine.conftest import adapter_tensors, metrics_of
from tools.engine.base import load_base, wrap_base
from tools.engine.keeper import BaseKeeper
from tools.engine.quantization import loading_options
from tools.engine.spec import StackMember
from tools.engine.trainer import train_stack
from tools.errors import MissingExtraError, ModelError, RecipeError
from tools.merge_worker import merge_adapter

Make = Callable[..., StackMember]
CPU = torch.device("cpu")
peft_warns = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(not HAS_BITSANDBYTES, reason="the extra `quant` is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tiny_model(hidden_size=64, intermediate_size=128, head_dim=16)
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_base_in_full_precision_needs_nothing_more() -> None:
    assert loading_options("none", "base", torch.bfloat16, CPU) == {}


def test_what_cannot_be_quantised_is_refused_with_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"not on mps; set it to none"):
        loading_options("nf4", "base", torch.bfloat16, torch.device("mps"))
    with pytest.raises(ModelError, match=r"\.gguf file"):
        loading_options("nf4", "base.gguf", torch.bfloat16, CPU)


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else real(name, *rest)
    )
    with pytest.raises(MissingExtraError, match=r"bitsandbytes.*bakehouse\[quant\]"):
        load_base("anything", quantization="nf4", device=CPU)


@pytest.mark.parametrize(
    "changes", [{"base_model": "b.gguf"}, {"backend": "unsloth"}, {"quantization": "q8"}]
)
def test_a_recipe_that_no_lane_can_quantise_is_refused(member: Make, changes: dict[str, Any]) -> None:
    recipe = member("t").recipe.replace(**{"quantization": "nf4", **changes})
    with pytest.raises(RecipeError, match="quantization"):
        recipe.validate()


def test_recipes_that_leave_the_field_alone_keep_their_digest(member: Make) -> None:
    recipe = member("t").recipe
    assert recipe.digest != recipe.replace(quantization="nf4").digest
    older = {key: value for key, value in recipe.to_dict().items() if key != "quantization"}
    assert type(recipe).from_dict(older).digest == recipe.digest


def unpacked(model: Any) -> Any:
    """Return the model with each 4-bit layer replaced by a plain one of the same, rounded weights."""
    import bitsandbytes as bnb

    plain = copy.deepcopy(model)
    for path, module in list(model.named_modules()):
        if isinstance(module, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            layer = torch.nn.Linear(module.in_features, module.out_features, bias=False)
            layer.weight = torch.nn.Parameter(weight.float(), requires_grad=False)
            parent, _, name = path.rpartition(".")
            setattr(plain.get_submodule(parent), name, layer)
    return plain


def check_training(member: Make, folder: Path, tmp_path: Path, device: torch.device) -> None:
    """Train on a 4-bit base and on its weights unpacked: the losses are the same."""
    base = load_base(str(folder), "float32", quantization="nf4", device=device)
    layer = base.model.get_submodule("model.layers.0.mlp.up_proj")
    assert layer.weight.dtype == torch.uint8
    assert layer.weight.numel() == 64 * 128 // 2
    twin_model = unpacked(base.model).to(device)
    settings: dict[str, Any] = {"base_model": str(folder), "quantization": "nf4", "lora_dropout": 0.1}
    packed = [
        member("plain", run="packed", **settings),
        member("again", run="packed", gradient_checkpointing=True, **settings),
    ]
    results = train_stack(base, packed, stack_tokens=10**6)
    twin_base = wrap_base(twin_model, tiny_tokenizer(), name=str(folder))
    twin = member("plain", run="twin", **settings)
    train_stack(twin_base, [twin])
    losses = [line["loss"] for line in metrics_of(twin)]
    assert [result.status for result in results] == ["done", "done"]
    for one in packed:
        assert [line["loss"] for line in metrics_of(one)] == pytest.approx(losses, rel=1e-4)
    assert losses[-1] < losses[0]

    # What is merged is the base as published, and not what 4 bits made of it.
    adapter = Path(str(results[0].adapter_dir))
    merge_adapter(str(folder), adapter, tmp_path / "merged")
    merged = load_base(str(tmp_path / "merged"), "float32", device=CPU).model
    path = "model.layers.1.self_attn.q_proj"
    tensors = adapter_tensors(adapter)
    a, b = (tensors[f"base_model.model.{path}.lora_{letter}.weight"] for letter in "AB")
    published = tiny_model(hidden_size=64, intermediate_size=128, head_dim=16).get_submodule(path).weight
    torch.testing.assert_close(
        merged.get_submodule(path).weight, published + 2.0 * b @ a, rtol=0.01, atol=0.01
    )


@needs_bitsandbytes
@peft_warns
def test_a_base_in_4_bits_trains_on_a_cpu_as_its_unpacked_weights_do(
    member: Make, folder: Path, tmp_path: Path
) -> None:
    check_training(member, folder, tmp_path, CPU)


@needs_bitsandbytes
@peft_warns
@pytest.mark.gpu
def test_a_base_in_4_bits_trains_on_cuda_as_its_unpacked_weights_do(
    member: Make, folder: Path, tmp_path: Path
) -> None:
    check_training(member, folder, tmp_path, torch.device("cuda"))


@needs_bitsandbytes
def test_a_resident_base_in_4_bits_is_another_than_the_one_in_full(folder: Path) -> None:
    keeper = BaseKeeper()
    full = keeper(str(folder), "float32")
    packed = keeper(str(folder), "float32", "nf4")
    assert packed.model is not full.model
    assert keeper(str(folder), "float32", "nf4").model is packed.model
