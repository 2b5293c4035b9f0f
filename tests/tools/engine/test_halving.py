from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch

from tests.tools.engine.conftest import adapter_tensors, metrics_of, write_rows
from tools.engine.adapter_files import load_adapter
from tools.engine.base import LoadedBase
from tools.engine.batches import RowEncoder
from tools.engine.halving import Halving, Standing, cut
from tools.engine.member import Member
from tools.engine.results import MemberResult
from tools.engine.row_loss import row_losses
from tools.engine.spec import MidEval, ScorerChoice, StackMember
from tools.engine.trainer import train_stack
from tools.errors import TrainError

Make = Callable[..., StackMember]
ROOT = Path(__file__).resolve().parents[3]
SEARCH = Halving(rungs=(0.25, 0.5), keep=0.5)
WIDE = 10**6


def kept_of(scores: Mapping[str, float | tuple[float, float | None]], keep: float) -> set[str]:
    standings = {
        name: Standing(*value) if isinstance(value, tuple) else Standing(value)
        for name, value in scores.items()
    }
    return set(cut(standings, keep).kept)


def test_the_better_part_goes_on_rounded_up() -> None:
    assert kept_of({"a": 0.1, "b": 0.5, "c": 0.9, "d": 0.3, "e": 0.2}, 0.5) == {"b", "c", "d"}


def test_who_ties_with_the_last_that_goes_on_goes_on_too() -> None:
    assert kept_of({"a": 0.0, "b": 0.0, "c": 0.0}, 0.34) == {"a", "b", "c"}
    assert kept_of({"a": 0.5, "b": 0.5, "c": 0.4, "d": 0.4}, 0.5) == {"a", "b"}
    assert kept_of({"a": (0.2, 1.5), "b": (0.2, 1.5), "c": (0.2, 1.6)}, 0.3) == {"a", "b"}


def test_half_of_two_is_one_and_of_one_is_one() -> None:
    assert kept_of({"a": 0.2, "b": 0.1}, 0.5) == {"a"}
    assert kept_of({"a": 0.2}, 0.1) == {"a"}


def test_equal_scores_are_told_apart_by_loss_and_unequal_ones_never() -> None:
    assert kept_of({"a": (0.0, 2.5), "b": (0.0, 0.5), "c": (0.0, 1.5), "d": (0.0, 3.0)}, 0.5) == {"b", "c"}
    assert kept_of({"a": (0.1, 9.0), "b": (0.0, 0.5), "c": (0.0, 0.4)}, 0.5) == {"a", "c"}
    assert kept_of({"a": (0.0, math.nan), "b": (0.0, None), "c": (0.0, 7.0)}, 0.3) == {"c"}
    assert kept_of({"a": (0.0, math.nan), "b": (0.0, None)}, 0.5) == {"a", "b"}


def test_who_leaves_is_told_by_what() -> None:
    found = cut({"a": Standing(0.0, 0.75), "b": Standing(0.0, 1.25)}, 0.5)
    assert found.describe(Standing(0.0, 1.25), 3, 12, 24) == (
        "left the search after 3 of 12 steps: dev score 0.000 and loss 1.250 on 24 rows; "
        "the 1 that went on have the same score and a loss of 0.750 or less"
    )


def test_rungs_are_parts_of_each_candidates_own_steps() -> None:
    assert SEARCH.steps(100) == (25, 50)
    assert SEARCH.steps(9) == (3, 5)
    assert SEARCH.steps(1) == (1, 1)


@pytest.mark.parametrize(
    "search",
    [Halving(()), Halving((0.5, 0.25)), Halving((0.0, 0.5)), Halving((0.5, 1.0)), Halving(keep=1.0)],
)
def test_rungs_that_do_not_rise_inside_the_run_are_refused(search: Halving) -> None:
    with pytest.raises(TrainError, match=r"search\.(rungs|keep)"):
        search.check()


