"""What a guess would score."""

from __future__ import annotations

import pytest

from agent.diagnostics.guessing import find_answer_classes
from tools.evaluation.scorers import get_scorer


def test_answers_that_the_scorer_takes_for_one_are_one() -> None:
    scorer = get_scorer("json_cmd")
    answers = ['{"cmd": "hover", "args": {}}', '{"cmd":"hover"}', '{"cmd": "land"}', '{"cmd": "rtl"}']
    classes = find_answer_classes(answers, scorer)
    assert classes is not None
    assert classes.chance == pytest.approx(1 / 3)
    assert classes.well_formed(['{"cmd":"land"}', "I would land", '{"cmd":"dance"}', ""], scorer) == 0.25
    assert classes.well_formed([], scorer) is None


def test_open_tasks_and_tasks_of_one_answer_have_no_chance() -> None:
    scorer = get_scorer("exact")
    assert find_answer_classes([f"answer {n}" for n in range(65)], scorer) is None
    assert find_answer_classes(["yes", "yes"], scorer) is None
