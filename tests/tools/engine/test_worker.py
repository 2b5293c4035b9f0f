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

from tests.tiny import save_tiny_base
from tests.tools.engine.conftest import write_rows
from tools.engine.spec import (
    AdapterRef,
    EvaluateSpec,
    MidEval,
    ScorerChoice,
    StackMember,
    TrainSpec,
    spec_to_json,
)
from tools.evaluation.scores import read_scores

Make = Callable[..., StackMember]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    save_tiny_base(tmp_path / "base")
    return str(tmp_path / "base")


def start(spec: Any, path: Path) -> subprocess.Popen[str]:
    path.write_text(json.dumps(spec if isinstance(spec, dict) else spec_to_json(spec)))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "tools.engine", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_worker_trains_and_another_evaluates(folder: str, member: Make, tmp_path: Path) -> None:
    rows = str(write_rows(tmp_path / "dev.jsonl", 5))
    scorer = ScorerChoice("json", ignore=("args",))
    result_path = tmp_path / "train-result.json"
    spec = TrainSpec(
        folder,
        (
            member("good", base_model=folder, eval_interval=3),
            member("bad", base_model=folder, lora_target_modules=("nothing",)),
        ),
        "full",
        str(result_path),
        MidEval(rows, 2, scorer, max_new_tokens=4),
        threads=1,
    )
    worker = start(spec, tmp_path / "spec.json")
    out, log = worker.communicate()
    assert worker.returncode == 0, log
    assert out == ""
    outcome = json.loads(result_path.read_text())
    good, bad = outcome["members"]
    assert (good["trial_id"], good["status"], good["steps"], good["best_score"]) == ("good", "done", 6, 0.0)
    assert (bad["status"], bad["adapter_dir"]) == ("failed", None)
    assert "nothing" in bad["error"]
    assert outcome["base_load_s"] > 0
    assert outcome["peak_memory_bytes"] > 10**7

    scores_dir = tmp_path / "scores"
    evaluation = EvaluateSpec(
        folder,
        "float32",
        (
            AdapterRef("base", 0, None),
            AdapterRef("good", 17, good["adapter_dir"]),
            AdapterRef("gone", 1, "/gone"),
        ),
        {"dev": rows, "test": rows},
        scorer,
        str(scores_dir),
        str(tmp_path / "evaluate-result.json"),
        max_new_tokens=4,
        threads=1,
    )
    worker = start(evaluation, tmp_path / "evaluate.json")
    out, log = worker.communicate()
    assert worker.returncode == 0, log
    assert out == ""
    adapters = json.loads((tmp_path / "evaluate-result.json").read_text())["adapters"]
    assert [adapter["trial_id"] for adapter in adapters] == ["base", "good", "gone"]
    assert adapters[0]["splits"]["dev"]["n"] == 5
    assert adapters[1]["error"] is None
    assert "/gone" in adapters[2]["error"]
    dev, test = (read_scores(scores_dir / "good" / f"{split}.jsonl") for split in ("dev", "test"))
    assert [row.item_id for row in dev] == [f"r0-{i}" for i in range(5)]
    assert {row.seed for row in dev} == {17}
    assert all(row.output is not None and row.prompt and row.n_tokens for row in dev)
    # Of a sealed split only scores leave the worker.
    assert all(row.output is row.prompt is row.expected is None for row in test)
    assert not (scores_dir / "gone").exists()


def test_a_worker_that_is_asked_to_stop_saves_first(folder: str, member: Make, tmp_path: Path) -> None:
    one = member("t", base_model=folder, max_steps=100_000)
    result_path = tmp_path / "result.json"
    worker = start(TrainSpec(folder, (one,), "full", str(result_path), threads=1), tmp_path / "spec.json")
    metrics = Path(one.run_dir) / "metrics.jsonl"
    while worker.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 2):
        time.sleep(0.02)
    worker.send_signal(signal.SIGTERM)
    _, log = worker.communicate()
    assert worker.returncode == 143, log
    (result,) = json.loads(result_path.read_text())["members"]
    assert result["status"] == "stopped"
    assert result["steps"] >= 3
    assert (Path(one.run_dir) / "latest_checkpointed_iteration.txt").read_text() == f"{result['steps']}\n"


@pytest.mark.parametrize(
    ("spec", "hint"),
    [({"kind": "dance"}, "dance"), ({"kind": "train", "base_model": "/nowhere/base"}, "lacks")],
)
def test_a_worker_says_why_it_can_do_nothing(spec: dict[str, str], hint: str, tmp_path: Path) -> None:
    worker = start(spec, tmp_path / "spec.json")
    out, log = worker.communicate()
    assert worker.returncode == 1
    assert out == ""
    assert hint in log
    assert "Traceback" not in log


def test_a_worker_takes_its_packages_from_its_own_environment(tmp_path: Path) -> None:
    """A folder called tools in the working directory must not take the place of ours."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").write_text("raise SystemExit('the wrong tools')")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tools.engine"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "usage" in done.stderr
