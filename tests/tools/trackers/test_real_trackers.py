"""The trackers themselves, in their local or offline mode, each read back by its own reader."""

from __future__ import annotations

import importlib.util
import json
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tools.child import child_environment
from tools.evaluation.scores import ScoreRow, write_scores
from tools.files import append_line
from tools.recipe import TrainRecipe
from tools.trackers.choice import PACKAGES
from tools.trackers.tracked_run import ScoreFile, SidecarSpec, TrackedRun

pytestmark = pytest.mark.slow

NAME = "i1-c1-s17"
VALUES = {"grad_norm": 1.5, "lr": 1e-4, "tokens": 100, "tokens_per_s": 50.5, "memory_bytes": 7}


@pytest.fixture
def run(tmp_path: Path) -> TrackedRun:
    (tmp_path / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    recipe = TrainRecipe(base_model="b", dataset_jsonl=str(tmp_path / "rows.jsonl"), output_dir=str(tmp_path))
    return TrackedRun.of(recipe, name=NAME, run_dir=tmp_path / "run", member=NAME)


def write(run: TrackedRun, *steps: int) -> None:
    for step in steps:
        line = {"step": step, "loss": 1 / step, **VALUES}
        append_line(Path(run.run_dir) / "metrics.jsonl", json.dumps(line))


def mirror(tracker: str, run: TrackedRun, folder: Path, environment: Mapping[str, str]) -> None:
    """Run a whole sidecar over what is on disk."""
    spec = SidecarSpec((run,)).write(folder / "spec.json")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tools.trackers", tracker, str(spec)],
        input=b"finished",
        capture_output=True,
        env=child_environment(environment),
        cwd=folder,
        timeout=240,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b""), done.stderr.decode()


def mirror_in_three_parts(
    tracker: str, run: TrackedRun, folder: Path, environment: Mapping[str, str]
) -> None:
    """A run that is cut short, resumed, and scored: three sidecars, one run."""
    if importlib.util.find_spec(PACKAGES[tracker]) is None:
        pytest.skip(f"{tracker} is not installed")
    write(run, 1, 2)
    mirror(tracker, run, folder, environment)
    write(run, 3)
    append_line(Path(run.run_dir) / "metrics.jsonl", json.dumps({"step": 3, "eval_score": 0.5, "n_items": 4}))
    mirror(tracker, run, folder, environment)
    scores = folder / "dev.jsonl"
    scored = TrackedRun(NAME, run.run_dir, scores=(ScoreFile.expected("dev", scores),))
    write_scores(scores, [ScoreRow("a", 17, 1.0), ScoreRow("b", 17, 0.5)], redact=True)
    mirror(tracker, scored, folder, environment)


def test_mlflow_holds_one_run_with_every_number(run, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    mirror_in_three_parts("mlflow", run, tmp_path, {"MLFLOW_TRACKING_URI": uri})
    code = (
        "import json, sys\n"
        "from mlflow import MlflowClient\n"
        "client = MlflowClient(tracking_uri=sys.argv[1])\n"
        "place = client.get_experiment_by_name('bakehouse').experiment_id\n"
        "found = [{'name': run.info.run_name, 'status': run.info.status, 'metrics': run.data.metrics,\n"
        "  'params': run.data.params, 'loss': [[one.step, one.value] for one in\n"
        "  client.get_metric_history(run.info.run_id, 'loss')]} for run in client.search_runs([place])]\n"
        "print(json.dumps(found))\n"
    )
    (found,) = json.loads(read(code, uri))
    assert (found["name"], found["status"]) == (NAME, "FINISHED")
    assert found["loss"] == [[step, 1 / step] for step in (1, 2, 3)]
    assert {key: found["metrics"][key] for key in VALUES} == VALUES
    assert (found["metrics"]["eval_score"], found["metrics"]["score/dev"]) == (0.5, 0.75)
    assert found["params"]["lora_rank"] == "16"
    assert found["params"]["recipe_digest"] == run.recipe_digest


def test_trackio_holds_one_run_with_every_number(run, tmp_path):
    home = str(tmp_path / "trackio")
    mirror_in_three_parts("trackio", run, tmp_path, {"TRACKIO_DIR": home})
    code = (
        "import json, os, sys\n"
        "os.environ['TRACKIO_DIR'] = sys.argv[1]\n"
        "from trackio.sqlite_storage import SQLiteStorage as storage\n"
        "found = [[run['name'], storage.get_logs('bakehouse', run['name'], run_id=run['id'])]\n"
        "  for run in storage.get_run_records('bakehouse')]\n"
        "print(json.dumps(found))\n"
    )
    ((name, logs),) = json.loads(read(code, home))
    assert name == NAME
    told = [line for line in logs if "loss" in line]
    assert [(line["step"], line["loss"]) for line in told] == [(step, 1 / step) for step in (1, 2, 3)]
    assert {key: told[0][key] for key in VALUES} == VALUES
    assert [line["eval_score"] for line in logs if "eval_score" in line] == [0.5]
    assert [line["score/dev"] for line in logs if "score/dev" in line] == [0.75]


def test_wandb_offline_keeps_every_number_under_one_id(run, tmp_path):
    mirror_in_three_parts("wandb", run, tmp_path, {"WANDB_MODE": "offline", "WANDB_API_KEY": ""})
    files = sorted((tmp_path / "run").rglob("*.wandb"))
    assert len(files) == 3
    assert len({path.name for path in files}) == 1
    steps: dict[int, dict[str, Any]] = {}
    summary: dict[str, Any] = {}
    names: set[str] = set()
    for record in (record for path in files for record in wandb_records(path)):
        if record.HasField("run"):
            names.add(record.run.display_name)
        if record.HasField("history"):
            line = {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            steps.setdefault(int(line["_step"]), {}).update(line)
        if record.HasField("summary"):
            summary |= {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.summary.update
            }
    assert names == {NAME}
    assert {step: line["loss"] for step, line in steps.items()} == {1: 1.0, 2: 0.5, 3: 1 / 3}
    assert {key: steps[1][key] for key in VALUES} == VALUES
    assert steps[3]["eval_score"] == 0.5
    assert summary["score/dev"] == 0.75


def read(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    return done.stdout.splitlines()[-1]


def wandb_records(path: Path) -> Iterator[Any]:
    """Yield the records of an offline file: LevelDB's log format around wandb's own messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        parts = (b"" if kind in (1, 2) else parts) + data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(parts)
            yield record
