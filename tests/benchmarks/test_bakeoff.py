"""The bakeoff benchmark: its work, its contenders on a tiny model, and what it says of them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bakeoff import contenders_of, parse, recipes_of
from benchmarks.bakeoff_decision import OURS, notes_on
from benchmarks.bakeoff_prepare import TEMPLATE, Request, make_rows
from benchmarks.bakeoff_report import Outcome, print_report, report_as_json
from benchmarks.bakeoff_run import Peers, Run, Runner, prepare, work_of
from benchmarks.bakeoff_work import Job, Measured, Work

OPTIONS = parse(["--models", "tiny", "--recipes", "2", "--steps", "4", "--rows-per-step", "3"])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    facts = prepare("tiny", OPTIONS, tmp_path_factory.mktemp("work"))
    return work_of(facts, OPTIONS, recipes_of(OPTIONS))


def job_of(work: Work, contender: str, folder: Path) -> Job:
    path = Job(work, contender, (0, 1), str(folder / contender)).write()
    return Job.read(str(path))


def test_rows_have_the_lengths_and_the_supervised_share_that_were_asked_for() -> None:
    from tests.tiny import tiny_tokenizer
    from tools.chat import render
    from tools.rows import Message

    tokenizer = tiny_tokenizer(TEMPLATE, vocab_size=512)
    request = Request(".", "tiny", None, "cpu", None, 40, rows_tokens=80, spread=0.25, supervised_share=0.33)
    rendered = [
        render(tokenizer, [Message(turn["role"], turn["content"]) for turn in row["messages"]])
        for row in make_rows(tokenizer, request)
    ]
    lengths = [len(row.input_ids) for row in rendered]
    assert 74 < sum(lengths) / len(lengths) < 86
    assert min(lengths) > 54
    assert max(lengths) < 108
    learned = sum(sum(row.loss_mask) for row in rendered) / sum(lengths)
    assert learned == pytest.approx(0.33, abs=0.04)


@pytest.mark.timeout(900)  # three engines are loaded; on a busy machine that alone takes minutes
# peft 0.21 asks transformers 5.2x in a way that is on its way out.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_all_contenders_train_the_same_tokens_and_reach_about_the_same_loss(
    work: Work, tmp_path: Path
) -> None:
    import torch

    from benchmarks import bakeoff_ours, bakeoff_peers
    from tools.engine.base import load_base

    base = load_base(work.model, "bfloat16", device=torch.device("cpu"))
    turn, stacked = (
        bakeoff_ours.train(job_of(work, name, tmp_path), base)
        for name in ("bakehouse in turn", "bakehouse stacked")
    )
    loop = bakeoff_peers.Peft(job_of(work, "peft loop", tmp_path)).train_all()
    n_tokens = 2 * sum(len(row["input_ids"]) for row in work.token_rows())
    for found in (turn, stacked, loop):
        assert found.tokens == n_tokens
        assert found.tokens_per_s > 0
        assert found.tokens_per_cpu_s > 0
        assert sum(found.losses.values()) == pytest.approx(sum(turn.losses.values()), rel=0.01)


def test_a_peer_that_is_not_installed_is_said_plainly(work: Work, tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n', encoding="utf-8")
    bare.chmod(0o755)
    runner = Runner(work, Peers(str(bare)), tmp_path, threads=1)
    for contender in ("peft loop", "trl packed"):
        run = runner.run(contender, [0])
        assert run.measured is None
        assert run.absent is not None
        assert "No module named" in run.absent


def test_recipes_differ_and_every_trl_setting_of_the_device_takes_part() -> None:
    recipes = recipes_of(parse(["--recipes", "4", "--ranks", "8,16"]))
    assert len({recipe.learning_rate for recipe in recipes}) == 4
    assert [recipe.rank for recipe in recipes] == [8, 16, 8, 16]
    assert contenders_of(parse(["--peers", "peft"])) == [
        "peft loop",
        "bakehouse in turn",
        "bakehouse stacked",
    ]
    on_cuda = contenders_of(parse(["--device", "cuda"]))
    assert {"trl packed+liger", "trl padded+liger+compiled"} < set(on_cuda)


def run_of(speed: float, wall_s: float, scores: dict[str, float] | None = None) -> Run:
    measured = Measured(speed, speed / 2, 1000, {"r0": 6.0}, 2**30, {"torch": "1"}, scores)
    return Run(wall_s, wall_s / 2, measured)


def outcome_of(work: Work, **runs: list[Run]) -> Outcome:
    facts: dict[str, Any] = {"n_params": 10**9, "mean_tokens": 60.0, "supervised": 0.3, "shared_prefix": 3}
    outcome = Outcome("tiny", facts, work, ceiling_flops=8e15)
    for name, found in runs.items():
        for run in found:
            outcome.take(name.replace("_", " "), run)
    return outcome


def test_ratios_are_of_medians_and_to_the_fastest_trl_setting(
    work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = outcome_of(
        work,
        peft_loop=[run_of(900, 1.0)],
        trl_padded=[run_of(100, 30.0), run_of(110, 28.0), run_of(500, 90.0)],
        trl_packed=[run_of(50, 40.0)],
        bakehouse_stacked=[run_of(220, 10.0)],
        trl_liger=[Run(0.1, 0.1, None, "No module named 'liger_kernel'")],
    )
    outcome.apart_s["trl padded"] = 60.0
    assert outcome.reference == "trl padded"
    print_report(outcome)
    said = capsys.readouterr().out
    (ours,) = (line for line in said.splitlines() if line.startswith("bakehouse stacked"))
    assert ours.split()[2:6] == ["220", "2.00x", "110", "2.00x"]
    # 4 FLOP for each of 1e9 parameters and 220 tokens a second, of 8e15.
    assert ours.split()[6:8] == ["10.0", "3.00x"]
    assert ours.endswith("0.0%")
    assert "trl liger                  absent: No module named 'liger_kernel'" in said
    assert "one process a recipe of it, the whole bakeoff is 6.00x faster" in said
    plain = json.loads(json.dumps(report_as_json(outcome)))
    assert plain["contenders"]["trl padded"]["tokens_per_s"] == 110
    assert plain["reference"] == "trl padded"


def test_a_decision_says_whether_the_same_recipe_won(work: Work) -> None:
    peer = "trl packed+pure"
    outcome = outcome_of(work)
    outcome.take(peer, run_of(1, 100.0, {"r0": 0.5, "r1": 0.9}))
    outcome.take(OURS, run_of(1, 20.0, {"r1": 0.88}))
    text = "\n".join(notes_on(outcome, peer))
    assert "the peer chose r1, ours r1: the same recipe" in text
    assert "5.00x faster" in text
    assert "let go" in text
    other = replace(outcome, runs={**outcome.runs, OURS: [run_of(1, 20.0, {"r0": 0.6})]})
    assert "another recipe; the peer scores what ours chose 0.500 against 0.900" in "\n".join(
        notes_on(other, peer)
    )
