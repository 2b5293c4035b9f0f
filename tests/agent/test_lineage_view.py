"""The lineage as the flywheel reads it: what it calls best is what the next candidate has to beat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.incumbent import INCUMBENT_NAME
from agent.lineage_view import open_lineage
from agent.review.rejection import reject
from tests.agent.review_sample import Baked, make_baked
from tests.git_project import isolate_git
from tests.lineage_rows import make_trial
from tools.lineage import FailureLabel, LineageStore, Trial


def best_of(folder: Path) -> str | None:
    best = open_lineage(folder).best()
    return None if best is None else best.exp_id


def write_rows(folder: Path, *trials: Trial) -> Path:
    store = LineageStore(folder, lower_is_better=False)
    for trial in trials:
        store.append(trial)
    return folder


BASELINE = make_trial("i0001-incumbent-s17", status=FailureLabel.BASELINE, core_metric=0.5)
KEPT = make_trial("i0001-c1-s17", parent_exp="i0001-incumbent-s17", core_metric=0.6)
UNDECIDED = make_trial("i0002-c1-s17", status=FailureLabel.DISCARD, core_metric=0.9)


def test_a_trial_that_was_not_kept_is_not_best_however_high_it_scored(tmp_path: Path) -> None:
    write_rows(tmp_path, BASELINE, KEPT, UNDECIDED)
    assert best_of(tmp_path) == KEPT.exp_id
    (tmp_path / INCUMBENT_NAME).write_text(json.dumps({"torn": True}), encoding="utf-8")
    assert best_of(tmp_path) == KEPT.exp_id


def test_without_a_kept_trial_the_baseline_is_best_and_without_any_none(tmp_path: Path) -> None:
    assert best_of(write_rows(tmp_path / "a", BASELINE, UNDECIDED)) == BASELINE.exp_id
    assert best_of(tmp_path / "b") is None


@pytest.fixture
def baked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Baked:
    isolate_git(monkeypatch)
    return make_baked(tmp_path / "w")


def test_a_kept_trial_that_a_person_took_back_is_best_no_more(baked: Baked) -> None:
    baked.bake("i0001", promoted=None)
    lineage = baked.workspace.worktree_dir / "lineage"
    standing = best_of(lineage)
    baked.bake("i0002")
    assert best_of(lineage) == "i0002-c1-s17"
    reject(baked.workspace, "i0002", "only a test")
    assert best_of(lineage) == standing
