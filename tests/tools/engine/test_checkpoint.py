from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_model
from tests.tools.engine.conftest import adapter_tensors, metrics_of, write_rows
from tools.engine.adapter_files import load_adapter
from tools.engine.base import LoadedBase
from tools.engine.checkpoint import BEST_FILE, LATEST_FILE, saved_steps
from tools.engine.lora import Span
from tools.engine.spec import StackMember
from tools.engine.trainer import train_stack
from tools.errors import ModelError
from tools.lock import hold_lock

Make = Callable[..., StackMember]
ROOT = Path(__file__).resolve().parents[3]


def stop_after(passes: int) -> Callable[[], bool]:
    left = iter(range(passes))
    return lambda: next(left, None) is None


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize(
    "changes", [{}, {"use_rslora": True}, {"lora_layers": (1,), "lora_target_modules": ("up_proj", "q_proj")}]
)
def test_peft_loads_a_checkpoint_and_gives_the_same_logits(
    base: LoadedBase, member: Make, changes: dict[str, object]
) -> None:
    from peft import PeftModel

    (result,) = train_stack(base, [member("t", **changes)])
    assert result.adapter_dir is not None
    ids = torch.tensor([[5, 9, 200, 31, 7]])
    plain = PeftModel.from_pretrained(tiny_model(), result.adapter_dir).eval()
    adapter = load_adapter(base.stack, result.adapter_dir, device=base.device, dtype=torch.float32)
    with torch.no_grad(), base.stack.placed([Span(adapter, 0, 1)], dim=0):
        mine = base.model(ids).logits
    with torch.no_grad():
        torch.testing.assert_close(mine, plain(ids).logits)
        assert not torch.allclose(mine, base.model(ids).logits)


def test_a_stopped_run_goes_on_bit_for_bit(base: LoadedBase, member: Make) -> None:
    whole, parts = (
        member("t", run=run, lora_dropout=0.2, micro_batch_size=2, save_interval=4)
        for run in ("whole", "parts")
    )
    (expected,) = train_stack(base, [whole])
    for passes in (1, 3, 4, 2):
        (result,) = train_stack(base, [parts], should_stop=stop_after(passes))
        assert result.status == "stopped"
    (result,) = train_stack(base, [parts])
    assert result.status == "done"
    assert expected.adapter_dir is not None
    assert result.adapter_dir is not None
    twins = adapter_tensors(result.adapter_dir)
    for key, tensor in adapter_tensors(expected.adapter_dir).items():
        assert torch.equal(tensor, twins[key])
    assert [line["loss"] for line in metrics_of(whole)] == [line["loss"] for line in metrics_of(parts)]
    assert result.tokens == expected.tokens


def test_a_run_killed_at_random_moments_ends_bit_identical(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl")
    # Scores that move, so that the best checkpoint is not always the first or the last.
    (tmp_path / "scorer.py").write_text(
        "def score(expected, actual):\n    return sum(actual.encode()) % 97 / 97\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kill_driver.py")), str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 2
    for trial in ("dropped", "plain"):
        whole, killed = tmp_path / "whole" / trial, tmp_path / "killed" / trial
        trackers = [name for name in (LATEST_FILE, BEST_FILE) if (whole / name).exists()]
        assert (BEST_FILE in trackers) == (trial == "dropped")
        for name in trackers:
            step = (whole / name).read_text()
            assert (killed / name).read_text() == step
            folder = f"iter_{int(step):07d}/adapter_model.safetensors"
            assert (killed / folder).read_bytes() == (whole / folder).read_bytes()
        keep = ("step", "loss", "grad_norm", "lr", "tokens", "eval_score")
        lines = [
            [{key: line.get(key) for key in keep} for line in map(json.loads, text.splitlines())]
            for text in ((folder / "metrics.jsonl").read_text() for folder in (whole, killed))
        ]
        assert lines[0] == lines[1]
        assert not list(killed.glob(".partial*"))


