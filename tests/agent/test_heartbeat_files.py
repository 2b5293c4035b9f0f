"""The heartbeat and the log of experiments, as those who watch a long run read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.heartbeat_files import EXPERIMENTS_FILE, HEARTBEAT_FILE, FlywheelHeartbeat, keep_heartbeat
from agent.plan import BudgetLeft
from agent.progress import Event
from agent.rulings import promote
from tests.agent.review_sample import first_incumbent
from tests.bakeoff_sample import Bakeoff, build_bakeoff
from tools.errors import TrainError


def clock() -> str:
    return "2026-11-20T04:49:00Z"


def read(folder: Path) -> Any:
    return json.loads((folder / HEARTBEAT_FILE).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def bakeoff(tmp_path_factory: pytest.TempPathFactory) -> Bakeoff:
    return build_bakeoff(tmp_path_factory.mktemp("beat"))


def test_a_run_beats_with_the_documented_fields_until_it_is_completed(tmp_path: Path) -> None:
    with keep_heartbeat(tmp_path, clock) as heartbeat:
        heartbeat.running("i0004", 0.873)
        assert read(tmp_path) == {
            "iteration": 4,
            "status": "running",
            "accuracy": 0.873,
            "timestamp": "2026-11-20T04:49:00Z",
        }
        heartbeat.end()
    assert read(tmp_path)["status"] == "completed"


@pytest.mark.parametrize("error", [TrainError("out of memory"), KeyboardInterrupt()])
def test_whatever_ends_a_run_is_its_last_word(tmp_path: Path, error: BaseException) -> None:
    def run() -> None:
        with keep_heartbeat(tmp_path, clock) as heartbeat:
            heartbeat.running("i0004", 0.873)
            raise error

    with pytest.raises(type(error)):
        run()
    beat = read(tmp_path)
    assert (beat["status"], beat["iteration"]) == ("error", 4)
    assert beat["error"] in ("TrainError: out of memory", "KeyboardInterrupt")


def test_every_event_of_a_run_is_a_beat(tmp_path: Path) -> None:
    times = iter(f"2026-11-20T04:0{n}:00Z" for n in range(9))
    seen: list[Event] = []
    heartbeat = FlywheelHeartbeat(tmp_path, lambda: next(times))
    notify: Callable[[Event], None] = heartbeat.watched(seen.append)
    for _ in range(3):
        notify(Event("train", "i0001", "started"))
    assert len(seen) == 3
    assert read(tmp_path)["timestamp"] == "2026-11-20T04:02:00Z"
    # Not measured yet is unknown, not 0.
    assert (read(tmp_path)["iteration"], read(tmp_path)["accuracy"]) == (None, None)


def test_what_is_left_of_the_budget_stays_in_the_beat_once_it_is_known(tmp_path: Path) -> None:
    heartbeat = FlywheelHeartbeat(tmp_path, clock)
    notify = heartbeat.watched(lambda _: None)
    notify(Event("train", "i0001", "started"))
    assert "budget_left" not in read(tmp_path)
    notify(Event("train", "i0001", "budget", left=BudgetLeft(trials=2, wall_s=9.5)))
    notify(Event("train", "i0001", "done", wall_s=1.0))
    left = read(tmp_path)["budget_left"]
    assert (left["trials"], left["wall_s"], left["dollars"]) == (2, 9.5, None)


def test_an_iteration_is_logged_once_with_its_metadata(tmp_path: Path, bakeoff: Bakeoff) -> None:
    incumbent = promote(bakeoff.record, first_incumbent(bakeoff.record))
    path = tmp_path / EXPERIMENTS_FILE
    FlywheelHeartbeat(tmp_path, clock).finished(bakeoff.record, incumbent)
    with path.open("a") as file:
        file.write('{"iteration": 4, "torn')
    FlywheelHeartbeat(tmp_path, clock).finished(bakeoff.record, incumbent)
    later = bakeoff.record.model_copy(update={"iteration_id": "i0004"})
    FlywheelHeartbeat(tmp_path, clock).finished(later, incumbent)
    rows = [json.loads(line) for line in path.read_text().splitlines() if "torn" not in line]
    assert [row["iteration"] for row in rows] == [3, 4]
    # The one-liner of the documentation.
    shown = [f"iter {r['iteration']}: {r['accuracy']:.1%} — {r['hypothesis'][:60]}" for r in rows]
    assert shown[0].startswith("iter 3: 8")
    assert [c["verdict"] for c in rows[0]["candidates"]] == ["keep", "discard", "inconclusive", "refused"]


def test_a_disk_that_takes_no_heartbeat_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "a file where the folder should be"
    place.write_text("")
    with keep_heartbeat(place, clock) as heartbeat:
        heartbeat.running("i0001", None)
        heartbeat.end()
    assert "the flywheel goes on" in caplog.text
