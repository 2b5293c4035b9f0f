"""Runs of real processes: an executable called docker runs the trainer's script."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fake_docker import FakeDocker
from tools.child import child_environment, started_at
from tools.errors import TrainError
from tools.recipe import TrainRecipe
from tools.train import TrainResult, run, sft_progress_dir

# Saves iteration 5, waits until the test opens the gate, saves the last one.
TRAINER = """\
echo $$ > "$RUN_DIR/test.pid"
env | sort > "$RUN_DIR/test.env"
save() { mkdir -p "$RUN_DIR/iter_$1"; echo "$2" > "$RUN_DIR/latest_checkpointed_iteration.txt"; }
save 0000005 5
trap 'touch "$RUN_DIR/asked-to-end"; exit 143' TERM
while [ ! -e "$GATE" ]; do sleep 0.02; done
save 0000010 10
"""


def _until(holds: Callable[[], object], limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "the awaited event did not come"
        time.sleep(0.02)


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> TrainRecipe:
    monkeypatch.delenv("FK_SFT_PROGRESS_DIR", raising=False)
    docker = FakeDocker(tmp_path / "docker", "ps-train")
    monkeypatch.setenv("PATH", f"{docker.bin}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "rows.jsonl").write_text("{}\n" * 20, encoding="utf-8")
    (tmp_path / "train.sh").write_text(TRAINER, encoding="utf-8")
    return TrainRecipe(
        base_model="some/model",
        dataset_jsonl=str(tmp_path / "rows.jsonl"),
        output_dir=str(tmp_path / "out put"),
        backend="unsloth",
        max_steps=10,
        smoke_steps=5,
        save_interval=5,
        extra_env={"TRAIN_SCRIPT": str(tmp_path / "train.sh"), "GATE": str(tmp_path / "gate")},
    )


def _open_gate(recipe: TrainRecipe) -> None:
    Path(recipe.extra_env["GATE"]).touch()


def _beat_files(recipe: TrainRecipe) -> list[Path]:
    return sorted(sft_progress_dir(recipe).glob("sft-progress-*.json"))


def _beats(recipe: TrainRecipe) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in _beat_files(recipe)]


def _write_checkpoints(recipe: TrainRecipe, *numbers: int, tracker: int | None = None) -> Callable[..., int]:
    def runner(_: list[str]) -> int:
        for number in numbers:
            (recipe.run_dir("full") / f"iter_{number:07d}").mkdir()
        if tracker is not None:
            (recipe.run_dir("full") / "latest_checkpointed_iteration.txt").write_text(str(tracker))
        return 0

    return runner


def test_progress_is_told_while_the_trainer_runs(recipe):
    seen: list[tuple[int, list[int]]] = []

    def on_progress(latest: int, iters: list[int]) -> None:
        seen.append((latest, iters))
        if latest == 5:
            assert _beats(recipe)[0]["status"] == "running"
            _open_gate(recipe)

    result = run(recipe, poll_interval=0.02, on_progress=on_progress)
    assert (5, [5]) in seen
    assert seen[-1] == (10, [5, 10])
    assert (result.final_iter, result.iter_dirs, result.container) == (10, (5, 10), "ps-train")
    assert hash(result)
    (beat,) = _beats(recipe)
    assert (beat["status"], beat["final"], beat["latest_iter"], beat["max_iters"]) == ("done", True, 10, 10)
    assert beat["wall_seconds"] >= 0
    assert "error" not in beat


def test_smoke_and_full_have_folders_of_their_own(recipe):
    _open_gate(recipe)
    smoke = run(recipe, mode="smoke", poll_interval=0)
    full = run(recipe, poll_interval=0)
    assert (Path(smoke.run_dir).name, Path(full.run_dir).name) == ("runs-smoke", "runs-full")
    assert [beat["mode"] for beat in _beats(recipe)] == ["full", "smoke"]


def test_every_field_and_the_extra_environment_reach_the_trainer(recipe):
    _open_gate(recipe)
    hostile = "a 'b' $(touch owned) \"c\" \\"
    wanted = recipe.replace(
        learning_rate=3e-4,
        lora_rank=8,
        lora_alpha=64,
        lr_schedule="linear",
        seed=7,
        epochs=2.0,
        global_batch_size=4,
        lora_layers=(1, 3),
        use_rslora=True,
        extra_env={**recipe.extra_env, "NOTE": hostile, "HF_TOKEN": "hf_" + "x" * 30},
    )
    run(wanted, poll_interval=0)
    text = (wanted.run_dir("full") / "test.env").read_text(encoding="utf-8")
    got = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    expected = {
        "LEARNING_RATE": "0.0003",
        "LORA_RANK": "8",
        "LORA_ALPHA": "64",
        "LR_SCHEDULE": "linear",
        "SEED": "7",
        "MAX_STEPS": "10",
        "SMOKE_STEPS": "5",
        "LORA_TARGET_MODULES": "q_proj,k_proj,v_proj,o_proj",
        "LORA_LAYERS": "[1, 3]",
        "USE_RSLORA": "true",
        "SAVE_INTERVAL": "5",
        "MODE": "full",
        "RUN_DIR": str(wanted.run_dir("full")),
        "NOTE": hostile,
        "HF_TOKEN": "hf_" + "x" * 30,
    }
    assert {name: got.get(name) for name in expected} == expected
    unnamed = {"output_dir", "backend", "container", "extra_env", "notes", "epochs"}
    assert not {name.upper() for name in wanted.to_dict() if name not in unnamed} - set(got)


def test_a_secret_appears_in_no_argument_list(recipe, tmp_path):
    _open_gate(recipe)
    run(recipe.replace(extra_env={**recipe.extra_env, "WANDB_API_KEY": "tops3cret"}), poll_interval=0)
    assert "tops3cret" not in (tmp_path / "docker" / "docker-calls.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["LEARNING_RATE", "RUN_DIR", "A B", "x;rm"])
def test_an_extra_variable_that_hides_a_field_or_is_no_name_is_refused(recipe, name):
    with pytest.raises(TrainError, match="extra_env"):
        run(recipe.replace(extra_env={**recipe.extra_env, name: "1"}))


def test_a_trainer_that_fails_is_an_error_with_its_last_words(recipe, tmp_path):
    (tmp_path / "train.sh").write_text("echo 'CUDA out of memory' >&2; exit 9", encoding="utf-8")
    with pytest.raises(TrainError, match=r"exit code 9(.|\n)*CUDA out of memory"):
        run(recipe, poll_interval=0.02)
    (beat,) = _beats(recipe)
    assert (beat["status"], beat["final"]) == ("failed", True)
    assert "CUDA out of memory" in beat["error"]


def test_a_trainer_that_ends_well_without_a_checkpoint_failed(recipe, tmp_path):
    (tmp_path / "train.sh").write_text("exit 0", encoding="utf-8")
    with pytest.raises(TrainError, match="no new checkpoint"):
        run(recipe, poll_interval=0.02)
    assert _beats(recipe)[0]["status"] == "failed"


def test_a_trainer_that_stops_short_is_not_done(recipe):
    with pytest.raises(TrainError, match="iteration 5 of 10"):
        run(recipe, runner=_write_checkpoints(recipe, 5, tracker=5))
    assert _beats(recipe)[0]["status"] == "failed"


def test_a_last_checkpoint_that_the_tracker_does_not_name_is_torn(recipe):
    with pytest.raises(TrainError, match="iteration 5 of 10"):
        run(recipe, runner=_write_checkpoints(recipe, 5, 10, tracker=5))


def test_a_torn_tracker_vouches_for_nothing(recipe):
    def runner(command: list[str]) -> int:
        _write_checkpoints(recipe, 10)(command)
        (recipe.run_dir("full") / "latest_checkpointed_iteration.txt").touch()
        return 0

    with pytest.raises(TrainError, match="iteration 0 of 10"):
        run(recipe, runner=runner)


def test_checkpoints_of_an_older_run_are_no_success(recipe):
    old = recipe.run_dir("full")
    for number in (5, 10):
        (old / f"iter_{number:07d}").mkdir(parents=True)
    (old / "latest_checkpointed_iteration.txt").write_text("10", encoding="utf-8")
    with pytest.raises(TrainError, match="no new checkpoint"):
        run(recipe, runner=lambda _: 0, poll_interval=0)
    (aside,) = [path for path in old.parent.iterdir() if path.name.startswith("runs-full.before-")]
    assert sorted(path.name for path in aside.glob("iter_*")) == ["iter_0000005", "iter_0000010"]


def test_a_finished_run_is_run_again_and_a_changed_one_starts_anew(recipe):
    _open_gate(recipe)
    run(recipe, poll_interval=0)
    assert run(recipe, poll_interval=0).iter_dirs == (5, 10)
    with pytest.raises(TrainError):
        run(recipe.replace(seed=1), runner=_write_checkpoints(recipe, 5, tracker=5))
    assert run(recipe.replace(seed=2), poll_interval=0).iter_dirs == (5, 10)
    names = [path.name for path in recipe.run_dir("full").parent.iterdir()]
    assert len([name for name in names if name.startswith("runs-full.before-")]) == 3


def test_the_same_run_cut_short_is_left_for_the_trainer_to_continue(recipe):
    with pytest.raises(TrainError):
        run(recipe, runner=_write_checkpoints(recipe, 5, tracker=5))
    result = run(recipe, runner=_write_checkpoints(recipe, 10, tracker=10))
    assert (result.final_iter, result.iter_dirs) == (10, (5, 10))


def test_rows_that_changed_are_another_run(recipe):
    with pytest.raises(TrainError):
        run(recipe, runner=_write_checkpoints(recipe, 5, tracker=5))
    Path(recipe.dataset_jsonl).write_text("{}\n", encoding="utf-8")
    assert run(recipe, runner=_write_checkpoints(recipe, 10, tracker=10)).iter_dirs == (10,)


def test_a_runner_gets_the_command_as_a_list_and_its_code_counts(recipe):
    commands: list[list[str]] = []

    def runner(command: list[str]) -> int:
        commands.append(command)
        return 3

    with pytest.raises(TrainError, match="non-zero exit code 3"):
        run(recipe, runner=runner)
    assert commands[0][:7] == ["docker", "exec", "-w", "/tmp", "ps-train", "bash", "-lc"]
    assert len(commands[0]) == 8


def test_a_runner_that_only_launches_is_polled_until_the_last_step(recipe):
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        _write_checkpoints(recipe, len(pauses), tracker=len(pauses))([])

    result = run(recipe, runner=lambda _: 0, sleep=sleep, poll_interval=30.0)
    assert (result.final_iter, pauses) == (10, [30.0] * 10)


def test_a_launched_trainer_that_never_saves_is_given_up(recipe):
    pauses: list[float] = []
    with pytest.raises(TrainError, match="no new checkpoint"):
        run(recipe, runner=lambda _: 0, sleep=pauses.append)
    assert 0 < len(pauses) < 1000


def test_a_runner_that_raises_leaves_a_truthful_heartbeat(recipe):
    def runner(_: list[str]) -> int:
        raise FileNotFoundError("docker is not installed")

    with pytest.raises(FileNotFoundError):
        run(recipe, runner=runner)
    assert _beats(recipe)[0]["error"] == "docker is not installed"


def test_a_callback_that_raises_ends_the_trainer(recipe):
    def on_progress(latest: int, _: list[int]) -> None:
        if latest == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, poll_interval=0.02, on_progress=on_progress)
    _assert_ended(recipe)
    assert (recipe.run_dir("full") / "asked-to-end").exists()
    assert "KeyboardInterrupt" in _beats(recipe)[0]["error"]


def test_a_trainer_over_its_time_is_ended_also_inside_the_container(recipe):
    reached = recipe.run_dir("full") / "iter_0000005"
    with pytest.raises(TrainError, match="stopped on request"):
        run(recipe, poll_interval=0.02, should_stop=reached.exists)
    _assert_ended(recipe)
    with pytest.raises(TrainError, match="over its limit"):
        run(recipe, poll_interval=0.02, timeout_s=0.5)
    _assert_ended(recipe)


def test_the_log_of_the_trainer_is_kept(recipe, tmp_path):
    (tmp_path / "train.sh").write_text("echo step 1; " + TRAINER, encoding="utf-8")
    _open_gate(recipe)
    result = run(recipe, poll_interval=0)
    assert result.log_path is not None
    assert "step 1" in Path(result.log_path).read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_watcher_that_is_ended_leaves_a_truthful_heartbeat_and_no_trainer(recipe, number, tmp_path):
    recipe.to_yaml(tmp_path / "recipe.yaml")
    program = (
        "import sys; from tools.recipe import TrainRecipe; from tools.train import run\n"
        "run(TrainRecipe.from_yaml(sys.argv[1]), poll_interval=0.02)"
    )
    watcher = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "recipe.yaml")],
        env=child_environment(),
        stderr=subprocess.DEVNULL,
    )
    _until(lambda: any('"latest_iter": 5' in path.read_text() for path in _beat_files(recipe)))
    watcher.send_signal(number)
    assert watcher.wait() != 0
    _until(lambda: _beats(recipe)[0].get("final"))
    _assert_ended(recipe)
    (beat,) = _beats(recipe)
    assert (beat["status"], beat["latest_iter"]) == ("failed", 5)
    assert beat["error"]
    # What was saved stays, and the same run goes on from it.
    _open_gate(recipe)
    assert run(recipe, poll_interval=0.02).final_iter == 10


def test_a_second_run_in_the_same_folder_is_refused(recipe):
    def on_progress(latest: int, _: list[int]) -> None:
        if latest == 5:
            with pytest.raises(TrainError, match=f"in use by process {os.getpid()}"):
                run(recipe)
            _open_gate(recipe)

    assert run(recipe, poll_interval=0.02, on_progress=on_progress).final_iter == 10


def test_the_documented_arguments_are_checked(recipe):
    with pytest.raises(TrainError, match="mode is 'half'"):
        run(recipe, mode="half")
    for interval in (-1.0, float("nan")):
        with pytest.raises(TrainError, match="poll_interval"):
            run(recipe, poll_interval=interval)
    with pytest.raises(TrainError, match="preflight"):
        run(recipe.replace(lora_rank=0))
    with pytest.raises(TrainError, match="No such container"):
        run(recipe.replace(container="other"))


def test_the_result_has_the_documented_fields():
    result = TrainResult("nemo", "full", "/r", 625, 11340.5, "nemo-train", iter_dirs=(550, 600, 625))
    assert (result.log_path, result.stopped_early) == (None, False)


def _assert_ended(recipe: TrainRecipe) -> None:
    pid = int((recipe.run_dir("full") / "test.pid").read_text(encoding="utf-8"))
    _until(lambda: started_at(pid) is None)
