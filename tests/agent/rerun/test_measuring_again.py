"""Re-runs on a tiny real model: what is measured again, and what the corpus says after it."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import time
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.corpus import current_environment, entry_is_stale
from agent.job_state import look_at_job
from agent.progress import Event
from agent.rerun.listing import Prospect, list_prospects, worst_s
from agent.rerun.session import Measured, measure_again
from agent.review.approval import approve, plan_approval
from agent.review.commits import find_iteration, open_branch
from agent.review.rejection import reject
from agent.watching import FlywheelView, Watcher
from tests.agent.bench import make_workspace, run_here, write_base
from tests.agent.test_cli import answer, bakehouse
from tests.agent.test_flywheel import STRONG, WEAK, git, turn
from tests.git_project import isolate_git
from tools.decisions import DecideEntry, decide, load_entries
from tools.errors import DecideError, TrainError
from tools.freshness import Environment, refresh, staleness
from tools.jobs import wait_job
from tools.lineage import LineageStore
from tools.model_digest import digest_base_model
from tools.repo import find_repo
from tools.task import BudgetCaps
from tools.workspace import Workspace
from tools.yaml_text import dump_yaml, parse_yaml

TWO_TRIALS = BudgetCaps(trials=2)


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    isolate_git(monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which one bakeoff kept c1 and a person approved it."""
    top = tmp_path_factory.mktemp("decided")
    with pytest.MonkeyPatch.context() as patch:
        isolate_git(patch)
        patch.setenv("OMP_NUM_THREADS", "1")
        root = top / "w"
        root.mkdir()
        workspace = make_workspace(root, write_base(top / "base"), seeds=[17])
        assert turn(workspace, top, STRONG, WEAK).records[0].promoted == "c1"
        _approve(workspace)
    return root


@pytest.fixture
def workspace(decided: Path, tmp_path: Path) -> Workspace:
    """A clone of it, as another machine has it: git, and no state folder."""
    root = tmp_path / "a clone"
    subprocess.run(("git", "clone", "-q", str(decided), str(root)), check=True)
    git(root, "config", "user.name", "Tester")
    git(root, "config", "user.email", "tester@example.org")
    return Workspace(root)


def look(workspace: Workspace, *named: str, days: int = 200) -> tuple[Prospect, ...]:
    today = date.today() + timedelta(days=days)  # noqa: DTZ011
    reports = refresh(dirs=[workspace.entries_dir], today=today)
    return list_prospects(workspace, reports, named=named, is_stale=entry_is_stale(workspace, 180))


def measure(workspace: Workspace, *named: str, **options: Any) -> tuple[Measured, ...]:
    settings = {"run_worker": run_here, **options}
    return measure_again(workspace, look(workspace, *named), **settings)


def only_entry(workspace: Workspace) -> DecideEntry:
    (entry,) = load_entries(dirs=[workspace.entries_dir])
    return entry


def worktree_entries(workspace: Workspace) -> dict[str, DecideEntry]:
    found = load_entries(dirs=[workspace.worktree_dir / "decide-entries"], lifecycle=None)
    return {entry.slug: entry for entry in found}


def test_a_decision_that_still_holds_is_confirmed_dated_anew_and_left_to_a_person(
    workspace: Workspace,
) -> None:
    root, old = workspace.root, only_entry(workspace)
    (root / "data" / "notes.txt").write_text("the user's own", encoding="utf-8")
    before = (git(root, "status", "--porcelain"), git(root, "rev-parse", "HEAD"))
    (prospect,) = look(workspace)
    assert prospect.obstacle is None
    assert prospect.reasons == ("200 days old, more than 180",)
    assert prospect.pair is not None
    assert (prospect.pair.candidate_trial, prospect.pair.seeds) == ("i0001-c1", (17,))

    views: list[FlywheelView] = []

    def watch(event: Event) -> None:
        if (event.step, event.kind) == ("train", "started"):
            views.append(Watcher(workspace).look())

    (done,) = measure(workspace, notify=watch)
    assert [(view.state, view.iteration, view.steps[-1].name) for view in views] == [
        ("running", "v0001", "train")
    ]
    assert (done.slug, done.state, done.rerun_id) == (old.slug, "confirmed", "v0001")
    assert done.gain == pytest.approx(old.provenance.effect)  # type: ignore[union-attr]
    assert (git(root, "status", "--porcelain"), git(root, "rev-parse", "HEAD")) == before
    # Until somebody approves it the old entry answers.
    assert only_entry(workspace).slug == old.slug

    assert git(root, "diff", "--name-only", "HEAD", "bakehouse/colours", "--", "recipe.yaml") == ""
    assert git(root, "diff", "--name-only", "HEAD", "bakehouse/colours", "--", "lineage/incumbent.json") == ""
    assert git(workspace.worktree_dir, "status", "--porcelain") == ""
    body = git(root, "log", "-1", "--format=%B", "bakehouse/colours")
    assert f"Measures-Again: {old.slug}" in body
    lineage = workspace.worktree_dir / "lineage"
    rows = LineageStore(lineage, lower_is_better=False).all_trials()
    assert [(row.exp_id, row.status.value) for row in rows][-2:] == [
        ("v0001-incumbent-s17", "baseline"),
        ("v0001-c1-s17", "discard"),
    ]
    assert rows[-1].notes.startswith("keep: selection rose")
    page = (lineage / "v0001" / "report.html").read_text(encoding="utf-8")
    assert f"<h1>Confirm {old.slug}, which picked i0001-c1</h1>" in page

    _approve(workspace)
    picked = decide("recipe", context={}, optimize_for="json_cmd_accuracy", dirs=[workspace.entries_dir])
    assert picked.pick == "i0001-c1"
    assert picked.entry.extra["rerun_of"] == old.slug
    assert picked.entry.supersedes == (old.slug,)
    assert [entry.slug for entry in load_entries(dirs=[workspace.entries_dir])] == [picked.entry.slug]


