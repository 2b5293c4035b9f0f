from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tools.engine.conftest import metrics_of, write_rows
from tools.engine.base import LoadedBase
from tools.engine.checkpoint import BEST_FILE, LATEST_FILE, saved_steps
from tools.engine.spec import MidEval, ScorerChoice, StackMember
from tools.engine.trainer import train_stack

Make = Callable[..., StackMember]


def mid_eval(tmp_path: Path, scores: list[float]) -> MidEval:
    """An evaluation whose n-th call gives the n-th score; the last repeats."""
    rows = write_rows(tmp_path / "dev.jsonl", 9)
    scorer = tmp_path / "scorer.py"
    scorer.write_text(
        f"left = {scores!r}\n"
        "def score(expected, actual):\n"
        "    return left.pop(0) if len(left) > 1 else left[0]\n"
    )
    return MidEval(str(rows), 1, ScorerChoice("custom", scorer_file=str(scorer)), max_new_tokens=2)


def test_a_member_without_gain_stops_and_its_best_is_kept(
    base: LoadedBase, member: Make, tmp_path: Path
) -> None:
    one = member("t", max_steps=20, eval_interval=2, early_stop_patience=2, save_interval=1, most_recent_k=1)
    plan = mid_eval(tmp_path, [0.2, 0.6, 0.5, 0.6, 0.9])
    (result,) = train_stack(base, [one], mid_eval=plan)
    assert (result.status, result.steps, result.best_iter, result.best_score) == ("stopped_early", 8, 4, 0.6)
    run_dir = Path(one.run_dir)
    assert result.adapter_dir == str(run_dir / "iter_0000004")
    assert sorted(saved_steps(run_dir)) == [4, 8]
    assert (run_dir / BEST_FILE).read_text() == "4\n"
    assert (run_dir / LATEST_FILE).read_text() == "8\n"
    evals = [
        (line["step"], line["eval_score"], line["n_items"])
        for line in metrics_of(one)
        if "eval_score" in line
    ]
    assert evals == [(2, 0.2, 1), (4, 0.6, 1), (6, 0.5, 1), (8, 0.6, 1)]
    (again,) = train_stack(base, [one], mid_eval=plan)
    assert (again.status, again.steps, again.best_iter) == ("stopped_early", 8, 4)


def test_the_last_step_is_scored_and_a_score_of_zero_is_a_score(
    base: LoadedBase, member: Make, tmp_path: Path
) -> None:
    one = member("t", max_steps=5, eval_interval=3)
    (result,) = train_stack(base, [one], mid_eval=mid_eval(tmp_path, [0.0]))
    assert (result.status, result.best_iter, result.best_score) == ("done", 3, 0.0)
    assert [line["step"] for line in metrics_of(one) if "eval_score" in line] == [3, 5]


def test_a_stop_during_an_evaluation_leaves_it_to_the_next_run(
    base: LoadedBase, member: Make, tmp_path: Path
) -> None:
    one = member("t", max_steps=4, eval_interval=2)
    answers = iter([False, False, True, True])  # two passes, then asked inside the evaluation
    plan = mid_eval(tmp_path, [0.4, 0.7])
    (result,) = train_stack(base, [one], mid_eval=plan, should_stop=lambda: next(answers, True))
    assert (result.status, result.steps, result.best_score) == ("stopped", 2, None)
    (result,) = train_stack(base, [one], mid_eval=plan)
    assert (result.status, result.best_iter, result.best_score) == ("done", 4, 0.7)
    evals = [(line["step"], line["eval_score"]) for line in metrics_of(one) if "eval_score" in line]
    assert evals == [(2, 0.4), (4, 0.7)]


def test_a_scorer_that_fails_fails_the_member(base: LoadedBase, member: Make, tmp_path: Path) -> None:
    plan = mid_eval(tmp_path, [7.0])
    results = train_stack(base, [member("scored", eval_interval=2), member("free")], mid_eval=plan)
    assert [result.status for result in results] == ["failed", "done"]
    assert "7.0" in str(results[0].error)


@pytest.mark.parametrize("interval", [None, 2])
def test_without_rows_to_score_nothing_is_scored(
    base: LoadedBase, member: Make, interval: int | None
) -> None:
    (result,) = train_stack(base, [member("t", eval_interval=interval)])
    assert (result.status, result.best_iter) == ("done", None)
