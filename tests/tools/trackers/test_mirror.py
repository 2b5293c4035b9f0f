"""A run's numbers on their way into a tracker that records, or fails."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tools.evaluation.scores import ScoreRow, write_scores
from tools.files import append_line
from tools.recipe import TrainRecipe
from tools.trackers.mirror import Mirror
from tools.trackers.tracked_run import ScoreFile, SidecarSpec, TrackedRun


class Recorder:
    """A tracker that keeps what it is told, and can be out of order."""

    def __init__(self) -> None:
        self.opened: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.summary: dict[str, float] = {}
        self.ending: str | None = None
        self.trouble: Exception | None = None

    def open(self, tracker: str, **arguments: Any) -> Recorder:
        self._fail()
        self.opened.append(arguments)
        return self

    def log(self, step: int, values: dict[str, float]) -> None:
        self._fail()
        self.logged.append((step, values))

    def summarise(self, values: dict[str, float]) -> None:
        self._fail()
        self.summary |= values

    def flush(self) -> None:
        self._fail()

    def finish(self, ending: str) -> None:
        self._fail()
        self.ending = ending

    def _fail(self) -> None:
        if self.trouble is not None:
            raise self.trouble


@pytest.fixture
def run(tmp_path: Path) -> TrackedRun:
    (tmp_path / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    recipe = TrainRecipe(
        base_model="base",
        dataset_jsonl=str(tmp_path / "rows.jsonl"),
        output_dir=str(tmp_path),
        extra_env={"MY_SETTING": "kept to ourselves"},
        notes="with sk-abcdefghijklmnopqrstuvwxyz0123456789",
    )
    return TrackedRun.of(recipe, name="i1-c1-s17", run_dir=tmp_path / "run")


def write(run: TrackedRun, step: int, **values: Any) -> None:
    append_line(Path(run.run_dir) / "metrics.jsonl", json.dumps({"step": step, **values}))


def test_a_run_is_opened_at_its_first_number_under_its_trial_id(run):
    tracker = Recorder()
    mirror = Mirror(run, "mlflow", opener=tracker.open)
    mirror.pump()
    assert tracker.opened == []
    write(run, 1, loss=2.5, grad_norm=1.0, lr=1e-4, tokens=10, tokens_per_s=None, memory_bytes=5)
    write(run, 1, eval_score=0.25, n_items=4)
    mirror.finish("finished")
    assert [(one["name"], one["is_known"]) for one in tracker.opened] == [("i1-c1-s17", False)]
    assert tracker.logged == [
        (1, {"loss": 2.5, "grad_norm": 1.0, "lr": 1e-4, "tokens": 10.0, "memory_bytes": 5.0}),
        (1, {"eval_score": 0.25, "n_items": 4.0}),
    ]
    assert tracker.ending == "finished"


def test_what_describes_a_run_holds_digests_and_no_secret(run):
    tracker = Recorder()
    mirror = Mirror(run, "mlflow", opener=tracker.open)
    write(run, 1, loss=2.5)
    mirror.pump()
    config = tracker.opened[0]["config"]
    assert config["recipe_digest"] == run.recipe_digest
    assert len(config["rows_digest"]) == 64
    assert config["lora_rank"] == 16
    assert config["extra_env"] == ["MY_SETTING"]
    assert "notes" not in config
    written = SidecarSpec((run,)).write(Path(run.run_dir) / "spec.json").read_text(encoding="utf-8")
    for text in (json.dumps(config), written):
        assert "kept to ourselves" not in text
        assert "sk-abcdef" not in text


def test_a_resumed_run_goes_on_in_the_same_run_and_tells_no_step_twice(run):
    first, second = Recorder(), Recorder()
    mirror = Mirror(run, "mlflow", opener=first.open)
    for step in (1, 2, 3):
        write(run, step, loss=1 / step)
    mirror.pump()
    # The trainer was killed, went back to its checkpoint of step 2 and wrote step 3 again.
    path = Path(run.run_dir) / "metrics.jsonl"
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(True)[:2]), encoding="utf-8")
    for step in (3, 4):
        write(run, step, loss=1 / step)
    Mirror(run, "mlflow", opener=second.open).finish("finished")
    assert [step for step, _ in first.logged + second.logged] == [1, 2, 3, 4]
    assert second.opened[0]["is_known"]
    assert second.opened[0]["run_id"] == first.opened[0]["run_id"]


def test_another_recipe_in_the_same_folder_is_another_run(run):
    first, second = Recorder(), Recorder()
    write(run, 1, loss=1.0)
    Mirror(run, "mlflow", opener=first.open).finish("finished")
    other = dataclasses.replace(run, recipe_digest="another")
    Mirror(other, "mlflow", opener=second.open).finish("finished")
    assert second.opened[0]["run_id"] != first.opened[0]["run_id"]
    assert not second.opened[0]["is_known"]
    assert second.logged


def test_each_tracker_has_a_mark_of_its_own(run):
    write(run, 1, loss=1.0)
    for name in ("wandb", "mlflow"):
        tracker = Recorder()
        Mirror(run, name, opener=tracker.open).pump()
        assert len(tracker.logged) == 1


def test_an_outage_is_logged_once_and_what_was_missed_is_told_after_it(run, caplog):
    tracker, now = Recorder(), [0.0]
    mirror = Mirror(run, "mlflow", opener=tracker.open, clock=lambda: now[0])
    tracker.trouble = ConnectionError("no route")
    write(run, 1, loss=1.0)
    for second in range(100):
        now[0] = float(second)
        mirror.pump()
    assert mirror.is_behind
    assert [record.getMessage() for record in caplog.records] == [
        "i1-c1-s17: mlflow was not told: ConnectionError: no route"
    ]
    tracker.trouble = None
    write(run, 2, loss=0.5)
    mirror.finish("finished")
    assert not mirror.is_behind
    assert [step for step, _ in tracker.logged] == [1, 2]


def test_a_tracker_that_fails_is_asked_less_and_less_often(run):
    asked: list[float] = []
    now = [0.0]

    def refuse(*_: Any, **__: Any) -> Any:
        asked.append(now[0])
        raise OSError("no")

    mirror = Mirror(run, "mlflow", opener=refuse, clock=lambda: now[0])
    write(run, 1, loss=1.0)
    for second in range(600):
        now[0] = float(second)
        mirror.pump()
    assert asked == [0, 5, 15, 35, 75, 155, 275, 395, 515]


def test_only_scores_that_are_written_later_are_told(run, tmp_path):
    old, new = tmp_path / "dev.jsonl", tmp_path / "selection.jsonl"
    rows = [ScoreRow("a", 1, 1.0), ScoreRow("b", 1, 0.5)]
    write_scores(old, rows, redact=True)
    files = (ScoreFile.expected("dev", old), ScoreFile.expected("selection", new))
    scored = TrackedRun("i1-c1-s17", run.run_dir, scores=files)
    tracker = Recorder()
    mirror = Mirror(scored, "mlflow", opener=tracker.open)
    mirror.pump()
    assert tracker.opened == []
    write_scores(new, rows, redact=True)
    mirror.pump()
    mirror.pump()
    assert tracker.summary == {"score/selection": 0.75, "score/selection_n": 2.0}
    assert len(tracker.opened) == 1


def test_scores_join_the_run_that_was_trained_in_that_folder(run, tmp_path):
    first, second = Recorder(), Recorder()
    write(run, 1, loss=1.0)
    Mirror(run, "mlflow", opener=first.open).finish("finished")
    path = tmp_path / "dev.jsonl"
    scored = TrackedRun("i1-c1-s17", run.run_dir, scores=(ScoreFile.expected("dev", path),))
    write_scores(path, [ScoreRow("a", 1, 1.0)], redact=False)
    Mirror(scored, "mlflow", opener=second.open).finish("finished")
    assert second.opened[0]["run_id"] == first.opened[0]["run_id"]
    assert second.logged == []
    assert second.summary["score/dev"] == 1.0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run_id": 1, "other": 2}'])
def test_a_damaged_mark_starts_a_new_run(run, text):
    folder = Path(run.run_dir) / "trackers"
    folder.mkdir(parents=True)
    (folder / "mlflow.json").write_text(text, encoding="utf-8")
    write(run, 1, loss=1.0)
    tracker = Recorder()
    Mirror(run, "mlflow", opener=tracker.open).finish("finished")
    assert len(tracker.logged) == 1
