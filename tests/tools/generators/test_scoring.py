"""Rows answered by a generator and judged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from tools.errors import EvaluationError
from tools.evaluation.scorers import get_scorer
from tools.evaluation.scores import read_scores
from tools.generators.generator import Conversation, Generation
from tools.generators.scoring import Unanswered, score_generated, write_generated
from tools.rows import Message, Row

ROWS = [Row(name, (Message("user", name), Message("assistant", f"ok {name}"))) for name in ("a", "b", "c")]


@dataclass
class Answers:
    """Gives prepared generations and keeps what it was asked."""

    found: Sequence[Generation]
    asked: Sequence[Conversation] = ()

    @property
    def name(self) -> str:
        return "prepared"

    def generate(self, conversations: Sequence[Conversation]) -> tuple[Generation, ...]:
        self.asked = conversations
        return tuple(self.found)


def test_rows_without_an_answer_are_told_and_are_in_no_mean(tmp_path):
    answers = Answers(
        [
            Generation("ok a", input_tokens=4, output_tokens=2, is_complete=True),
            Generation(None, "HTTP 500: a secret row"),
            Generation("no", input_tokens=4, output_tokens=1, is_complete=False),
        ]
    )
    found = score_generated(answers, ROWS, get_scorer("exact"), seed=3, system_prompt="Be brief.")
    assert answers.asked[0] == (Message("system", "Be brief."), Message("user", "a"))
    assert [(row.item_id, row.score, row.n_tokens, row.seed) for row in found.rows] == [
        ("a", 1.0, 2, 3),
        ("c", 0.0, 1, 3),
    ]
    assert (found.mean, found.n_cut_off, found.input_tokens, found.output_tokens) == (0.5, 1, 8, 3)
    assert found.unanswered == (Unanswered("b", "HTTP 500: a secret row"),)

    write_generated(tmp_path, "dev", found, redact=False)
    assert read_scores(tmp_path / "dev.jsonl") == found.rows
    assert "a secret row" in (tmp_path / "dev.unanswered.jsonl").read_text(encoding="utf-8")
    write_generated(tmp_path, "selection", found, redact=True)
    assert all(row.output is None for row in read_scores(tmp_path / "selection.jsonl"))
    line = json.loads((tmp_path / "selection.unanswered.jsonl").read_text(encoding="utf-8"))
    assert line == {"item_id": "b", "error": "no answer"}


def test_tokens_are_unknown_where_one_answer_was_not_counted():
    answers = Answers([Generation("x", input_tokens=1), Generation("x", input_tokens=2), Generation("x")])
    found = score_generated(answers, ROWS, get_scorer("exact"))
    assert (found.input_tokens, found.output_tokens) == (None, None)


def test_an_evaluation_without_a_single_answer_is_an_error_and_no_score():
    answers = Answers([Generation(None, "refused")] * 3)
    with pytest.raises(
        EvaluationError, match="none of 3 rows got an answer from prepared; the first: refused"
    ):
        score_generated(answers, ROWS, get_scorer("exact"))
    with pytest.raises(EvaluationError, match="no rows"):
        score_generated(answers, [], get_scorer("exact"))