class Judge:
    """Scores members by a table of trial and step, in place of answers."""

    def __init__(self, table: Mapping[str, Mapping[int, float]]) -> None:
        self.table = table
        self.calls: list[tuple[str, int]] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def evaluate(_evaluator: object, members: Sequence[Member]) -> None:
            for member in members:
                name, step = member.spec.trial_id, member.step
                self.calls.append((name, step))
                member.note_score(self.table[name][step], 5, 0.0)

        monkeypatch.setattr("tools.engine.mid_eval.MidEvaluator.evaluate", evaluate)


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Judge:
    judge = Judge(
        {
            "a": {2: 0.1, 4: 0.9, 8: 0.9},
            "b": {2: 0.4, 4: 0.3},
            "c": {2: 0.6, 4: 0.5, 8: 0.7},
            "d": {2: 0.3},
        }
    )
    judge.install(monkeypatch)
    return judge


def four(make: Make, run: str, **changes: object) -> list[StackMember]:
    return [make(name, run=run, max_steps=8, lora_dropout=0.1, **changes) for name in "abcd"]


@pytest.mark.parametrize("stack_tokens", [None, 300, WIDE])
def test_losers_leave_at_the_rungs_and_winners_end_as_if_nothing_had_been_cut(
    base: LoadedBase, member: Make, tmp_path: Path, judged: Judge, stack_tokens: int | None
) -> None:
    plan = MidEval(str(write_rows(tmp_path / "dev.jsonl", 5)), 5, ScorerChoice("json"))
    one = four(member, "searched")
    results = train_stack(base, one, mid_eval=plan, search=SEARCH, stack_tokens=stack_tokens)
    assert [(result.status, result.steps) for result in results] == [
        ("halted", 2),
        ("halted", 4),
        ("done", 8),
        ("halted", 2),
    ]
    assert results[1].error == (
        "left the search after 4 of 8 steps: dev score 0.300 on 5 rows; the 1 that went on have 0.500 or more"
    )
    assert sorted(judged.calls) == [("a", 2), ("b", 2), ("b", 4), ("c", 2), ("c", 4), ("d", 2)]
    twin = member("c", run="alone", max_steps=8, lora_dropout=0.1)
    (single,) = train_stack(base, [twin])
    losses = [line["loss"] for line in metrics_of(one[2]) if "loss" in line]
    assert losses == pytest.approx([line["loss"] for line in metrics_of(twin)], rel=1e-5)
    tensors, twins = (adapter_tensors(str(result.adapter_dir)) for result in (results[2], single))
    for key, tensor in tensors.items():
        torch.testing.assert_close(tensor, twins[key], rtol=1e-4, atol=1e-6)
    # The score at a rung chose no checkpoint: without the search there would have been none.
    assert (results[2].best_iter, results[2].final_iter) == (None, 8)


def test_a_search_that_is_stopped_anywhere_takes_the_same_decisions(
    base: LoadedBase, member: Make, tmp_path: Path, judged: Judge
) -> None:
    plan = MidEval(str(write_rows(tmp_path / "dev.jsonl", 5)), 5, ScorerChoice("json"))
    whole = train_stack(base, four(member, "whole"), mid_eval=plan, search=SEARCH)
    parts = four(member, "parts")
    for passes in (1, 3, 2, 5, 1, 4, 30):
        left = iter([False] * passes)
        found = train_stack(
            base, parts, mid_eval=plan, search=SEARCH, should_stop=lambda left=left: next(left, True)
        )
    assert [_told(result) for result in found] == [_told(result) for result in whole]
    for one, other in zip(found, whole, strict=True):
        tensors, twins = (adapter_tensors(str(result.adapter_dir)) for result in (one, other))
        assert all(torch.equal(tensor, twins[key]) for key, tensor in tensors.items())


def _told(result: MemberResult) -> tuple[object, ...]:
    return (result.trial_id, result.status, result.steps, result.tokens, result.error, result.best_score)


