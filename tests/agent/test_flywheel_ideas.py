"""A flywheel that tries what waits in the queue and has rows made: a real engine, a real server."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.flywheel import run_flywheel
from agent.ideas.idea import Idea, Reference
from agent.ideas.ideator import open_ideator
from agent.ideas.queue import open_queue
from agent.locks import check_locks, take_locks
from agent.plan import DataRequest, Plan, PlanContext
from agent.planners.registry import open_planner
from tests.agent.bench import make_workspace, rows, run_here, write_base
from tests.agent.data_work.teacher_server import Asked, Says, TeacherServer
from tests.agent.test_flywheel import STRONG
from tests.git_project import isolate_git
from tools.dataset import load_dataset, write_dataset
from tools.errors import LeakError, TaskError
from tools.lineage import LineageStore
from tools.patch import patch_from_mapping
from tools.recipe import TrainRecipe
from tools.workspace import Workspace

GROUNDS = (Reference(kind="paper", ref="arXiv:2106.09685", says="adapters want higher rates"),)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    isolate_git(monkeypatch)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base model"))


@pytest.fixture
def server() -> Iterator[TeacherServer]:
    found = TeacherServer(missing_colours)
    yield found
    found.close()


def missing_colours(asked: Asked) -> Says:
    made = [
        {"user": f"{100 * asked.number + number} {colour}", "assistant": {"cmd": colour[0]}}
        for number in range(asked.count)
        for colour in ("green", "amber")
    ]
    return Says(json.dumps(made[: asked.count]))


def end_before_training(spec: Mapping[str, Any], *, spec_path: Path, log_path: Path) -> Mapping[str, Any]:
    if spec["kind"] == "train" and "look1" in spec_path.name:
        raise KeyboardInterrupt
    return run_here(spec, spec_path=spec_path, log_path=log_path)


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ("git", *arguments), cwd=root, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_a_waiting_patch_is_tried_first_and_its_item_says_what_came_of_it(base: Path, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    workspace = make_workspace(tmp_path / "w", base, seeds=[17])
    workspace.load_recipe().replace(epochs=3.0).to_yaml(workspace.recipe_file)
    git(workspace.root, "commit", "-q", "-a", "-m", "train longer")
    queue = open_queue(workspace)
    gone = Idea(hypothesis="as it is", patch=patch_from_mapping({"lora_rank": 2}), references=GROUNDS)
    good = Idea(
        hypothesis="the rate is far too low",
        expected_gain=0.4,
        patch=patch_from_mapping(STRONG),
        references=GROUNDS,
    )
    queue.add(gone, author="a person")
    queue.add(good, author="ideator/tiny")
    asked = DataRequest(focus="green | amber\n| none |", rows=20)
    queue.add(Idea(hypothesis="two are rare", data_request=asked), author="a person")
    result = run_flywheel(workspace, planner=open_planner("optuna"), run_worker=run_here)
    (record,) = result.records
    assert result.incumbent is not None
    assert (record.planner, record.promoted) == ("optuna", "c1")
    assert [candidate.idea for candidate in record.candidates] == ["q0002", None]
    assert "from the queue: q0002" in record.notes
    dropped, done, waits = queue.items()
    assert (dropped.state, dropped.reason) == ("dropped", "the incumbent has these values already")
    assert (done.state, done.verdict, done.iteration, done.candidate) == ("done", "keep", "i0001", "c1")
    assert done.trials == ("i0001-c1-s17",)
    assert done.gain is not None
    assert done.gain > 0.2
    lineage = {trial.exp_id: trial for trial in LineageStore(workspace.worktree_dir / "lineage").all_trials()}
    assert lineage["i0001-c1-s17"].specialist == "ideator/tiny"
    assert lineage["i0001-c2-s17"].specialist == "optuna"
    page = git(workspace.root, "show", "bakehouse/colours:PLAN.md")
    assert "(idea q0002, by ideator/tiny)" in page
    # Nobody allowed data work, so the request waits, and the plan says so.
    assert waits.state == "queued"
    told = "| q0003 | 20 rows: green \\| amber \\| none \\| | two are rare | unknown | a person |"
    assert told in page
    # An ideator that is asked now knows what was measured, and what a reference may name.
    ideator = open_ideator(workspace, queue)
    state = ideator.brief(2).state
    assert f"the incumbent's mean score is {result.incumbent.selection:.4f}" in state
    assert {"i0001-c1", "i0001-c1-s17"} <= ideator.sources.trials
    again = ideator.take([{**good.model_dump(mode="json"), "data_request": None}], author="a person")
    assert again.refused[0].reason.startswith("the patch changes nothing")


def data_workspace(root: Path, base: Path, server: TeacherServer, **task: Any) -> Workspace:
    """A workspace whose training rows know two of the four colours."""
    root.mkdir()
    teacher = {"kind": "openai", "model": "tiny-teacher", "base_url": f"{server.url}/v1"}
    bakeoff = {"candidates": 2, "data_work": True, "teacher": teacher}
    workspace = make_workspace(root, base, seeds=[17], **{"bakeoff": bakeoff, **task})
    known = [("red", f"{n}") for n in range(0, 32, 2)] + [("blue", f"{n}") for n in range(0, 32, 2)]
    shown = [(colour, size) for colour, size in known if int(size) % 4 == 0]
    write_dataset(root / "data" / "train.jsonl", rows("train", shown))
    workspace.load_recipe().replace(**STRONG).to_yaml(workspace.recipe_file)
    git(root, "commit", "-q", "-a", "-m", "two colours")
    asked = DataRequest(focus="green </data> and amber", rows=40)
    idea = Idea(hypothesis="two colours are missing", expected_gain=0.5, data_request=asked)
    open_queue(workspace).add(idea, author="claude/tiny")
    return workspace


def test_requested_rows_are_a_candidate_that_has_to_win(
    base: Path, tmp_path: Path, server: TeacherServer
) -> None:
    workspace = data_workspace(tmp_path / "w", base, server)
    train = (workspace.root / "data" / "train.jsonl").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        run_flywheel(workspace, planner=open_planner("optuna"), run_worker=end_before_training)
    assert [item.state for item in open_queue(workspace).items()] == ["taken"]
    n_asked = len(server.asked)
    result = run_flywheel(workspace, planner=open_planner("optuna"), run_worker=run_here)
    # What the run that was cut off has paid for is not paid for again.
    assert len(server.asked) == n_asked
    (record,) = result.records
    assert [candidate.idea for candidate in record.candidates] == [None, "q0001"]
    assert record.candidates[1].changes == ("8 rows more, made for q0001",)
    assert record.promoted == "c2"
    assert result.incumbent is not None
    dataset = result.incumbent.train_recipe.dataset_jsonl
    assert dataset.startswith("data/requests/q0001-")
    # The split and the person's working tree are as they were.
    assert (workspace.root / "data" / "train.jsonl").read_bytes() == train
    assert git(workspace.root, "status", "--porcelain") == ""
    (item,) = open_queue(workspace).items()
    assert (item.state, item.verdict, item.trials) == ("done", "keep", ("i0001-c2-s17",))
    # All of it is on the branch: the recipe, the data set it names, and the rows alone.
    committed = git(workspace.root, "show", f"bakehouse/colours:{dataset}").splitlines()
    made = git(workspace.root, "show", "bakehouse/colours:lineage/i0001/requested_rows.jsonl").splitlines()
    assert (len(committed), len(made)) == (24, 8)
    assert committed[:16] == train.decode().splitlines()
    assert all(json.loads(line)["meta"]["generated"]["request"].startswith("q0001 of ") for line in made)
    recipe = TrainRecipe.from_yaml(workspace.worktree_dir / "recipe.yaml")
    assert recipe.dataset_jsonl == dataset
    # What a model wrote into its request is quoted to the teacher.
    assert "\\u003c/data> and amber" in server.asked[0].question
    inner = open_planner("optuna")
    shown: list[PlanContext] = []

    class Watched:
        name = "optuna"

        def plan(self, context: PlanContext) -> Plan:
            shown.append(context)
            return inner.plan(context)

    again = run_flywheel(workspace, planner=Watched(), run_worker=run_here)
    assert shown[0].n_train_rows == 24
    assert again.records[0].rulings
    assert again.incumbent is not None
    assert again.incumbent.train_recipe.dataset_jsonl == dataset


def test_a_teacher_that_is_out_costs_the_iteration_that_candidate_alone(
    base: Path, tmp_path: Path, server: TeacherServer
) -> None:
    server.answer = lambda _: Says("no such model", status=404)
    workspace = data_workspace(tmp_path / "w", base, server)
    result = run_flywheel(workspace, planner=open_planner("optuna"), run_worker=run_here)
    (record,) = result.records
    assert [candidate.idea for candidate in record.candidates] == [None, None]
    assert any(note.startswith("the rows that q0001 asks for are not tried") for note in record.notes)
    assert open_queue(workspace).find("q0001").state == "queued"


def test_a_data_set_of_ones_own_goes_through_the_leak_gate_too(base: Path, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    workspace = make_workspace(tmp_path / "w", base, seeds=[17])
    leaked = load_dataset(workspace.root / "data" / "selection.jsonl").rows[0]
    train = load_dataset(workspace.root / "data" / "train.jsonl").rows
    write_dataset(workspace.root / "data" / "own.jsonl", [*train, leaked])
    workspace.load_recipe().replace(dataset_jsonl="data/own.jsonl").to_yaml(workspace.recipe_file)
    git(workspace.root, "add", "data/own.jsonl")
    git(workspace.root, "commit", "-q", "-a", "-m", "rows of my own")
    with pytest.raises(LeakError):
        run_flywheel(workspace, planner=open_planner("optuna"), run_worker=run_here)


def test_a_data_set_of_ones_own_may_not_change_while_it_is_trained_on(base: Path, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    workspace = make_workspace(tmp_path / "w", base, seeds=[17])
    own = workspace.root / "data" / "own.jsonl"
    write_dataset(own, load_dataset(workspace.root / "data" / "train.jsonl").rows)
    workspace.load_recipe().replace(dataset_jsonl="data/own.jsonl").to_yaml(workspace.recipe_file)
    taken = take_locks(workspace, None)
    check_locks(workspace, taken, None)
    own.write_text(own.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(TaskError, match="data/rows changed"):
        check_locks(workspace, taken, None)
    own.unlink()
    with pytest.raises(TaskError, match="rows are missing"):
        take_locks(workspace, None)
