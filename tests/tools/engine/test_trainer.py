from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tools.engine.conftest import adapter_tensors, metrics_of, write_rows
from tools.engine import trainer
from tools.engine.base import LoadedBase
from tools.engine.batches import Stream
from tools.engine.results import MemberResult
from tools.engine.spec import StackMember
from tools.engine.trainer import train_stack

Make = Callable[..., StackMember]
ALL_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WIDE = 10**6


def mixed_members(make: Make, run: str, tmp_path: Path) -> list[StackMember]:
    other = str(write_rows(tmp_path / "other.jsonl", 7, seed=3))
    return [
        make("plain", run=run),
        make("wide", run=run, lora_rank=8, lora_alpha=8, lora_target_modules=ALL_TARGETS, seed=9),
        make("slow", run=run, learning_rate=1e-3, lr_schedule="linear", max_steps=9, lr_warmup_fraction=0.3),
        make(
            "upper", run=run, lora_layers=(1,), lora_target_modules=("down_proj", "v_proj"), use_rslora=True
        ),
        make(
            "other", run=run, dataset_jsonl=other, global_batch_size=6, micro_batch_size=3, weight_decay=0.1
        ),
        make("short", run=run, max_steps=2, lr_schedule="constant", max_grad_norm=0.1),
        make("dropped", run=run, lora_dropout=0.3, epochs=2.0, seed=4),
    ]


def assert_same_training(one: StackMember, other: StackMember, a: MemberResult, b: MemberResult) -> None:
    lines, others = metrics_of(one), metrics_of(other)
    assert [line["step"] for line in lines] == [line["step"] for line in others]
    for line, twin in zip(lines, others, strict=True):
        assert line["loss"] == pytest.approx(twin["loss"], rel=1e-5)
        assert line["grad_norm"] == pytest.approx(twin["grad_norm"], rel=1e-4)
        assert line["lr"] == twin["lr"]
        assert line["tokens"] == twin["tokens"]
    assert a.adapter_dir is not None
    assert b.adapter_dir is not None
    tensors, twins = adapter_tensors(a.adapter_dir), adapter_tensors(b.adapter_dir)
    assert tensors.keys() == twins.keys()
    for key, tensor in tensors.items():
        gap = torch.linalg.vector_norm(tensor - twins[key])
        assert gap <= 1e-5 * torch.linalg.vector_norm(twins[key]), key


def test_an_adapter_of_a_stack_equals_the_same_recipe_trained_alone(
    any_base: LoadedBase, member: Make, tmp_path: Path
) -> None:
    stacked = mixed_members(member, "stacked", tmp_path)
    together = train_stack(any_base, stacked, stack_tokens=WIDE)
    alone = mixed_members(member, "alone", tmp_path)
    for one, other, result in zip(stacked, alone, together, strict=True):
        (single,) = train_stack(any_base, [other])
        assert result.status == single.status == "done"
        assert_same_training(one, other, result, single)


def test_a_narrow_stack_trains_the_same_as_a_wide_one(base: LoadedBase, member: Make, tmp_path: Path) -> None:
    wide = mixed_members(member, "wide", tmp_path)
    narrow = mixed_members(member, "narrow", tmp_path)
    results = train_stack(base, wide, stack_tokens=WIDE)
    twins = train_stack(base, narrow, stack_tokens=600)
    for one, other, a, b in zip(wide, narrow, results, twins, strict=True):
        assert_same_training(one, other, a, b)


def test_micro_batches_do_not_change_the_result(base: LoadedBase, member: Make) -> None:
    whole = member("whole", global_batch_size=6, micro_batch_size=6)
    parts = member("parts", global_batch_size=6, micro_batch_size=2)
    single = member("single", global_batch_size=6, micro_batch_size=1, packing=False)
    a, b, c = (train_stack(base, [one])[0] for one in (whole, parts, single))
    assert_same_training(whole, parts, a, b)
    assert_same_training(whole, single, a, c)


def test_a_member_that_diverges_leaves_alone(base: LoadedBase, member: Make) -> None:
    calm, wild = member("calm", run="pair"), member("wild", run="pair", learning_rate=1.0, max_grad_norm=0.0)
    broken = member("broken", run="pair")
    seats = base.stack

    def poison(*, after: int) -> Callable[[], bool]:
        passes = 0

        def look() -> bool:
            nonlocal passes
            passes += 1
            if passes == after:
                for adapter in adapters:
                    if adapter.name == "broken":
                        adapter.flat.data.fill_(float("nan"))
            return False

        return look

    adapters = []
    make_adapter = seats.new_adapter

    def watched(*args: object, **kwargs: object) -> object:
        adapters.append(make_adapter(*args, **kwargs))  # type: ignore[arg-type]
        return adapters[-1]

    seats.new_adapter = watched  # type: ignore[method-assign,assignment]
    results = train_stack(base, [calm, broken, wild], stack_tokens=WIDE, should_stop=poison(after=3))
    by_id = {result.trial_id: result for result in results}
    assert by_id["broken"].status == "failed"
    assert by_id["broken"].steps == 2
    assert "not finite" in str(by_id["broken"].error)
    assert by_id["calm"].status == by_id["wild"].status == "done"
    twin = member("calm", run="twin")
    (single,) = train_stack(base, [twin])
    assert_same_training(calm, twin, by_id["calm"], single)


