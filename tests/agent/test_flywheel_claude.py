"""A whole flywheel planned over the Messages API: a scripted server, the real SDK, real training."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agent.flywheel import FlywheelResult, run_flywheel
from agent.ideas.queue import open_queue
from agent.planner_context import read_history
from agent.planners.calibration import calibrate
from tests.agent.bench import make_workspace, run_here, write_base
from tests.agent.planners.messages_api import MessagesApi, call, refuse, serve_messages, submit
from tests.git_project import isolate_git
from tools.dataset import load_dataset
from tools.lineage import LineageStore
from tools.patch_space import PROJECTIONS
from tools.task import Split
from tools.workspace import Workspace

STRONG = {
    "learning_rate": 0.005,
    "lora_rank": 16,
    "lora_alpha": 32,
    "lora_target_modules": list(PROJECTIONS),
    "epochs": 10,
}


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    isolate_git(monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.delenv("ANTHROPIC_BASE_URL", raising=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base model"))


def workspace_for(api: MessagesApi, root: Path, base: Path, **texts: str) -> Workspace:
    root.mkdir()
    for name, text in {
        "mission.md": "Name the colour's letter.",
        "BACKGROUND.md": "r is red.",
        **texts,
    }.items():
        (root / name).write_text(text, encoding="utf-8")
    bakeoff = {
        "candidates": 2,
        "iterations": 1,
        "planner": "claude",
        "planner_model": "scripted-1",
        "planner_base_url": api.url,
        "planner_prices": {"input": 3, "output": 15, "cache_read": 0.3, "cache_write": 3.75},
    }
    workspace = make_workspace(root, base, seeds=[17], bakeoff=bakeoff)
    workspace.load_recipe().replace(epochs=3.0).to_yaml(workspace.recipe_file)
    subprocess.run(("git", "commit", "-q", "-a", "-m", "train longer"), cwd=root, check=True)
    return workspace


def turn(workspace: Workspace, **options: Any) -> FlywheelResult:
    return run_flywheel(workspace, run_worker=run_here, **options)


def test_a_bakeoff_planned_by_a_model_is_judged_committed_and_held_to_what_it_expected(
    base: Path, tmp_path: Path
) -> None:
    first = submit({"seed": 1}, STRONG, gain=0.4, target_score=0)
    more = {"data_request": {"focus": "amber", "rows": 30}, "background_additions": "a is amber\n## so it is"}
    mended = submit(STRONG, {"learning_rate": 2e-4}, gain=0.4, notes="the rate was far too low", **more)
    looks = call(("read_dev_failures", {"page": 1}), ("read_lineage", {}))
    with serve_messages(looks, first, mended) as api:
        workspace = workspace_for(api, tmp_path / "w", base)
        task = workspace.task_file.read_bytes()
        result = turn(workspace)
    (record,) = result.records
    assert record.planner == "claude/scripted-1"
    assert record.promoted == "c1"
    assert [guard.name for guard in record.rulings[0].guards] == ["forbidden outputs", "trained"]
    assert "refused: 'target_score' may not be set by a plan" in record.notes
    assert any(note.startswith("scripted-1: 3 replies") and "$" in note for note in record.notes)
    assert workspace.task_file.read_bytes() == task

    head = api.requests[0]["system"][0]["text"]
    assert "Name the colour's letter." in head
    assert "r is red." in head
    state = api.requests[0]["messages"][0]["content"][0]["text"]
    assert "dev answers are wrong" in state
    assert "technique by the shape of the reward: sft" in state
    results = api.requests[1]["messages"][-1]["content"]
    assert "dev-" in json.dumps(results)
    everything = json.dumps(api.requests)
    sealed: tuple[Split, ...] = ("selection", "test")
    for split in sealed:
        assert not re.search(rf"\b{split}-[0-9]", everything)
        for row in load_dataset(workspace.split_file(workspace.load_task(), split)):
            assert not re.search(rf"(?<![0-9]){row.prompt[0].content}", everything)

    # Its request waits; what it would add is committed as a note, and BACKGROUND.md stays as it is.
    (item,) = open_queue(workspace).items()
    assert (item.state, item.author, str(item.idea)) == ("queued", "claude/scripted-1", "30 rows: amber")
    page = (workspace.worktree_dir / "BACKGROUND.additions.md").read_text(encoding="utf-8")
    assert "> a is amber\n> ## so it is" in page
    assert (workspace.root / "BACKGROUND.md").read_text(encoding="utf-8") == "r is red."

    lineage = workspace.worktree_dir / "lineage"
    trials = LineageStore(lineage, lower_is_better=False).all_trials()
    assert {trial.specialist for trial in trials} == {"baseline", "claude/scripted-1"}
    (held,) = calibrate(read_history(lineage, trials))
    assert (held.planner, held.n, held.mean_expected) == ("claude/scripted-1", 2, pytest.approx(0.4))
    gains = [ruling.gain for ruling in record.rulings if ruling.gain is not None]
    assert held.mean_realised == pytest.approx(sum(gains) / 2)
    log = subprocess.run(
        ("git", "log", "-1", "--format=%B", "bakehouse/colours"),
        cwd=workspace.root,
        capture_output=True,
        text=True,
    )
    assert "Planner: claude/scripted-1" in log.stdout
    assert " s, 3210 planner tokens, $0.0032" in log.stdout


def test_a_server_that_is_out_does_not_end_the_night(base: Path, tmp_path: Path) -> None:
    with serve_messages(refuse(529, retry_after="0.01"), repeats=True) as api:
        workspace = workspace_for(api, tmp_path / "w", base)
        result = turn(workspace)
    (record,) = result.records
    assert record.planner == "optuna (for claude/scripted-1)"
    assert any("optuna stepped in" in note for note in record.notes)
    assert len(record.rulings) == 2
    page = (workspace.reports_dir / record.iteration_id / "report.html").read_text(encoding="utf-8")
    assert "optuna stepped in" in page


def test_a_text_that_leads_out_of_the_workspace_is_sent_nowhere(base: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the user's own", encoding="utf-8")
    with serve_messages(submit(STRONG), repeats=True) as api:
        workspace = workspace_for(api, tmp_path / "w", base)
        (workspace.root / "mission.md").unlink()
        (workspace.root / "mission.md").symlink_to(tmp_path / "secret")
        turn(workspace)
    head = api.requests[0]["system"][0]["text"]
    assert "(mission.md leads out of the workspace and is not shown)" in head
    assert "the user's own" not in json.dumps(api.requests)