def test_a_decision_that_does_not_hold_any_more_is_replaced_and_a_reviewer_can_reject_that(
    workspace: Workspace,
) -> None:
    old = only_entry(workspace)

    def upside_down(spec: Mapping[str, Any], **paths: Any) -> Mapping[str, Any]:
        """A world in which what made one recipe good makes the other good."""
        names = [member["trial_id"] for member in spec.get("members", ())]
        if names == ["v0001-incumbent-s17", "v0001-c1-s17"]:
            one, two = spec["members"]
            here = {"output_dir": one["recipe"]["output_dir"]}
            there = {"output_dir": two["recipe"]["output_dir"]}
            turned = [
                {**one, "recipe": {**two["recipe"], **here}},
                {**two, "recipe": {**one["recipe"], **there}},
            ]
            spec = {**spec, "members": turned}
        return run_here(spec, **paths)

    (done,) = measure(workspace, run_worker=upside_down)
    assert done.state == "reversed"
    assert done.high is not None
    assert done.high < 0
    found = worktree_entries(workspace)
    assert found[old.slug].lifecycle == "superseded"
    (new,) = [entry for entry in found.values() if entry.lifecycle == "active"]
    assert new.findings[0].pick == "incumbent"
    assert new.provenance is not None
    assert new.provenance.effect == done.gain

    branch = open_branch(find_repo(workspace.root), workspace.load_task())
    commit = find_iteration(branch, "v0001")
    assert (commit.kind, commit.promoted, commit.entry) == ("iteration", None, new.slug)
    assert reject(workspace, "v0001", "one seed is too few").restored is None
    assert worktree_entries(workspace)[old.slug].lifecycle == "active"


def test_a_re_run_that_cannot_train_says_nothing_about_the_decision(workspace: Workspace) -> None:
    old = only_entry(workspace)

    def broken(spec: Mapping[str, Any], **paths: Any) -> Mapping[str, Any]:
        result = dict(run_here(spec, **paths))
        if "v0001-c1-s17" in [member["trial_id"] for member in spec.get("members", ())]:
            lost = {"status": "failed", "adapter_dir": None, "error": "the loss is not finite"}
            result["members"] = [
                {**one, **lost} if one["trial_id"] == "v0001-c1-s17" else one for one in result["members"]
            ]
        return result

    (done,) = measure(workspace, run_worker=broken)
    assert done.state == "undecided"
    assert "the loss is not finite" in done.why
    found = worktree_entries(workspace)
    assert found[old.slug].lifecycle == "active"
    (record,) = [entry for entry in found.values() if entry.slug != old.slug]
    assert (record.question, record.extra["outcome"]) == ("recheck", "undecided")
    # It is on record, so that the same is not spent again unless a person asks.
    (prospect,) = look(workspace)
    assert prospect.obstacle is not None
    assert record.slug in prospect.obstacle
    (again,) = measure(workspace, old.slug)
    assert again.state == "confirmed"
    found = worktree_entries(workspace)
    assert {found[slug].lifecycle for slug in (old.slug, record.slug)} == {"superseded"}


