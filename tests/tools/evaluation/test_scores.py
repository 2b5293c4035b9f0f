"""Score rows on disk: whole, exact, and silent about a sealed split."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from tools.errors import EvidenceError, ScorerError
from tools.evaluation.scorers import get_scorer
from tools.evaluation.scores import (
    ScoreRow,
    error_kind,
    read_scores,
    score_answer,
    summarise,
    write_scores,
)

ROW = ScoreRow(
    item_id="dev-0001",
    seed=17,
    score=0.0,
    output='{"cmd": "land"}',
    expected='{"cmd": "rtl"}',
    prompt="komm zurück",
    error="mismatch:cmd",
    n_tokens=9,
)

rows = st.builds(
    ScoreRow,
    item_id=st.text(min_size=1),
    seed=st.integers(),
    score=st.floats(0, 1),
    output=st.none() | st.text(st.characters()),
    expected=st.none() | st.text(),
    prompt=st.none() | st.text(),
    error=st.none() | st.text(),
    n_tokens=st.none() | st.integers(min_value=0),
    forbidden=st.booleans(),
)


@given(row=rows)
def test_a_row_comes_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, row: ScoreRow) -> None:
    path = tmp_path_factory.mktemp("scores") / "dev.jsonl"
    write_scores(path, [row], redact=False)
    assert read_scores(path) == (row,)


def test_a_half_surrogate_and_a_line_separator_survive(tmp_path: Path) -> None:
    row = replace(ROW, output="\ud83d \u2028 \r\n \x00 é")
    write_scores(tmp_path / "dev.jsonl", [row, replace(ROW, seed=18)], redact=False)
    assert read_scores(tmp_path / "dev.jsonl") == (row, replace(ROW, seed=18))


def test_redaction_leaves_the_score_and_the_kind_of_error_only(tmp_path: Path) -> None:
    path = write_scores(tmp_path / "deep" / "selection.jsonl", [replace(ROW, forbidden=True)], redact=True)
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "item_id": "dev-0001",
        "seed": 17,
        "score": 0.0,
        "output": None,
        "expected": None,
        "prompt": None,
        "error": "mismatch",
        "n_tokens": 9,
        "forbidden": True,
    }


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_scores(tmp_path / "dev.jsonl", [ROW], redact=False)
    with pytest.raises(EvidenceError, match=r"scored twice for one seed: \['dev-0001 \(seed 17\)'\]"):
        write_scores(path, [ROW, replace(ROW, score=1.0)], redact=False)
    assert read_scores(path) == (ROW,)
    assert [file.name for file in tmp_path.iterdir()] == ["dev.jsonl"]


def test_a_missing_file_is_an_error_and_an_empty_one_holds_no_rows(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match=r"no scores at .*evaluate the trial first"):
        read_scores(tmp_path / "dev.jsonl")
    with pytest.raises(EvidenceError, match="no scores at"):
        read_scores(tmp_path)
    assert read_scores(write_scores(tmp_path / "dev.jsonl", [], redact=False)) == ()


def test_a_file_cut_at_any_byte_is_refused_or_a_whole_number_of_rows(tmp_path: Path) -> None:
    path = write_scores(tmp_path / "dev.jsonl", [ROW, replace(ROW, seed=18)], redact=False)
    data = path.read_bytes()
    first = data.index(b"\n")
    # A cut that takes only the newline loses nothing.
    whole = {0: 0, first: 1, first + 1: 1, len(data) - 1: 2}
    for size in range(len(data)):
        path.write_bytes(data[:size])
        if size in whole:
            assert len(read_scores(path)) == whole[size]
        else:
            with pytest.raises(
                EvidenceError, match=r"1 bad lines; evaluate the trial again\n.*dev.jsonl:[12]: "
            ):
                read_scores(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3", "row 2: int where an object belongs"),
        ("{}", "row 2: keys are \\[\\]; allowed"),
        ('{"item_id": "a", "seed": 1, "score": 1, "extra": 1}', "row 2: keys are"),
        ('{"item_id": "a", "seed": 1, "score": null}', r"score is None; allowed: a number in \[0, 1\]"),
        ('{"item_id": "a", "seed": 1, "score": NaN}', "score is nan"),
        ('{"item_id": "a", "seed": 1, "score": true}', "score is True"),
        ('{"item_id": "a", "seed": 1, "score": 1.01}', "score is 1.01"),
        ('{"item_id": "a", "seed": 1, "score": "1"}', "score is '1'"),
        ('{"item_id": "", "seed": 1, "score": 1}', "item_id must be"),
        ('{"item_id": "a", "seed": true, "score": 1}', "seed must be"),
        ('{"item_id": "a", "seed": 1, "score": 1, "error": 3}', "error must be"),
        ('{"item_id": "a", "seed": 1, "score": 1, "n_tokens": -1}', "n_tokens must be"),
        ('{"item_id": "a", "seed": 1, "score": 1, "forbidden": 1}', "forbidden must be"),
        ('{"item_id": "dev-0001", "seed": 17, "score": 1}', "scored twice for one seed"),
        ("[" * 100_000, "nested too deeply"),
        ("not json", "dev.jsonl:2: not a JSON object"),
    ],
    ids=lambda value: value[:40],
)
def test_a_foreign_line_is_refused_by_its_place(tmp_path: Path, line: str, message: str) -> None:
    path = write_scores(tmp_path / "dev.jsonl", [ROW], redact=False)
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(EvidenceError, match=message):
        read_scores(path)


def test_every_bad_line_is_listed_up_to_fifty(tmp_path: Path) -> None:
    path = tmp_path / "dev.jsonl"
    path.write_text("bad\n" * 60, encoding="utf-8")
    with pytest.raises(EvidenceError, match="60 bad lines") as caught:
        read_scores(path)
    assert str(caught.value).count("dev.jsonl:") == 50


def test_a_row_is_frozen_and_refuses_what_is_no_score() -> None:
    with pytest.raises(FrozenInstanceError):
        ROW.score = 1.0  # type: ignore[misc]
    with pytest.raises(EvidenceError, match="score row 'dev-0001', seed 17: score is nan"):
        replace(ROW, score=float("nan"))


def test_an_answer_is_judged_with_its_item_named_where_the_scorer_fails() -> None:
    row = score_answer(
        get_scorer("json_cmd"),
        item_id="dev-0001",
        seed=3,
        prompt="stop everything",
        expected='{"cmd": "land"}',
        output='{"cmd": "disarm"}',
        n_tokens=7,
        forbidden_outputs=("disarm",),
    )
    assert row == ScoreRow(
        item_id="dev-0001",
        seed=3,
        score=0.0,
        output='{"cmd": "disarm"}',
        expected='{"cmd": "land"}',
        prompt="stop everything",
        error="wrong_cmd",
        n_tokens=7,
        forbidden=True,
    )
    with pytest.raises(ScorerError, match="item 'dev-0002': the expected answer is no JSON object"):
        score_answer(get_scorer("json"), item_id="dev-0002", seed=3, prompt="", expected="land", output="{}")


def test_a_summary_counts_errors_by_kind_and_knows_no_mean_of_nothing() -> None:
    errors = (None, "mismatch:args", "mismatch:cmd", "invalid_json")
    judged = [
        replace(ROW, seed=seed, error=error, score=float(error is None), forbidden=seed == 2)
        for seed, error in enumerate(errors)
    ]
    summary = summarise(judged)
    assert (summary.n, summary.mean, summary.n_forbidden) == (4, 0.25, 1)
    assert list(summary.errors.items()) == [("mismatch", 2), ("invalid_json", 1)]
    assert summarise([]).mean is None
    assert error_kind("missing:args") == "missing"
