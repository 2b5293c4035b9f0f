"""The pair behind an entry, found in git again: which candidate, which recipes, which seeds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from agent.records import IterationRecord, RulingRecord
from agent.rerun.outcome import build_entry, judge, tell
from agent.rerun.pair import Pair, find_pair
from tests.agent.review_sample import Baked, make_baked
from tests.bakeoff_sample import TASK
from tests.git_project import isolate_git
from tools.decisions import DecideEntry, load_entries
from tools.errors import RerunError
from tools.repo import find_repo


@pytest.fixture
def baked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Baked:
    isolate_git(monkeypatch)
    return make_baked(tmp_path / "w")


def entry_of(baked: Baked, iteration_id: str, promoted: str | None) -> DecideEntry:
    baked.bake(iteration_id, promoted=promoted)
    found = load_entries(dirs=[baked.workspace.worktree_dir / "decide-entries"])
    return next(entry for entry in found if entry.slug.endswith(iteration_id))


def pair_of(baked: Baked, entry: DecideEntry) -> Pair:
    return find_pair(find_repo(baked.root), TASK, entry)


def test_a_kept_candidate_is_found_with_the_incumbent_of_its_time(baked: Baked) -> None:
    entry_of(baked, "i0001", "c1")
    entry = entry_of(baked, "i0002", "c1")
    pair = pair_of(baked, entry)
    assert (pair.candidate_trial, pair.was_kept) == ("i0002-c1", True)
    # The incumbent of i0002 is what i0001 kept.
    assert pair.incumbent.learning_rate != pair.candidate.learning_rate
    assert pair.seeds
    assert pair.n_trials == 2 * len(pair.seeds)
    assert pair.recorded_s is not None
    assert pair.recorded_s > 0


def test_of_candidates_that_were_not_kept_the_one_of_the_entrys_effect_is_taken(baked: Baked) -> None:
    entry = entry_of(baked, "i0001", None)
    pair = pair_of(baked, entry)
    assert not pair.was_kept
    best = max(baked.record.rulings, key=lambda ruling: ruling.gain if ruling.gain is not None else -1.0)
    assert pair.candidate_trial == f"i0001-{best.candidate_id}"
    assert entry.provenance is not None
    lost = dataclasses.replace(entry, provenance=dataclasses.replace(entry.provenance, effect=0.123))
    with pytest.raises(RerunError, match="cannot be told"):
        pair_of(baked, lost)


def ruling(verdict: str, gain: float | None = 0.1) -> RulingRecord:
    values = {"candidate_id": "c1", "verdict": verdict, "reason": f"as measured: {verdict}", "gain": gain}
    return RulingRecord.model_validate(values | {"low": 0.05, "high": 0.15, "level": 0.95, "n_items": 120})


@pytest.mark.parametrize(
    ("promoted", "verdict", "outcome"),
    [
        ("c1", "keep", "confirmed"),
        ("c1", "discard", "reversed"),
        ("c1", "inconclusive", "undecided"),
        (None, "keep", "reversed"),
        (None, "discard", "confirmed"),
        (None, "inconclusive", "confirmed"),
    ],
)
def test_an_outcome_and_its_entry_follow_from_what_was_answered_and_what_is_ruled(
    baked: Baked, promoted: str | None, verdict: str, outcome: str
) -> None:
    pair = pair_of(baked, entry_of(baked, "i0001", promoted))
    found = judge(pair, ruling(verdict))
    assert found == outcome
    old = pair.entry.findings[0].pick
    turned = "incumbent" if promoted else pair.candidate_trial
    entry = new_entry(baked, pair, ruling(verdict), base_model=str(pair.provenance.base_model))
    assert entry.findings[0].pick == (turned if outcome == "reversed" else old)
    assert entry.supersedes == (() if outcome == "undecided" else (pair.entry.slug,))
    assert entry.question == ("recheck" if outcome == "undecided" else "recipe")
    assert entry.extra == {"rerun_of": pair.entry.slug, "outcome": outcome}
    assert entry.provenance is not None
    assert entry.provenance.effect == 0.1


def test_what_could_not_be_measured_decides_nothing(baked: Baked) -> None:
    pair = pair_of(baked, entry_of(baked, "i0001", "c1"))
    assert judge(pair, None) == "undecided"
    assert judge(pair, ruling("discard", gain=None)) == "undecided"
    assert "out of memory" in tell(pair, None, "undecided", "v0001-c1-s17: out of memory")


def test_on_another_base_model_both_entries_stand(baked: Baked) -> None:
    pair = pair_of(baked, entry_of(baked, "i0001", "c1"))
    entry = new_entry(baked, pair, ruling("discard"), base_model="another-1b")
    assert entry.supersedes == ()
    assert entry.context["base_model"] == "another-1b"
    assert pair.entry.context["base_model"] != "another-1b"


def new_entry(baked: Baked, pair: Pair, found: RulingRecord, *, base_model: str) -> DecideEntry:
    candidate = next(one for one in baked.record.candidates if one.candidate_id == "c1")
    record: IterationRecord = baked.record.model_copy(
        update={"iteration_id": "v0001", "candidates": (candidate,), "rulings": (found,)}
    )
    return build_entry(
        pair,
        record,
        judge(pair, found),
        recipe_digest="0" * 64,
        base_model=base_model,
        base_model_digest="2" * 64,
        task_name=TASK.name,
        commit="1" * 40,
    )