def test_on_the_base_model_of_today_the_answer_is_measured_beside_the_old_one(
    workspace: Workspace, tmp_path: Path
) -> None:
    old = only_entry(workspace)
    base = write_base(tmp_path / "another base")
    workspace.load_recipe().replace(base_model=str(base)).to_yaml(workspace.recipe_file)
    git(workspace.root, "commit", "-q", "-a", "-m", "Move to another base model")
    now = Environment(base_model=str(base))
    (report,) = refresh(dirs=[workspace.entries_dir], environment=now)
    assert report.reasons[0].startswith("the base model was")
    stale = entry_is_stale(workspace, 180)
    prospects = list_prospects(workspace, [report], is_stale=stale)
    (done,) = measure_again(workspace, prospects, run_worker=run_here)
    assert done.state == "confirmed"
    found = worktree_entries(workspace)
    assert {entry.lifecycle for entry in found.values()} == {"active"}
    (new,) = [entry for entry in found.values() if entry.slug != old.slug]
    assert new.context["base_model"] == str(base)
    assert new.provenance is not None
    assert new.provenance.base_model == str(base)
    (again,) = list_prospects(workspace, [report], is_stale=stale)
    assert new.slug in str(again.obstacle)


def test_other_weights_under_the_same_name_make_a_decision_stale(
    workspace: Workspace, tmp_path: Path
) -> None:
    old = only_entry(workspace)
    assert old.provenance is not None
    assert old.provenance.base_model_digest is not None
    now = current_environment(workspace)
    assert staleness(old, today=old.created, environment=now) == ()
    weights = shutil.copytree(str(now.base_model), tmp_path / "base")
    data = bytearray((weights / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (weights / "model.safetensors").write_bytes(data)
    moved = dataclasses.replace(now, base_model_digest=digest_base_model(str(weights)))
    (reason,) = staleness(old, today=old.created, environment=moved)
    assert reason.startswith("the base model's digest was ")


def test_recipes_that_do_not_train_here_leave_no_trace_on_the_branch(workspace: Workspace) -> None:
    def gone(spec: Mapping[str, Any], **paths: Any) -> Mapping[str, Any]:
        raise TrainError("the engine ended with exit code 1: a library is missing")

    (done,) = measure(workspace, run_worker=gone)
    assert done.state == "not run"
    assert "a library is missing" in done.why
    assert git(workspace.root, "rev-list", "--count", "main..bakehouse/colours") == "0"
    # Nothing was measured, so nothing keeps it from being tried again.
    assert look(workspace)[0].pair is not None
    assert measure(workspace)[0].state == "confirmed"


@pytest.mark.parametrize("killed_in", ["train", "commit"])
def test_a_re_run_that_is_killed_is_finished_and_nothing_is_done_twice(
    workspace: Workspace, killed_in: str
) -> None:
    def die(event: Event) -> None:
        if event.step == killed_in and event.kind == "done":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(workspace, notify=die, caps=TWO_TRIALS)
    # The same caps again: what was begun under them is finished under them.
    (done,) = measure(workspace, caps=TWO_TRIALS)
    assert (done.state, done.rerun_id) == ("confirmed", "v0001")
    rows = LineageStore(workspace.worktree_dir / "lineage", lower_is_better=False).all_trials()
    names = [row.exp_id for row in rows]
    assert len(names) == len(set(names))
    assert sum(name.startswith("v0001-") for name in names) == 2
    assert git(workspace.root, "rev-list", "--count", "main..bakehouse/colours") == "1"
    assert git(workspace.worktree_dir, "status", "--porcelain") == ""


def test_what_the_budget_does_not_cover_is_not_started(workspace: Workspace) -> None:
    for caps, said in ((BudgetCaps(trials=1), "trial"), (BudgetCaps(wall_s=0.001), "wall")):
        (done,) = measure(workspace, caps=caps)
        assert done.state == "not run"
        assert said in done.why
    assert git(workspace.root, "rev-list", "--count", "main..bakehouse/colours") == "0"


def test_in_a_task_whose_searches_halt_losers_both_sides_are_trained_to_the_end(workspace: Workspace) -> None:
    task = parse_yaml(workspace.task_file.read_text(encoding="utf-8"))
    task["bakeoff"]["search"] = {"rungs": [0.25, 0.5]}
    workspace.task_file.write_text(dump_yaml(task), encoding="utf-8")
    (done,) = measure(workspace)
    assert done.state == "confirmed", done.why


def test_a_re_run_that_a_cap_ends_goes_on_when_more_is_given(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.rerun.listing._OVERHEAD_S", 0.0)
    (prospect,) = look(workspace)
    assert prospect.pair is not None
    worst = worst_s(prospect.pair)
    assert worst is not None

    def stuck(spec: Mapping[str, Any], *, timeout_s: float, **paths: Any) -> Mapping[str, Any]:
        """A worker that never ends, which the lane ends when its time is over."""
        time.sleep(timeout_s + 0.05)
        raise TrainError("the engine was ended after its time")

    (cut,) = measure(workspace, caps=BudgetCaps(wall_s=worst + 1.0), run_worker=stuck)
    assert (cut.state, cut.rerun_id) == ("not run", "v0001")
    assert "goes on when the command is given more" in cut.why
    assert git(workspace.root, "rev-list", "--count", "main..bakehouse/colours") == "0"
    (done,) = measure(workspace)
    assert (done.state, done.rerun_id) == ("confirmed", "v0001")


def _change_rows(root: Path) -> None:
    path = root / "data" / "selection.jsonl"
    path.write_text("\n".join(path.read_text(encoding="utf-8").splitlines()[1:]) + "\n", encoding="utf-8")


def _change_level(root: Path) -> None:
    text = (root / "task.yaml").read_text(encoding="utf-8")
    (root / "task.yaml").write_text(f"{text}level: 0.9\n", encoding="utf-8")


def _forget_provenance(root: Path) -> None:
    (path,) = (root / "decide-entries").iterdir()
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: text.index("provenance:")], encoding="utf-8")


def _change_digest(root: Path) -> None:
    (path,) = (root / "decide-entries").iterdir()
    lines = path.read_text(encoding="utf-8").splitlines()
    changed = [f"  recipe_digest: '{'0' * 64}'" if "recipe_digest" in line else line for line in lines]
    path.write_text("\n".join(changed), encoding="utf-8")


def _rename(root: Path) -> None:
    (path,) = (root / "decide-entries").iterdir()
    slug = path.stem
    path.write_text(path.read_text(encoding="utf-8").replace(slug, "made-elsewhere"), encoding="utf-8")


def _lead_out(root: Path) -> None:
    (path,) = (root / "decide-entries").iterdir()
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("- i0001-c1-s17", "- ../../i0001-c1-s17"), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_change_rows, "data/selection changed"),
        (_change_level, "level in task.yaml changed"),
        (_forget_provenance, "no provenance"),
        (_change_digest, "another Recipe-Digest than the entry"),
        (_rename, "no commit of this repository made it"),
        (_lead_out, "not named as a bakeoff names them"),
    ],
)
def test_an_entry_whose_ground_is_gone_is_not_re_run_and_says_why(
    workspace: Workspace, change: Any, said: str
) -> None:
    change(workspace.root)
    (prospect,) = look(workspace)
    assert prospect.pair is None
    assert said in str(prospect.obstacle)


