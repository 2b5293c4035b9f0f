"""A whole flywheel on a tiny real model: real training, real scores, real commits."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.flywheel import FlywheelResult, run_flywheel
from agent.planners.fixed import FixedPlanner
from agent.progress import Event
from tests.agent.bench import make_workspace, run_here, write_base, write_plan
from tests.git_project import isolate_git
from tools.decisions import load_entries
from tools.errors import LeakError, LockHeldError, TaskError
from tools.lineage import FailureLabel, LineageStore
from tools.lock import hold_workspace
from tools.recipe import TrainRecipe
from tools.workspace import Workspace

STRONG = {
    "learning_rate": 0.005,
    "lora_rank": 16,
    "lora_alpha": 32,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "epochs": 10,
}
WEAK = {"learning_rate": 2e-4}


@pytest.fixture(autouse=True)
def own_git_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    isolate_git(monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base model"))


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run(("git", *arguments), cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def turn(workspace: Workspace, tmp_path: Path, *patches: dict[str, Any], **options: Any) -> FlywheelResult:
    plan = write_plan(tmp_path / "plan.yaml", *patches)
    settings = {"run_worker": run_here, **options}
    return run_flywheel(workspace, planner=FixedPlanner(plan), iterations=1, **settings)


def test_a_winner_is_kept_on_evidence_and_committed_whole(base: Path, tmp_path: Path) -> None:
    root = tmp_path / "a workspace"
    root.mkdir()
    workspace = make_workspace(root, base)
    (root / "data" / "notes.txt").write_text("the user's own, not committed")
    before = (git(root, "status", "--porcelain"), git(root, "rev-parse", "HEAD"))
    events: list[Event] = []
    result = turn(workspace, tmp_path, STRONG, WEAK, notify=events.append)

    record = result.records[0]
    assert record.promoted == "c1"
    ruling = record.ruling("c1")
    assert ruling is not None
    assert ruling.low is not None
    assert ruling.low > 0
    assert ruling.n_seeds == 2
    assert [metric.name for metric in ruling.secondary] == ["answer_tokens", "scoring_s", "training_s"]
    assert record.ruling("c2") is not None
    assert record.ruling("c2").verdict != "keep"  # type: ignore[union-attr]
    steps = [event.step for event in events if event.kind == "done"]
    assert steps[:5] == ["start", "begin", "plan", "validate", "smoke"]
    assert steps[-3:] == ["verdict", "decide", "commit"]

    assert (git(root, "status", "--porcelain"), git(root, "rev-parse", "HEAD")) == before
    assert git(root, "log", "--format=%s", "main..bakehouse/colours").count("\n") == 0
    body = git(root, "log", "-1", "--format=%B", "bakehouse/colours")
    for trailer in (
        "Bakehouse-Iteration: i0001",
        "Trial: ",
        "Recipe-Digest: ",
        "Data-Digest: ",
        "Planner: fixed",
    ):
        assert trailer in body

    worktree = workspace.worktree_dir
    kept = TrainRecipe.from_yaml(worktree / "recipe.yaml")
    assert kept.learning_rate == 0.005
    store = LineageStore(worktree / "lineage", lower_is_better=False)
    best = store.best()
    assert best is not None
    assert best.status is FailureLabel.KEEP
    (entry,) = load_entries(dirs=[worktree / "decide-entries"])
    assert entry.provenance is not None
    assert entry.provenance.recipe_digest == kept.digest
    selection = (worktree / "lineage" / "i0001-c1-s17" / "selection.jsonl").read_text()
    assert all(json.loads(line)["output"] is None for line in selection.splitlines())
    (costs,) = [one.extra["secondary"] for one in entry.findings if one.extra.get("candidate") == "c1"]
    assert costs[0].startswith("tokens an answer: ")
    assert (
        "deciding nothing: tokens an answer: " in (worktree / "lineage" / "i0001" / "report.html").read_text()
    )


def test_a_second_flywheel_continues_where_the_first_stopped(base: Path, tmp_path: Path) -> None:
    root = tmp_path / "w"
    root.mkdir()
    workspace = make_workspace(root, base, seeds=[17])
    first = turn(workspace, tmp_path, {**STRONG, "epochs": 6})
    trained: list[Mapping[str, Any]] = []

    def watch(spec: Mapping[str, Any], **paths: Any) -> Mapping[str, Any]:
        trained.append(spec)
        return run_here(spec, **paths)

    second = turn(workspace, tmp_path, {"lora_alpha": 8}, run_worker=watch)
    assert second.records[0].iteration_id == "i0002"
    assert first.incumbent.trial_id == "i0001-c1-s17"
    # The incumbent's scores came from the branch: only the new candidate was trained.
    ids = {member["trial_id"] for spec in trained if spec["kind"] == "train" for member in spec["members"]}
    assert {name for name in ids if "smoke" not in name} == {"i0002-c1-s17"}
    rows = LineageStore(workspace.worktree_dir / "lineage", lower_is_better=False).all_trials()
    assert [row.exp_id for row in rows] == ["i0001-incumbent-s17", "i0001-c1-s17", "i0002-c1-s17"]
    assert git(root, "log", "--format=%s", "main..bakehouse/colours").count("\n") == 1


@pytest.mark.parametrize("killed_in", ["train", "evaluate", "commit"])
def test_a_killed_iteration_is_finished_and_nothing_is_done_twice(
    base: Path, tmp_path: Path, killed_in: str
) -> None:
    root = tmp_path / "w"
    root.mkdir()
    workspace = make_workspace(root, base, seeds=[17])

    def die(event: Event) -> None:
        if event.step == killed_in and event.kind == "done":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        turn(workspace, tmp_path, STRONG, WEAK, notify=die)
    # What SIGKILL leaves of a file that was being written.
    (workspace.worktree_dir / "lineage").mkdir(exist_ok=True)
    (workspace.worktree_dir / "lineage" / ".selection.jsonl.673ivqlr.tmp").write_text(
        "half", encoding="utf-8"
    )
    result = turn(workspace, tmp_path, STRONG, WEAK)
    assert [record.iteration_id for record in result.records] == ["i0001"]
    rows = LineageStore(workspace.worktree_dir / "lineage", lower_is_better=False).all_trials()
    assert sorted(row.exp_id for row in rows) == ["i0001-c1-s17", "i0001-c2-s17", "i0001-incumbent-s17"]
    assert git(root, "rev-list", "--count", "main..bakehouse/colours") == "1"
    assert git(workspace.worktree_dir, "status", "--porcelain") == ""


def test_a_recipe_that_cannot_run_is_recorded_and_the_others_go_on(base: Path, tmp_path: Path) -> None:
    root = tmp_path / "w"
    root.mkdir()
    workspace = make_workspace(root, base, seeds=[17])
    result = turn(workspace, tmp_path, {"lora_layers": [99]}, STRONG)
    record = result.records[0]
    broken = record.candidates[0]
    assert broken.rejected is not None
    assert "99" in broken.rejected
    assert record.promoted == "c2"


def test_data_changed_while_it_runs_stops_the_flywheel(base: Path, tmp_path: Path) -> None:
    root = tmp_path / "w"
    root.mkdir()
    workspace = make_workspace(root, base, seeds=[17])

    def tamper(event: Event) -> None:
        if event.step == "train" and event.kind == "done":
            path = root / "data" / "selection.jsonl"
            path.write_text(path.read_text().replace("red", "RED"))

    with pytest.raises(TaskError, match="data/selection changed"):
        turn(workspace, tmp_path, WEAK, notify=tamper)
    assert git(root, "rev-list", "--count", "main..bakehouse/colours") == "0"


def test_a_leak_between_train_and_a_judged_split_is_refused_at_the_start(base: Path, tmp_path: Path) -> None:
    root = tmp_path / "w"
    root.mkdir()
    workspace = make_workspace(root, base)
    train = root / "data" / "train.jsonl"
    leaked = json.loads((root / "data" / "test.jsonl").read_text().splitlines()[0])
    train.write_text(train.read_text() + json.dumps({**leaked, "id": "mine"}) + "\n")
    with pytest.raises(LeakError, match="mine"):
        turn(workspace, tmp_path, WEAK)
    assert not workspace.worktree_dir.exists()


def test_a_second_flywheel_on_a_workspace_is_told_who_holds_it(base: Path, tmp_path: Path) -> None:
    root = tmp_path / "w"
    root.mkdir()
    workspace = make_workspace(root, base)
    with hold_workspace(workspace.state_dir, what="flywheel"), pytest.raises(LockHeldError, match="flywheel"):
        turn(workspace, tmp_path, WEAK)


def test_the_probe_step_asks_every_trial_where_there_is_a_probe_set(base: Path, tmp_path: Path) -> None:
    root = tmp_path / "w"
    root.mkdir()
    workspace = make_workspace(root, base, seeds=[17])
    first = turn(workspace, tmp_path, {"lora_alpha": 8})
    record = first.records[0]
    assert [guard.name for ruling in record.rulings for guard in ruling.guards] == [
        "forbidden outputs",
        "trained",
    ]
    questions = [{"qid": f"q{n}", "category": "c", "question": f"say {n}"} for n in range(3)]
    probe = root / "data" / "probe.jsonl"
    probe.write_text("".join(json.dumps(row) + "\n" for row in questions))
    second = turn(workspace, tmp_path, STRONG).records[0]
    ruling = second.ruling("c1")
    assert ruling is not None
    probed = next(guard for guard in ruling.guards if guard.name == "reasoning probe")
    # A model that never reasons has nothing to lose, and the guard says so instead of passing blindly.
    assert probed.passed
    assert "nothing" in probed.detail


def test_a_recipe_that_is_not_committed_is_refused_before_anything_is_spent(
    base: Path, tmp_path: Path
) -> None:
    root = tmp_path / "w"
    root.mkdir()
    workspace = make_workspace(root, base)
    recipe = root / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "notes: tried\n")
    with pytest.raises(TaskError, match="not committed"):
        turn(workspace, tmp_path, WEAK)
    assert not workspace.worktree_dir.exists()