def test_a_member_that_cannot_start_does_not_sink_the_others(base: LoadedBase, member: Make) -> None:
    results = train_stack(
        base,
        [
            member("long", seq_length=5),
            member("missing", dataset_jsonl="/nowhere/rows.jsonl"),
            member("aim", lora_target_modules=("q_proj", "query_key_value")),
            member("layer", lora_layers=(2,)),
            member("good"),
        ],
    )
    assert [result.status for result in results] == ["failed"] * 4 + ["done"]
    errors = [str(result.error) for result in results]
    assert "r0-0" in errors[0]
    assert "seq_length=5" in errors[0]
    assert "/nowhere/rows.jsonl" in errors[1]
    assert "query_key_value" in errors[2]
    assert "down_proj" in errors[2]
    assert "layers 0 to 1" in errors[3]


def test_loss_falls(base: LoadedBase, member: Make) -> None:
    one = member("t", max_steps=60, learning_rate=2e-2, lora_target_modules=ALL_TARGETS)
    train_stack(base, [one])
    losses = [line["loss"] for line in metrics_of(one)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_smoke_run_takes_the_smoke_steps(base: LoadedBase, member: Make) -> None:
    one = member("t", epochs=5.0)
    (result,) = train_stack(base, [one], mode="smoke")
    assert (result.status, result.steps, result.total_steps) == ("done", 2, 2)


def test_dora_is_refused_never_trained_as_plain_lora(base: LoadedBase, member: Make) -> None:
    one = member("t")
    dora = StackMember("t", one.recipe.replace(use_dora=True), one.run_dir)
    (result,) = train_stack(base, [dora])
    assert result.status == "failed"
    assert "use_dora" in str(result.error)


def test_the_gradient_of_a_whole_step_is_clipped_as_torch_clips_it(base: LoadedBase, member: Make) -> None:
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    norms: list[float] = []

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        (flat,) = optimizer.param_groups[0]["params"]
        norms.append(float(torch.linalg.vector_norm(flat.grad)))

    clipped = member("t", max_grad_norm=0.5, global_batch_size=6, micro_batch_size=2)
    handle = register_optimizer_step_pre_hook(look)
    train_stack(base, [clipped])
    handle.remove()
    seen = [line["grad_norm"] for line in metrics_of(clipped)]
    assert max(seen) > 0.5
    assert norms == pytest.approx([min(norm, 0.5) for norm in seen], rel=1e-4)


def test_what_was_laid_out_while_the_device_worked_is_what_is_trained_next(
    base: LoadedBase, member: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid: list[Stream] = []
    trained: list[Stream] = []
    lay_out, forward_backward = trainer.lay_out, trainer.forward_backward

    def note_laid(parts: Any, device: torch.device) -> Stream:
        laid.append(lay_out(parts, device))
        return laid[-1]

    def note_trained(where: LoadedBase, adapters: Any, stream: Stream, **more: Any) -> list[torch.Tensor]:
        trained.append(stream)
        return forward_backward(where, adapters, stream, **more)

    usual = mixed_members(member, "usual", tmp_path)
    results = train_stack(base, usual, stack_tokens=WIDE)
    monkeypatch.setattr(trainer, "_works_by_itself", lambda _device: True)
    monkeypatch.setattr(trainer, "lay_out", note_laid)
    monkeypatch.setattr(trainer, "forward_backward", note_trained)
    ahead = mixed_members(member, "ahead", tmp_path)
    for one, other, result, twin in zip(
        usual, ahead, results, train_stack(base, ahead, stack_tokens=WIDE), strict=True
    ):
        assert_same_training(one, other, result, twin)
        assert all(
            torch.equal(tensor, adapter_tensors(str(twin.adapter_dir))[key])
            for key, tensor in adapter_tensors(str(result.adapter_dir)).items()
        )
    # None but the first was laid out when it was needed, and none was laid out in vain: who leaves
    # after its last step is known before.
    assert [id(stream) for stream in laid] == [id(stream) for stream in trained]
    assert len(trained) == 9


def test_a_stream_laid_out_for_one_who_left_is_not_trained_by_the_others(
    base: LoadedBase, member: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "_works_by_itself", lambda _device: True)
    members = [member("steady", max_steps=5), member("wild", max_steps=5, learning_rate=1e30, seed=2)]
    results = train_stack(base, members, stack_tokens=WIDE)
    assert [result.status for result in results] == ["done", "failed"]
    twin = member("steady", run="alone", max_steps=5)
    (alone,) = train_stack(base, [twin])
    assert_same_training(members[0], twin, results[0], alone)
