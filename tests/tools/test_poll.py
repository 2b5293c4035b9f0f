from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tools.heartbeat import Heartbeat
from tools.poll import poll_run_progress, read_progress


def _checkpoints(run_dir: Path, *numbers: int, tracker: str | None = None) -> None:
    for number in numbers:
        (run_dir / f"iter_{number:07d}").mkdir(parents=True)
    if tracker is not None:
        (run_dir / "latest_checkpointed_iteration.txt").write_text(tracker, encoding="utf-8")


def test_a_run_that_does_not_exist_is_quiet_and_no_error(tmp_path):
    assert poll_run_progress(tmp_path / "nothing") == (0, [])
    assert poll_run_progress(str(tmp_path)) == (0, [])


def test_tracker_and_folders_are_read_apart(tmp_path):
    _checkpoints(tmp_path, 600, 50, 625, tracker="600\n")
    assert poll_run_progress(tmp_path) == (600, [50, 600, 625])


@pytest.mark.parametrize("text", ["", "release", "-5", "1_0", "٣", "7" * 40, "50 60", "0x10"])
def test_a_tracker_that_is_no_number_counts_as_none(tmp_path, text):
    _checkpoints(tmp_path, 50, tracker=text)
    assert poll_run_progress(tmp_path) == (0, [50])


def test_only_whole_names_of_folders_count(tmp_path):
    _checkpoints(tmp_path, 50)
    (tmp_path / "iter_0000060").write_text("a file", encoding="utf-8")
    for name in ("iter_60", "iter_0000070.tmp", ".iter_0000080", "xiter_0000090", "iter_000007x"):
        (tmp_path / name).mkdir()
    assert poll_run_progress(tmp_path) == (0, [50])


def test_a_link_that_leads_nowhere_or_to_itself_is_no_checkpoint(tmp_path):
    (tmp_path / "iter_0000050").symlink_to(tmp_path / "gone")
    (tmp_path / "iter_0000060").symlink_to(tmp_path / "iter_0000060")
    assert poll_run_progress(tmp_path) == (0, [])


def test_a_run_folder_that_is_a_file_or_has_a_binary_tracker_is_quiet(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert poll_run_progress(tmp_path / "file") == (0, [])
    (tmp_path / "latest_checkpointed_iteration.txt").write_bytes(b"\xff\xfe\x00")
    assert poll_run_progress(tmp_path) == (0, [])


def test_hugging_face_checkpoints_count_once_they_are_whole(tmp_path):
    for number in (50, 100):
        (tmp_path / f"checkpoint-{number}").mkdir()
    (tmp_path / "checkpoint-50" / "trainer_state.json").write_text("{}", encoding="utf-8")
    assert poll_run_progress(tmp_path) == (50, [50])


def test_progress_says_none_for_what_is_not_known(tmp_path):
    progress = read_progress(tmp_path / "nothing")
    assert (progress.latest_iter, progress.iters) == (0, ())
    assert (
        progress.step is progress.loss is progress.eval_score is progress.heartbeat is progress.alive is None
    )


def test_progress_reads_the_last_metrics_around_torn_lines_and_nan(tmp_path):
    lines = [
        json.dumps({"step": 1, "loss": 2.5, "lr": 1e-4, "tokens_per_s": 900}),
        json.dumps({"step": 2, "eval_score": 0.25, "n_items": 8}),
        '{"step": 3, "loss": NaN}',
        '{"step": 4, "lo',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "best_checkpointed_iteration.txt").write_text("2", encoding="utf-8")
    progress = read_progress(tmp_path)
    assert (progress.step, progress.loss, progress.eval_score, progress.best_iter) == (3, 2.5, 0.25, 2)


def test_progress_of_a_long_run_reads_the_end_of_its_metrics_only(tmp_path):
    with (tmp_path / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step in range(20_000):
            file.write(json.dumps({"step": step, "loss": 1.0}) + "\n")
    assert read_progress(tmp_path).step == 19_999


def test_progress_finds_the_newest_heartbeat_of_this_run_and_no_other(tmp_path):
    folder = tmp_path / "progress"
    for run in ("runs-full", "runs-smoke", "runs-full"):
        beat = Heartbeat(folder, backend="local", mode="full", run_dir=tmp_path / run, max_iters=10)
        beat.running(5, [5])
    found = read_progress(tmp_path / "runs-full").heartbeat
    assert found is not None
    assert found.run_dir == str(tmp_path / "runs-full")
    assert found.path == beat.path
    assert (found.alive, found.state) == (True, "running")


def test_a_torn_or_foreign_heartbeat_is_left_out(tmp_path):
    folder = tmp_path / "progress"
    folder.mkdir()
    (folder / "sft-progress-full-20261120T044900.json").write_text('{"kind": "sft-pro', encoding="utf-8")
    (folder / "sft-progress-full-20261120T044901.json").write_text("[]", encoding="utf-8")
    (folder / "sft-progress-full-20261120T044902.json").write_text('{"kind": "other"}', encoding="utf-8")
    assert read_progress(tmp_path / "runs-full").heartbeat is None


def test_a_heartbeat_of_a_dead_watcher_reads_as_lost(tmp_path):
    folder = tmp_path / "progress"
    beat = Heartbeat(folder, backend="local", mode="full", run_dir=tmp_path / "runs-full", max_iters=10)
    beat.running(5, [5])
    # The same number, but a process that started at another time: the pid was given again.
    data = json.loads(beat.path.read_text(encoding="utf-8")) | {"pid": os.getpid(), "pid_started": 1000.0}
    beat.path.write_text(json.dumps(data), encoding="utf-8")
    found = read_progress(tmp_path / "runs-full").heartbeat
    assert found is not None
    assert (found.alive, found.state, found.status) == (False, "lost", "running")


def test_a_heartbeat_of_the_reference_system_reads_here(tmp_path):
    folder = tmp_path / "progress"
    folder.mkdir()
    record = {
        "version": 1,
        "kind": "sft-progress",
        "backend": "nemo",
        "mode": "full",
        "run_dir": str(tmp_path / "runs-full"),
        "run_label": "nemo LoRA SFT",
        "max_iters": 625,
        "started_at": "2026-05-21T00:00:00Z",
        "status": "running",
        "latest_iter": 50,
        "checkpoint_iters": [50],
        "updated_at": "2026-05-21T00:10:00Z",
    }
    (folder / "sft-progress-full-20260521T000000.json").write_text(json.dumps(record), encoding="utf-8")
    found = read_progress(tmp_path / "runs-full").heartbeat
    assert found is not None
    assert (found.latest_iter, found.max_iters, found.alive, found.state) == (50, 625, None, "running")
