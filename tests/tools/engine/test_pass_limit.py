from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tools.engine.conftest import write_rows
from tests.tools.engine.test_trainer import assert_same_training, mixed_members
from tools.engine.base import LoadedBase
from tools.engine.memory import is_out_of_memory
from tools.engine.spec import MidEval, ScorerChoice, StackMember
from tools.engine.trainer import train_stack

Make = Callable[..., StackMember]
ROOT = Path(__file__).resolve().parents[3]
WIDE = 10**6


def ask_too_much() -> None:
    """Have torch's own allocator refuse."""
    torch.empty(2**50)


@contextlib.contextmanager
def memory_for(base: LoadedBase, n_tokens: int, where: str) -> Iterator[list[int]]:
    """Run out of memory in passes of more than n_tokens; yields the lengths of those that did.

    In the backward pass it happens in the first layer, when the last has its gradients already.
    """
    refused: list[int] = []

    def look(_module: Any, tensors: Any, *_: Any) -> None:
        length = tensors[0].shape[1]
        if length > n_tokens and torch.is_grad_enabled():
            refused.append(length)
            ask_too_much()

    def look_back(_module: Any, grads: Any) -> None:
        length = grads[0].shape[1]
        if length > n_tokens:
            refused.append(length)
            ask_too_much()

    layer = base.decoder.layers[1 if where == "forward" else 0]
    hook = (
        layer.register_forward_pre_hook(look)
        if where == "forward"
        else layer.mlp.register_full_backward_pre_hook(look_back)
    )
    try:
        yield refused
    finally:
        hook.remove()


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_stack_that_runs_out_of_memory_ends_as_one_that_never_did(
    base: LoadedBase, member: Make, tmp_path: Path, where: str
) -> None:
    tight = mixed_members(member, "tight", tmp_path)
    # The widest of all: its own micro-batch has to be cut, dropout and all.
    dropped = {"lora_dropout": 0.3, "global_batch_size": 10, "micro_batch_size": 5, "seed": 2}
    tight.append(member("rows", run="tight", **dropped))
    with memory_for(base, 150, where) as refused:
        together = train_stack(base, tight, stack_tokens=WIDE)
    # Halved until passes fit, and not tried again.
    assert 2 <= len(refused) <= 8
    assert refused == sorted(refused, reverse=True)
    alone = [*mixed_members(member, "alone", tmp_path), member("rows", run="alone", **dropped)]
    for one, other, result in zip(tight, alone, together, strict=True):
        (single,) = train_stack(base, [other])
        assert result.status == single.status == "done"
        assert_same_training(one, other, result, single)


def test_a_row_that_does_not_fit_by_itself_fails_its_member_alone(base: LoadedBase, member: Make) -> None:
    rows = write_rows(Path(member("x").run_dir).parent / "long.jsonl", 3)
    text = rows.read_text().replace("take off", "take off " + "and on " * 60)
    rows.write_text(text)
    calm, long = member("calm"), member("long", dataset_jsonl=str(rows), seq_length=2048)
    with memory_for(base, 260, "backward"):
        ended, failed = train_stack(base, [calm, long], stack_tokens=WIDE)
    assert (ended.status, failed.status) == ("done", "failed")
    assert "row r0-0" in str(failed.error)
    assert "does not fit" in str(failed.error)
    assert "gradient_checkpointing" in str(failed.error)
    twin = member("calm", run="twin")
    (single,) = train_stack(base, [twin])
    assert_same_training(calm, twin, ended, single)


def test_an_error_of_one_member_in_a_shared_pass_is_its_own(base: LoadedBase, member: Make) -> None:
    calm, broken = member("calm", run="pair"), member("broken", run="pair", lora_target_modules=("up_proj",))
    layer = base.decoder.layers[0].mlp

    def trip(_module: Any, _inputs: Any) -> None:
        placement = base.stack.placement
        assert placement is not None
        if any(span.adapter.name == "broken" for span in placement.spans):
            raise ValueError("tripped")

    hook = layer.register_forward_pre_hook(trip)
    ended, failed = train_stack(base, [calm, broken], stack_tokens=WIDE)
    hook.remove()
    assert (ended.status, failed.status) == ("done", "failed")
    assert "tripped" in str(failed.error)
    twin = member("calm", run="twin")
    (single,) = train_stack(base, [twin])
    assert_same_training(calm, twin, ended, single)


def test_answering_takes_fewer_rows_at_once_when_memory_runs_out(
    base: LoadedBase, member: Make, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "dev.jsonl", 8)
    seen: list[int] = []

    def look(_module: Any, inputs: Any) -> None:
        if not torch.is_grad_enabled():
            seen.append(inputs[0].shape[0])
            if seen[-1] > 3:
                ask_too_much()

    hook = base.decoder.layers[1].register_forward_pre_hook(look)
    plan = MidEval(str(rows), 8, ScorerChoice("json"), max_new_tokens=4)
    (result,) = train_stack(base, [member("t", eval_interval=3)], mid_eval=plan)
    hook.remove()
    assert (result.status, result.best_score) == ("done", 0.0)
    assert [n for n in seen if n > 3] == [8, 4]


def test_a_member_that_finds_no_room_waits_for_one_that_leaves(base: LoadedBase, member: Make) -> None:
    make_adapter = base.stack.new_adapter
    refused: list[str] = []

    def scarce(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "late" and not refused:
            refused.append(name)
            ask_too_much()
        return make_adapter(name, *args, **kwargs)

    base.stack.new_adapter = scarce  # type: ignore[method-assign]
    results = train_stack(base, [member("first", max_steps=2), member("late")], stack_tokens=WIDE)
    assert [result.status for result in results] == ["done", "done"]
    assert refused == ["late"]


def test_a_member_that_waits_for_the_last_seat_is_trained(base: LoadedBase, member: Make) -> None:
    results = train_stack(base, [member("a"), member("b")], stack_tokens=300)
    assert [result.status for result in results] == ["done", "done"]


@pytest.mark.parametrize(
    "err",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory"),
    ],
)
def test_what_says_that_memory_is_out_is_known(err: Exception) -> None:
    assert is_out_of_memory(err)
    assert not is_out_of_memory(ValueError(str(err) or "size"))


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux's")
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_process_with_little_memory_trains_the_same_as_one_with_plenty(tmp_path: Path, device: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    # Every large block straight from the system and back to it, so that the limit is felt.
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    driver = Path(__file__).with_name("memory_driver.py")
    done = subprocess.run(
        [sys.executable, str(driver), str(tmp_path), device], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "ran out of memory" in done.stderr
    assert done.stdout.split() == ["done", "done"]