def test_a_torn_checkpoint_is_passed_over(base: LoadedBase, member: Make, tmp_path: Path) -> None:
    whole, torn = (member("t", run=run, save_interval=2, max_steps=6) for run in ("whole", "torn"))
    (expected,) = train_stack(base, [whole])
    train_stack(base, [torn], should_stop=stop_after(4))
    run_dir = Path(torn.run_dir)
    assert (run_dir / LATEST_FILE).read_text() == "4\n"
    state = run_dir / "iter_0000004" / "trainer_state.pt"
    state.write_bytes(state.read_bytes()[:100])
    # Whole in looks, but no tracker ever named it.
    (run_dir / "iter_0000099").mkdir()
    (run_dir / ".partial-iter_0000006").mkdir()
    (result,) = train_stack(base, [torn])
    assert (result.status, result.final_iter) == ("done", 6)
    assert not (run_dir / ".partial-iter_0000006").exists()
    assert expected.adapter_dir is not None
    assert result.adapter_dir is not None
    twins = adapter_tensors(result.adapter_dir)
    assert all(torch.equal(x, twins[key]) for key, x in adapter_tensors(expected.adapter_dir).items())


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_adapter_that_is_torn_is_an_error(base: LoadedBase, member: Make, name: str) -> None:
    (result,) = train_stack(base, [member("t")])
    assert result.adapter_dir is not None
    path = Path(result.adapter_dir) / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load_adapter(base.stack, result.adapter_dir, device=base.device, dtype=torch.float32)


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"target_modules": "all-linear"}, "all-linear"),
        ({"target_modules": ["q_proj"]}, "fit no layer"),
        ({"r": 3}, "this base needs"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(
    base: LoadedBase, member: Make, changes: dict[str, object], hint: str
) -> None:
    (result,) = train_stack(base, [member("t")])
    assert result.adapter_dir is not None
    path = Path(result.adapter_dir) / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ModelError, match=hint):
        load_adapter(base.stack, result.adapter_dir, device=base.device, dtype=torch.float32)


def test_old_checkpoints_go_and_the_recent_ones_stay(base: LoadedBase, member: Make) -> None:
    some, every = (
        member("some", save_interval=1, most_recent_k=2),
        member("all", save_interval=1, most_recent_k=-1),
    )
    train_stack(base, [some, every])
    assert sorted(saved_steps(Path(some.run_dir))) == [5, 6]
    assert sorted(saved_steps(Path(every.run_dir))) == [1, 2, 3, 4, 5, 6]


def test_checkpoints_of_another_recipe_are_not_gone_on_from(base: LoadedBase, member: Make) -> None:
    one = member("t")
    train_stack(base, [one])
    other = StackMember("t", one.recipe.replace(seed=2), one.run_dir)
    (result,) = train_stack(base, [other])
    assert result.status == "failed"
    assert "another recipe" in str(result.error)


def test_a_run_folder_serves_one_trainer_at_a_time(
    base: LoadedBase, member: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tools.engine.member as member_module

    monkeypatch.setattr(member_module, "_LOCK_TIMEOUT_S", 0.0)
    one = member("t")
    with hold_lock(Path(one.run_dir) / ".lock", timeout_s=0):
        (result,) = train_stack(base, [one])
    assert result.status == "failed"
    assert "still held" in str(result.error)
    (result,) = train_stack(base, [one])
    assert result.status == "done"


def test_a_finished_run_is_not_trained_again(base: LoadedBase, member: Make) -> None:
    one = member("t")
    (first,) = train_stack(base, [one])
    before = metrics_of(one)
    (again,) = train_stack(base, [one])
    assert (again.status, again.steps, again.adapter_dir) == ("done", first.steps, first.adapter_dir)
    assert metrics_of(one) == before


def test_a_full_disk_fails_the_member_and_leaves_the_last_checkpoint(
    base: LoadedBase, member: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tools.engine.checkpoint as checkpoint

    one, calm = member("t", save_interval=2), member("calm")
    save = torch.save

    def full(state: dict[str, object], path: Path) -> None:
        if state["step"] == 4 and "/t/" in str(path):
            raise OSError(28, "No space left on device")
        save(state, path)

    monkeypatch.setattr(checkpoint.torch, "save", full)
    results = train_stack(base, [one, calm])
    assert [result.status for result in results] == ["failed", "done"]
    assert "No space left" in str(results[0].error)
    assert (Path(one.run_dir) / LATEST_FILE).read_text() == "2\n"
    monkeypatch.undo()
    (result,) = train_stack(base, [one])
    assert result.status == "done"