def test_an_early_stop_counts_at_later_rungs_and_is_never_halted(
    base: LoadedBase, member: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalled = dict.fromkeys(range(1, 9), 0.8)
    Judge({"a": stalled, "b": {2: 0.5, 4: 0.6}, "c": {2: 0.9, 4: 0.85}, "d": {2: 0.1}}).install(monkeypatch)
    plan = MidEval(str(write_rows(tmp_path / "dev.jsonl", 5)), 5, ScorerChoice("json"))
    first = member("a", max_steps=8, eval_interval=1, early_stop_patience=2)
    members = [first, *(member(name, max_steps=8) for name in "bcd")]
    results = train_stack(base, members, mid_eval=plan, search=Halving((0.25, 0.5), 0.6))
    # At the second rung a (0.8) and c (0.85) are ahead of b (0.6).
    assert [(result.status, result.steps) for result in results] == [
        ("stopped_early", 3),
        ("halted", 4),
        ("done", 8),
        ("halted", 2),
    ]


def test_a_member_that_failed_stands_in_nobodys_way(
    base: LoadedBase, member: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Judge({"a": {2: 0.5, 4: 0.5}, "c": {2: 0.4}}).install(monkeypatch)
    plan = MidEval(str(write_rows(tmp_path / "dev.jsonl", 5)), 5, ScorerChoice("json"))
    broken = member("b", dataset_jsonl="/nowhere/rows.jsonl")
    members = [member("a", max_steps=8), broken, member("c", max_steps=8)]
    results = train_stack(base, members, mid_eval=plan, search=SEARCH, stack_tokens=WIDE)
    assert [result.status for result in results] == ["done", "failed", "halted"]


def test_while_no_answer_is_right_those_that_learn_faster_go_on(
    base: LoadedBase, member: Make, tmp_path: Path
) -> None:
    (tmp_path / "scorer.py").write_text("def score(expected, actual):\n    return 0.0\n")
    scorer = ScorerChoice("custom", scorer_file=str(tmp_path / "scorer.py"))
    plan = MidEval(str(write_rows(tmp_path / "dev.jsonl", 5)), 5, scorer, max_new_tokens=2)
    rates = {"still": 1e-6, "slow": 1e-4, "quick": 2e-2, "brisk": 4e-3}
    members = [member(name, max_steps=8, learning_rate=rate) for name, rate in rates.items()]
    results = train_stack(base, members, mid_eval=plan, search=SEARCH)
    assert [(result.trial_id, result.status, result.steps) for result in results] == [
        ("still", "halted", 2),
        ("slow", "halted", 2),
        ("quick", "done", 8),
        ("brisk", "halted", 4),
    ]
    (line,) = [line for line in metrics_of(members[1]) if "eval_score" in line]
    assert f"dev score 0.000 and loss {line['eval_loss']:.3f} on 5 rows" in str(results[1].error)
    # The loss is that of the checkpoint on the same rows, whoever computes it.
    adapter = load_adapter(base.stack, str(results[1].adapter_dir), device=base.device, dtype=torch.float32)
    rows = RowEncoder(base.tokenizer).encode(plan.rows, None).rows
    losses = [loss.mean for loss in row_losses(base, rows, adapter)]
    assert sum(losses) / len(losses) == pytest.approx(line["eval_loss"], rel=1e-5)


def test_one_member_alone_is_not_searched(base: LoadedBase, member: Make, tmp_path: Path) -> None:
    plan = MidEval(str(write_rows(tmp_path / "dev.jsonl", 5)), 5, ScorerChoice("json"))
    (result,) = train_stack(base, [member("t")], mid_eval=plan, search=SEARCH)
    assert result.status == "done"
    assert not any("eval_score" in line for line in metrics_of(member("t")))


def test_a_search_without_dev_scores_is_refused(base: LoadedBase, member: Make) -> None:
    with pytest.raises(TrainError, match="mid_eval"):
        train_stack(base, [member("a"), member("b")], search=SEARCH)


def test_a_search_killed_at_random_moments_ends_bit_identical(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl")
    (tmp_path / "scorer.py").write_text(
        "def score(expected, actual):\n    return sum(actual.encode()) % 97 / 97\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    driver = Path(__file__).with_name("kill_driver.py")
    done = subprocess.run(
        [sys.executable, str(driver), str(tmp_path), "--search"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1
    told = [json.loads((tmp_path / run / "results.json").read_text()) for run in ("whole", "killed")]
    assert told[0] == told[1]
    assert sorted(status for _, status, _ in told[0]) == ["done", "halted", "halted", "halted"]
    for name, _, step in told[0]:
        tensors, twins = (
            adapter_tensors(tmp_path / run / name / f"iter_{step:07d}") for run in ("whole", "killed")
        )
        assert all(torch.equal(tensor, twins[key]) for key, tensor in tensors.items())
