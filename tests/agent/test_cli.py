"""The command line as a person uses it, on a tiny real model: real children, real commits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.agent.bench import make_workspace, write_base, write_plan
from tests.agent.test_flywheel import STRONG
from tests.git_project import isolate_git
from tools.workspace import Workspace


def bakehouse(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "agent", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def answer(*arguments: str, cwd: Path) -> Any:
    """Run a reading command with --json; stdout is JSON and nothing else."""
    done = bakehouse(*arguments, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after one bakeoff through the command line."""
    with pytest.MonkeyPatch.context() as patch:
        isolate_git(patch)
        root = tmp_path_factory.mktemp("cli") / "a workspace"
        root.mkdir()
        make_workspace(root, write_base(root.parent / "base"), seeds=[17])
        plan = write_plan(root.parent / "plan.yaml", STRONG)
        done = bakehouse("bakeoff", "--plan", str(plan), cwd=root)
        assert done.returncode == 0, done.stderr
        (root / "printed.txt").write_text(done.stdout, encoding="utf-8")
    return root


def test_a_bakeoff_prints_trials_decision_commit_and_report(baked: Path) -> None:
    printed = (baked / "printed.txt").read_text(encoding="utf-8")
    joined = " ".join(printed.split())
    for part in (
        "i0001-c1-s17",
        "Decision: Keep c1",
        "git log",
        "lineage/results.tsv",
        "report.html",
        "stopped:",
    ):
        assert part in joined, part
    page = next(line for line in printed.splitlines() if line.startswith("report: ")).removeprefix("report: ")
    assert Path(page).read_text(encoding="utf-8").startswith("<!doctype html>")


def test_status_reads_the_branch(baked: Path) -> None:
    facts = answer("status", cwd=baked)
    assert facts["incumbent"] == "i0001-c1-s17"
    assert facts["unmerged_commits"] == 1
    assert facts["running"] is None
    assert facts["selection"] > 0.9
    # Of a run in this journal, or of another that went before: without caps nothing is left or short.
    assert set(facts["budget"]) == {"run", "spent", "left"}
    assert set(facts["budget"]["left"].values()) == {None}


def test_status_says_so_where_the_journal_cannot_tell_what_was_spent(baked: Path) -> None:
    journal = Workspace(baked).journal_file
    kept = journal.read_bytes()
    journal.write_bytes(kept * 2)
    try:
        facts = answer("status", cwd=baked)
        assert facts["budget"] == {"run": None, "spent": None, "left": None}
    finally:
        journal.write_bytes(kept)


def test_lineage_shows_trials_that_are_not_merged_yet(baked: Path) -> None:
    rows = answer("lineage", cwd=baked)
    assert [row["exp_id"] for row in rows] == ["i0001-incumbent-s17", "i0001-c1-s17"]
    assert [row["status"] for row in rows] == ["baseline", "keep"]


def test_an_entry_counts_once_the_branch_is_merged(baked: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["git", "clone", "-q", str(baked), str(copy)], check=True)
    question = ("decide", "recipe", "--optimize-for", "json_cmd_accuracy", "--context", "task=colours")
    assert "no" in bakehouse(*question, cwd=copy).stderr
    subprocess.run(["git", "merge", "-q", "origin/bakehouse/colours"], cwd=copy, check=True)
    assert answer(*question, cwd=copy)["pick"] == "i0001-c1"
    (report,) = [row for row in answer("refresh", cwd=copy) if "colours" in row["slug"]]
    assert report["stale"] is False


def test_validate_and_inspect_say_what_is_trained_on(baked: Path) -> None:
    facts = answer("validate", cwd=baked)
    assert facts["ok"] is True
    assert facts["rows"] == {"train": 32, "dev": 32, "selection": 32, "test": 32}
    shown = bakehouse("inspect", "--rows", "1", cwd=baked)
    assert '{"cmd": "r"}' in shown.stdout
    assert "supervised" in shown.stdout


def test_the_sealed_split_is_opened_by_the_report_alone_and_counted(baked: Path) -> None:
    refused = bakehouse("eval", "--split", "test", cwd=baked)
    assert refused.returncode == 1
    assert "--open-test" in refused.stderr
    first = answer("report", "--open-test", cwd=baked)["test"]
    assert first["look"] == 1
    assert [score["name"] for score in first["scores"]] == ["base model", "starting recipe", "best recipe"]
    assert first["scores"][2]["mean"] > 0.9
    assert answer("report", "--open-test", cwd=baked)["test"]["look"] == 2
    looks = subprocess.run(
        ["git", "show", "bakehouse/colours:lineage/test-looks.jsonl"],
        cwd=baked,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [json.loads(line)["look"] for line in looks.stdout.splitlines()] == [1, 2]


def test_a_detached_training_is_polled_to_its_end(baked: Path) -> None:
    started = answer("train", "--detach", "--key", "night", cwd=baked)
    again = answer("train", "--detach", "--key", "night", cwd=baked)
    assert again["id"] == started["id"]
    ended = answer("poll", started["id"], "--wait-s", "120", cwd=baked)
    assert ended["status"] == "succeeded", ended
    run = answer("poll", str(baked / ".bakehouse" / "runs" / "runs-full"), cwd=baked)
    assert run["latest_iter"] == 8
    scored = answer("eval", "--adapter", ".bakehouse/runs/runs-full/iter_0000008", cwd=baked)
    assert scored["n"] == 32


def test_an_error_is_one_readable_message_and_exit_code_1(tmp_path: Path) -> None:
    done = bakehouse("status", cwd=tmp_path)
    assert done.returncode == 1
    assert "bakehouse init" in done.stderr
    assert "Traceback" not in done.stderr


def test_init_makes_a_workspace_that_validates_once_it_has_rows(tmp_path: Path) -> None:
    done = bakehouse("init", "my-task", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = {path.name for path in (tmp_path / "my-task").iterdir()}
    assert {"task.yaml", "recipe.yaml", "mission.md", "BACKGROUND.md", "system_prompt.md", "llm.txt"} <= made
    assert {"data", "decide-entries", "lineage", ".git", ".gitignore"} <= made
    empty = bakehouse("validate", cwd=tmp_path / "my-task")
    assert empty.returncode == 1
    assert "train.jsonl" in empty.stderr
    assert bakehouse("init", "my-task", cwd=tmp_path).returncode == 1


def test_the_envelope_of_a_model_and_of_a_size(baked: Path) -> None:
    base = str(baked.parent / "base")
    found = answer("envelope", base, "--ctx", "128", cwd=baked)
    assert found["bf16"]["fits"] is True
    assert found["fp32"]["weight_bytes"] == pytest.approx(2 * found["bf16"]["weight_bytes"], abs=2)
    assert "out of envelope" in answer("envelope", "400B bf16", "--spark", cwd=baked)["envelope"]
    assert bakehouse("envelope", "no/such/model/here", cwd=baked).returncode == 1
