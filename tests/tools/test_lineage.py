"""What the lineage answers: the best, the chain, the prompt; and what it refuses to hold."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from tests.lineage_rows import make_trial
from tools.errors import LineageError
from tools.lineage import FailureLabel, LineageStore, Trial


def store_of(root: Path, *trials: Trial, lower_is_better: bool = True) -> LineageStore:
    store = LineageStore(root, lower_is_better=lower_is_better)
    for trial in trials:
        store.append(trial)
    return store


def test_the_statuses_are_the_ten_documented_ones_and_only_an_abort_says_nothing() -> None:
    assert [label.value for label in FailureLabel] == [
        "keep",
        "discard",
        "crash",
        "eval_budget_overrun",
        "train_budget_overrun",
        "size_blocked",
        "preflight_crash",
        "harness_abort",
        "disqualified",
        "baseline",
    ]
    assert [label for label in FailureLabel if not label.is_informational] == [FailureLabel.HARNESS_ABORT]


def test_a_trial_is_frozen_has_seventeen_columns_and_comes_back_from_its_row() -> None:
    trial = make_trial("001", core_metric=1e-05, train_s=None, notes="n")
    assert len(Trial.header()) == 17
    assert Trial.from_row(dict(zip(Trial.header(), trial.to_row(), strict=True))) == trial
    assert hash(trial) == hash(dataclasses.replace(trial))
    with pytest.raises(dataclasses.FrozenInstanceError):
        trial.notes = "other"  # type: ignore[misc]


def test_a_trial_read_from_a_file_is_as_frozen_and_equal_as_one_made_by_hand(tmp_path: Path) -> None:
    trial = make_trial("001", hypothesis="a", core_metric=0.25)
    (read,) = store_of(tmp_path, trial).all_trials()
    assert read == trial
    assert hash(read) == hash(trial)
    with pytest.raises(dataclasses.FrozenInstanceError):
        read.notes = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("column", "cell", "said"), [("status", "great", "great"), ("train_s", "soon", "train_s is 'soon'")]
)
def test_a_row_with_an_unknown_status_or_a_word_for_a_number_is_refused(
    column: str, cell: str, said: str
) -> None:
    row = dict(zip(Trial.header(), make_trial("001").to_row(), strict=True))
    with pytest.raises(LineageError, match=said):
        Trial.from_row(row | {column: cell})


@pytest.mark.parametrize("lower_is_better", [True, False])
@pytest.mark.parametrize(
    "unfit",
    [
        {"core_metric": math.nan},
        {"core_metric": math.inf},
        {"core_metric": -math.inf},
        {"core_metric": None},
        *[
            {"core_metric": metric, "status": status}
            for metric in (0.0, 1.0)
            for status in (
                FailureLabel.CRASH,
                FailureLabel.PREFLIGHT_CRASH,
                FailureLabel.HARNESS_ABORT,
                FailureLabel.DISQUALIFIED,
            )
        ],
    ],
    ids=str,
)
def test_what_did_not_run_to_a_finite_metric_is_never_best(
    tmp_path: Path, lower_is_better: bool, unfit: dict[str, object]
) -> None:
    store = store_of(
        tmp_path, make_trial("bad", **unfit), make_trial("good"), lower_is_better=lower_is_better
    )
    best = store.best()
    assert best is not None
    assert best.exp_id == "good"
    assert store.render_prompt("opt").current_best.exp_id == "good"
    alone = store_of(tmp_path / "alone", make_trial("bad", **unfit), lower_is_better=lower_is_better)
    assert alone.best() is None
    assert "none yet" in alone.render_prompt("opt").rendered_prompt


def test_the_best_follows_the_direction_and_the_first_wins_a_tie(tmp_path: Path) -> None:
    trials = [make_trial(name, core_metric=metric) for name, metric in zip("abcd", (2, 1, 1, 2), strict=True)]
    for lower, name in ((True, "b"), (False, "a")):
        best = store_of(tmp_path / name, *trials, lower_is_better=lower).best()
        assert best is not None
        assert best.exp_id == name


def test_a_baseline_that_waits_for_its_metric_is_best_until_something_is_measured(tmp_path: Path) -> None:
    baseline = make_trial("000", status=FailureLabel.BASELINE, core_metric=None)
    store = store_of(tmp_path, make_trial("x", status=FailureLabel.CRASH, core_metric=None), baseline)
    assert store.best() == baseline
    store.append(make_trial("001"))
    assert store.best() == make_trial("001")


def test_the_trial_that_the_search_holds_to_be_best_is_best_whatever_the_metrics_say(tmp_path: Path) -> None:
    root = make_trial("000", status=FailureLabel.BASELINE, core_metric=0.4)
    kept = make_trial("001", parent_exp="000", core_metric=0.6)
    lucky = make_trial("002", parent_exp="001", core_metric=0.9, status=FailureLabel.DISCARD)
    plain = store_of(tmp_path, root, kept, lucky, lower_is_better=False)
    assert plain.best() == lucky
    told = LineageStore(tmp_path, lower_is_better=False, standing="001")
    assert told.best() == kept
    snapshot = told.render_prompt("opt")
    assert snapshot.current_best == kept
    assert snapshot.chain_to_best == (root, kept)
    assert "Current best: **exp_001**" in snapshot.rendered_prompt
    assert LineageStore(tmp_path, lower_is_better=False, standing="gone").best() == lucky


def test_unmeasured_keeps_come_last_in_the_leaderboard_in_both_directions(tmp_path: Path) -> None:
    trials = [make_trial("none", core_metric=None), make_trial("nan", core_metric=math.nan), make_trial("a")]
    for lower in (True, False):
        store = store_of(tmp_path / str(lower), *trials, lower_is_better=lower)
        assert store.render_prompt("opt").top_k_leaderboard[0].exp_id == "a"


def test_a_chain_leads_from_the_root_and_ends_at_a_missing_parent_and_in_a_cycle(tmp_path: Path) -> None:
    parents = {"a": "", "b": "a", "c": "b", "x": "gone", "self": "self", "p": "q", "q": "p"}
    store = store_of(tmp_path, *(make_trial(name, parent_exp=parent) for name, parent in parents.items()))
    chains = {name: [trial.exp_id for trial in store.chain_to(name)] for name in parents}
    assert chains["c"] == ["a", "b", "c"]
    assert chains["x"] == ["x"]
    assert chains["self"] == ["self"]
    assert chains["p"] == ["q", "p"]


def test_a_chain_to_an_unknown_trial_is_a_key_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(KeyError) as raised:
        store_of(tmp_path, make_trial("a")).chain_to("zz")
    assert isinstance(raised.value, LineageError)
    assert str(raised.value) == f"exp_id 'zz' is not in {tmp_path / 'results.tsv'}"


def test_none_of_the_last_is_none_and_not_all(tmp_path: Path) -> None:
    store = store_of(tmp_path, *(make_trial(str(number)) for number in range(5)))
    assert [trial.exp_id for trial in store.latest(2)] == ["3", "4"]
    assert store.latest(0) == store.latest(-1) == ()
    snapshot = store.render_prompt("opt", recent_n=0, last_m_full=0, top_k=1)
    assert snapshot.recent_n_activity == snapshot.last_m_with_full_hypothesis == ()
    assert "Recent Activity (last 0)" in snapshot.rendered_prompt
    assert "exp_4" not in snapshot.rendered_prompt


def test_a_store_finds_a_trial_by_name_and_appends_it_once(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    assert store.find("001") is None
    assert store.append_once(make_trial("001", notes="first"))
    assert not store.append_once(make_trial("001", notes="second"))
    assert not LineageStore(tmp_path).append_once(make_trial("001"))
    found = store.find("001")
    assert found is not None
    assert found.notes == "first"
    assert len(store.all_trials()) == 1


@pytest.mark.parametrize(
    ("trial", "said"),
    [
        (make_trial(""), "exp_id is empty"),
        (make_trial("a\nb"), "control characters"),
        (make_trial("a", parent_exp="b\tc"), "parent_exp"),
        (make_trial("a", core_metric="soon"), "core_metric is 'soon'"),
        (make_trial("a", status="great"), "status is 'great'"),
        (make_trial("a", notes="x" * 131_073), "shorten it"),
        (make_trial("a", notes="\udcff"), "no Unicode"),
    ],
)
def test_a_row_that_could_not_be_read_back_is_refused_and_writes_nothing(
    tmp_path: Path, trial: Trial, said: str
) -> None:
    store = store_of(tmp_path, make_trial("000"))
    before = store.results_path.read_bytes()
    with pytest.raises(LineageError, match=said):
        store.append(trial)
    assert store.results_path.read_bytes() == before


HOSTILE = (
    "# Heading\n## LEADERBOARD.md\r\n| 999 | 0.0 | x |\t`code`\n```\n- **exp_id**: 999"
    "\x0b# vt\x0c# ff\x85# nel\u2028# ls"
)


@pytest.mark.parametrize("name", ["hypothesis", "notes", "specialist", "snapshot_path", "domain", "job_name"])
def test_text_in_a_row_adds_no_line_no_heading_and_no_cell_to_the_prompt(tmp_path: Path, name: str) -> None:
    tame = store_of(tmp_path / "tame", make_trial("001", **{name: "tame"})).render_prompt("opt")
    hostile = store_of(tmp_path / "hostile", make_trial("001", **{name: HOSTILE})).render_prompt("opt")
    before, after = tame.rendered_prompt.splitlines(), hostile.rendered_prompt.splitlines()
    assert len(after) == len(before)
    for was, now in zip(before, after, strict=True):
        assert now.startswith("#") == was.startswith("#")
        assert now.startswith("```") == was.startswith("```")
        if was.startswith("|"):
            assert count_cells(now) == count_cells(was)


def test_what_the_caller_passes_adds_no_line_either(tmp_path: Path) -> None:
    store = store_of(tmp_path, make_trial("001"))
    plain = store.render_prompt("opt", session_timestamp="T").rendered_prompt
    text = store.render_prompt(f"opt{HOSTILE}", session_timestamp=f"T{HOSTILE}").rendered_prompt
    assert len(text.splitlines()) == len(plain.splitlines())


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="a\\|`# \t\n", max_size=12))
def test_no_run_of_backslashes_and_pipes_opens_a_cell(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    root = tmp_path_factory.mktemp("store")
    prompt = store_of(root, make_trial("001", hypothesis=text)).render_prompt("opt").rendered_prompt
    rows = [line for line in prompt.splitlines() if line.startswith("| 001 |")]
    assert [count_cells(row) for row in rows] == [5, 5]


def count_cells(row: str) -> int:
    """Count the cells of a Markdown table row as GitHub does: a backslash takes the next character."""
    cells, index = -1, 0
    while index < len(row):
        cells += row[index] == "|"
        index += 2 if row[index] == "\\" else 1
    return cells


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_any_text_comes_back_with_its_line_breaks_as_spaces(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    store = LineageStore(tmp_path_factory.mktemp("store"))
    for number, text in enumerate(texts):
        store.append(make_trial(str(number), hypothesis=text, notes=text))
    fresh = LineageStore(store.root)
    assert fresh.problems() == ()
    for trial, text in zip(fresh.all_trials(), texts, strict=True):
        assert trial.hypothesis == trial.notes == re.sub(r"[\r\n]+", " ", text)
    assert len(store.results_path.read_bytes().split(b"\n")) == len(texts) + 2


def test_the_lineage_needs_nothing_but_the_standard_library() -> None:
    heavy = {"torch", "numpy", "pydantic", "yaml", "git"}
    code = f"import sys, tools.lineage; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
