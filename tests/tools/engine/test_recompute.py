from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from tests.tools.engine.conftest import adapter_tensors, metrics_of
from tools.engine.base import LoadedBase
from tools.engine.batches import RowEncoder, StreamPart, lay_out
from tools.engine.lora import LoraShape
from tools.engine.passes import forward_backward
from tools.engine.spec import StackMember
from tools.engine.trainer import train_stack

Make = Callable[..., StackMember]
ALL_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WIDE = 10**6


def members(make: Make, run: str, *, recompute: bool) -> list[StackMember]:
    shared = {"run": run, "gradient_checkpointing": recompute}
    return [
        make("plain", **shared),
        make("dropped", lora_dropout=0.3, lora_target_modules=ALL_TARGETS, micro_batch_size=2, **shared),
        make("upper", lora_layers=(1,), lora_dropout=0.1, seed=5, **shared),
    ]


def test_recomputed_layers_give_the_same_losses_and_tensors_bit_for_bit(
    any_base: LoadedBase, member: Make
) -> None:
    kept = members(member, "kept", recompute=False)
    again = members(member, "again", recompute=True)
    results = train_stack(any_base, kept, stack_tokens=WIDE)
    twins = train_stack(any_base, again, stack_tokens=WIDE)
    for one, other, a, b in zip(kept, again, results, twins, strict=True):
        lines, others = metrics_of(one), metrics_of(other)
        for key in ("loss", "grad_norm"):
            assert [line[key] for line in lines] == [line[key] for line in others]
        assert a.adapter_dir is not None
        assert b.adapter_dir is not None
        tensors, twin_tensors = adapter_tensors(a.adapter_dir), adapter_tensors(b.adapter_dir)
        assert all(torch.equal(tensor, twin_tensors[key]) for key, tensor in tensors.items())


def test_one_member_that_asks_for_it_changes_nothing_for_the_others(base: LoadedBase, member: Make) -> None:
    alone = member("t", run="alone", lora_dropout=0.2)
    beside = member("t", run="pair", lora_dropout=0.2)
    saver = member("saver", run="pair", gradient_checkpointing=True, lora_dropout=0.4)
    train_stack(base, [alone])
    train_stack(base, [beside, saver], stack_tokens=WIDE)
    losses = [line["loss"] for line in metrics_of(alone)]
    assert [line["loss"] for line in metrics_of(beside)] == pytest.approx(losses, rel=1e-5)


def test_what_is_kept_for_the_backward_pass_is_a_fraction(base: LoadedBase, member: Make) -> None:
    recipe = member("t", lora_target_modules=ALL_TARGETS, lora_dropout=0.2).recipe
    rows = RowEncoder(base.tokenizer).encode(recipe.dataset_jsonl, None).rows
    adapter = base.stack.new_adapter("t", LoraShape.of(recipe), device=base.device)
    adapter.initialise(1)
    kept = [_kept_bytes(base, adapter, rows, recompute=recompute) for recompute in (False, True)]
    assert kept[1] < kept[0] / 4


def _kept_bytes(base: LoadedBase, adapter: object, rows: Sequence[object], *, recompute: bool) -> int:
    """Count what one pass leaves for its backward outside of the layers that are computed again."""
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    stream = lay_out([StreamPart(tuple(rows), 0.1, shares_prefix=False)], base.device)  # type: ignore[arg-type]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward_backward(base, [adapter], stream, recompute=recompute)  # type: ignore[list-item]
    weights = {parameter.untyped_storage().data_ptr() for parameter in base.model.parameters()}
    return sum(size for pointer, size in found.items() if pointer not in weights)


def test_a_layer_computes_as_before_once_the_pass_is_over(base: LoadedBase, member: Make) -> None:
    forwards = [layer.forward for layer in base.decoder.layers]
    train_stack(base, [member("t", gradient_checkpointing=True)])
    assert [layer.forward for layer in base.decoder.layers] == forwards
