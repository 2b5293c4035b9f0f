from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path

from tools.heartbeat import Heartbeat, close_orphan, progress_dir

NOW = datetime(2026, 11, 20, 4, 49, 7, tzinfo=UTC)


def _beat(folder: Path) -> Heartbeat:
    return Heartbeat(
        folder, backend="nemo", mode="smoke", run_dir=Path("/o/runs-smoke"), max_iters=10, now=lambda: NOW
    )


def test_the_file_has_the_documented_name_and_fields(tmp_path):
    beat = _beat(tmp_path)
    assert beat.path == tmp_path / "sft-progress-smoke-20261120T044907.json"
    beat.running(5, [5])
    data = json.loads(beat.path.read_text(encoding="utf-8"))
    expected = {
        "version": 1,
        "kind": "sft-progress",
        "backend": "nemo",
        "mode": "smoke",
        "run_dir": "/o/runs-smoke",
        "max_iters": 10,
        "started_at": "2026-11-20T04:49:07Z",
        "status": "running",
        "latest_iter": 5,
        "checkpoint_iters": [5],
        "updated_at": "2026-11-20T04:49:07Z",
    }
    assert {name: data[name] for name in expected} == expected
    assert "run_label" in data
    assert "final" not in data


def test_two_runs_of_one_second_do_not_share_a_file(tmp_path):
    first, second = _beat(tmp_path), _beat(tmp_path)
    first.done(10, [10], wall_s=1.0)
    second.failed(5, [5], wall_s=2.0, error="out of memory")
    assert first.path != second.path
    assert json.loads(first.path.read_text(encoding="utf-8"))["status"] == "done"
    last = json.loads(second.path.read_text(encoding="utf-8"))
    assert (last["status"], last["error"], last["final"]) == ("failed", "out of memory", True)
    assert len(list(tmp_path.glob("sft-progress-smoke-20261120T044907*.json"))) == 2


def test_a_heartbeat_that_cannot_be_written_is_logged_once_and_never_raises(tmp_path, caplog):
    (tmp_path / "blocked").write_text("a file where the folder should be", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        beat = _beat(tmp_path / "blocked" / "progress")
        beat.running(1, [1])
        beat.done(2, [2], wall_s=1.0)
    assert beat.path is None
    assert len(caplog.records) == 1


def test_a_heartbeat_whose_folder_vanishes_comes_back(tmp_path):
    beat = _beat(tmp_path / "progress")
    beat.path.unlink()
    beat.path.parent.rmdir()
    beat.done(10, [10], wall_s=1.0)
    assert json.loads(beat.path.read_text(encoding="utf-8"))["final"] is True


def test_an_orphan_is_closed_but_a_last_word_stands(tmp_path):
    lost, done = _beat(tmp_path), _beat(tmp_path)
    lost.running(5, [5])
    done.done(10, [10], wall_s=1.0)
    for path in (lost.path, done.path):
        close_orphan(path, now=lambda: NOW)
    record = json.loads(lost.path.read_text(encoding="utf-8"))
    assert (record["status"], record["final"], record["latest_iter"]) == ("failed", True, 5)
    assert json.loads(done.path.read_text(encoding="utf-8"))["status"] == "done"


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("FK_SFT_PROGRESS_DIR", raising=False)
    assert progress_dir(tmp_path / "out") == tmp_path / "out" / "progress"
    monkeypatch.setenv("FK_SFT_PROGRESS_DIR", str(tmp_path / "feed"))
    assert progress_dir(tmp_path / "out") == tmp_path / "feed"
