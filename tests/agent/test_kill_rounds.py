"""The kill rounds: what they would catch, and two of them for real."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import kill_checks
from benchmarks.kill_checks import Ending, check_ground, compare, user_state
from tests.agent.review_sample import Baked, make_baked
from tests.git_project import isolate_git

ROOT = Path(__file__).parent.parent.parent
ALONE = Ending(
    trials=(("i0001-c1-s17", "keep", 0.9), ("i0001-c2-s17", "discard", 0.4)),
    subjects=("i0001: +5 points",),
    iterations=("i0001",),
    files=("lineage/results.tsv", "recipe.yaml"),
    recipe="lora_rank: 8",
    experiments=(1,),
    debited=("i0001-c1-s17", "i0001-c2-s17"),
    undecided_debits=0,
)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"trials": ALONE.trials[:1]}, "trial i0001-c2-s17 was lost"),
        ({"trials": ALONE.trials[:1] * 2 + ALONE.trials[1:]}, "trial i0001-c1-s17 is there 2 times"),
        (
            {"trials": (*ALONE.trials, ("i0002-c1-s17", "keep", 0.9))},
            "trial i0002-c1-s17 is one that nobody asked for",
        ),
        ({"trials": (("i0001-c1-s17", "keep", 0.8), ALONE.trials[1])}, "came out as ('keep', 0.8)"),
        ({"iterations": ("i0001", "i0001")}, "commit of i0001 is there 2 times"),
        ({"iterations": ()}, "commit of i0001 was lost"),
        ({"files": ALONE.files[:1]}, "file recipe.yaml was lost"),
        ({"experiments": (1, 1)}, "experiment 1 is there 2 times"),
        ({"subjects": ("i0001: keep the incumbent",)}, "the commits say"),
        ({"recipe": "lora_rank: 16"}, "another recipe.yaml"),
        ({"debited": ALONE.debited[:1]}, "debit of i0001-c2-s17 was lost"),
        ({"undecided_debits": 1}, "1 reservation(s) of the budget were never settled"),
    ],
)
def test_whatever_is_lost_doubled_or_changed_is_said(change: dict[str, object], fault: str) -> None:
    assert compare(ALONE, ALONE) == []
    faults = compare(ALONE, replace(ALONE, **change))  # type: ignore[arg-type]
    assert any(fault in text for text in faults), faults


@pytest.fixture
def baked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Baked:
    isolate_git(monkeypatch)
    monkeypatch.setattr(kill_checks, "_PATIENCE_S", 1.0)
    return make_baked(tmp_path / "w", "i0001")


def test_unsound_ground_is_said(baked: Baked) -> None:
    before = user_state(baked.root)
    assert check_ground(baked.workspace, before) == []
    (baked.worktree.root / "half.tmp").write_text("left by a kill")
    assert "half.tmp" in check_ground(baked.workspace, before)[0]
    baked.worktree.discard_changes()

    (baked.root / "task.yaml").write_text("name: other\n")
    assert check_ground(baked.workspace, before) == ["the user's branch, index or files changed"]
    baked.git("checkout", "-q", "--", "task.yaml")


def test_a_missing_object_is_said(baked: Baked) -> None:
    before = user_state(baked.root)
    blob = baked.git("rev-parse", "bakehouse/drone-router:AGENT_CONTEXT.md")
    (baked.root / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    assert any(blob in text for text in check_ground(baked.workspace, before))


def test_a_process_that_still_works_on_the_round_is_said(baked: Baked) -> None:
    before = user_state(baked.root)
    code = "import sys; sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code, str(baked.root / "spec.json")], stdin=subprocess.PIPE
    ) as child:
        faults = check_ground(baked.workspace, before)
        assert any(str(child.pid) in text for text in faults)
        assert child.stdin is not None
        child.stdin.close()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_rounds_of_real_kills_lose_and_double_nothing() -> None:
    script = ROOT / "benchmarks" / "kill_rounds.py"
    done = subprocess.run(
        [sys.executable, str(script), "--rounds", "2", "--iterations", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 of 2 rounds" in done.stdout