def test_fresh_entries_are_measured_again_only_by_name_and_unknown_names_are_refused(
    workspace: Workspace,
) -> None:
    slug = only_entry(workspace).slug
    assert look(workspace, days=10) == ()
    (prospect,) = look(workspace, slug, days=10)
    assert prospect.reasons == ()
    assert prospect.pair is not None
    with pytest.raises(DecideError, match="no entry is named"):
        look(workspace, "of-another-corpus")


def test_the_command_says_what_it_would_do_then_does_it_and_tells_a_program(workspace: Workspace) -> None:
    slug = only_entry(workspace).slug
    asked = ("refresh", "--rerun", "--entry", slug, "--entry", "2026-05-22-paired-bakeoff")
    mine, shipped = answer(*asked, "--dry-run", cwd=workspace.root)
    assert (mine["candidate"], mine["seeds"], mine["trials"]) == ("i0001-c1", [17], 2)
    assert mine["worst_s"] > 0
    assert (shipped["runnable"], shipped["trials"]) == (False, None)
    assert "no provenance" in shipped["why_not"]
    assert not (workspace.state_dir / "reruns.jsonl").exists()

    capped = ("--budget-hours", "1", "--budget-trials", "2")
    job = answer(*asked, *capped, "--detach", cwd=workspace.root)
    ended = wait_job(workspace.jobs_dir, job["id"], timeout_s=240)
    assert ended.status == "succeeded", ended.log_tail(20)
    told = look_at_job(workspace, ended).result
    assert told is not None
    assert f"{slug}: confirmed: Confirm" in told
    assert load_entries(dirs=[workspace.worktree_dir / "decide-entries"])[0].slug.endswith("v0001")
    refused = bakehouse("refresh", "--detach", cwd=workspace.root)
    assert refused.returncode == 2
    assert "--rerun" in refused.stderr


def _approve(workspace: Workspace) -> None:
    repo = find_repo(workspace.root)
    approve(repo, plan_approval(open_branch(repo, workspace.load_task()), None))
