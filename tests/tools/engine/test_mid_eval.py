from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tools.engine.conftest import metrics_of, write_rows
from tools.engine.base import LoadedBase
from tools.engine.checkpoint import BEST_FILE, LATEST_FILE, saved_steps
from tools.engine.lora import Adapter, AdapterStack
from tools.engine.spec import MidEval, ScorerChoice, StackMember
from tools.engine.trainer import train_stack

Make = Callable[..., StackMember]


def rows_of_passes(base: LoadedBase) -> list[int]:
    """Return a list to which every pass of answering adds its rows."""
    seen: list[int] = []

    def note(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if "decode_pass" in kwargs:
            seen.append(len(kwargs["input_ids"]))

    base.decoder.register_forward_pre_hook(note, with_kwargs=True)
    return seen


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


def test_members_that_are_due_together_are_answered_in_one_batch_and_score_as_alone(
    base: LoadedBase, member: Make, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "dev.jsonl", 5)
    scorer = tmp_path / "scorer.py"
    # Tells answers apart, whatever they are.
    scorer.write_text("def score(expected, actual):\n    return sum(map(ord, actual)) % 97 / 97\n")
    plan = MidEval(str(rows), 5, ScorerChoice("custom", scorer_file=str(scorer)), max_new_tokens=6)

    def scores(name: str) -> list[tuple[int, float]]:
        one = member(name, run="together")
        return [(line["step"], line["eval_score"]) for line in metrics_of(one) if "eval_score" in line]

    changes = {"slow": {"seed": 3}, "quick": {"learning_rate": 2e-2, "lora_rank": 2}, "rare": {"seed": 8}}
    intervals = {"slow": 2, "quick": 2, "rare": 3}
    stack = [
        member(name, run="together", eval_interval=intervals[name], **change)
        for name, change in changes.items()
    ]
    widths = rows_of_passes(base)
    train_stack(base, stack, mid_eval=plan, stack_tokens=10**6)
    # Steps 2 and 4 score two members, step 3 one, step 6 all.
    assert sorted({width for width in widths if width % 5 == 0}) == [5, 10, 15]
    found = {name: scores(name) for name in changes}
    assert [step for step, _ in found["rare"]] == [3, 6]
    assert len({score for values in found.values() for _, score in values}) > 3
    for one in stack:
        alone = StackMember(one.trial_id, one.recipe, str(tmp_path / "alone" / one.trial_id))
        train_stack(base, [alone], mid_eval=plan)
        evals = [(line["step"], line["eval_score"]) for line in metrics_of(alone) if "eval_score" in line]
        assert evals == found[one.trial_id]


def test_of_members_scored_together_only_the_one_at_fault_fails(
    base: LoadedBase, member: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = mid_eval(tmp_path, [0.5])
    stack = [member(name, eval_interval=3) for name in ("first", "broken", "last")]
    copy = AdapterStack.inference_copy

    def fail_for_one(self: AdapterStack, adapter: Adapter, dtype: torch.dtype) -> Adapter:
        if adapter.name == "broken":
            raise RuntimeError("the weights cannot be read")
        return copy(self, adapter, dtype)

    monkeypatch.setattr(AdapterStack, "inference_copy", fail_for_one)
    results = train_stack(base, stack, mid_eval=plan, stack_tokens=10**6)
    assert [result.status for result in results] == ["done", "failed", "done"]
    assert [result.steps for result in results] == [6, 3, 6]
    assert "cannot be read" in str(results[1].error)
    assert [result.best_score for result in results] == [0.5, None, 0.5]
