from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tools.errors import ProbeError
from tools.probe import ProbeQuestion, ProbeReport, ProbeRow, ReasoningProbe, Response

QUESTIONS = tuple(ProbeQuestion(f"q{i}", "odd" if i % 2 else "even", f"question {i}?") for i in range(6))


def think(question: ProbeQuestion) -> str:
    return f"<think>{'step ' * 8 * (1 + int(question.qid[1:]))}</think>done"


def probe() -> ReasoningProbe:
    return ReasoningProbe(QUESTIONS)


def test_every_question_is_asked_in_order_and_reported() -> None:
    seen: list[tuple[int, int, str]] = []
    report = probe().run(
        "org/model",
        lora_path=Path("/runs/x"),
        step=200,
        generator=think,
        on_progress=lambda i, n, row: seen.append((i, n, row.qid)),
    )
    assert seen == [(i + 1, 6, f"q{i}") for i in range(6)]
    assert [row.qid for row in report.rows] == [f"q{i}" for i in range(6)]
    assert (report.model, report.lora_path, report.step) == ("org/model", "/runs/x", 200)
    assert (report.max_new_tokens, report.temperature, report.counted_by) == (1024, 0.6, "characters/4")
    assert report.overall.think_presence_rate == 1.0
    assert report.rows[0].think_n_tok == 9
    assert list(report.by_category) == ["even", "odd"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 10.0}, "max_new_tokens is 10.0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_a_bad_argument_is_refused_before_anything_is_asked(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ProbeError, match=said):
        probe().run("m", generator=lambda _question: pytest.fail("asked"), **arguments)


def test_one_failing_question_costs_itself_alone() -> None:
    def generator(question: ProbeQuestion) -> Any:
        if question.qid == "q2":
            raise RuntimeError("CUDA out of memory")
        return None if question.qid == "q4" else think(question)

    report = probe().run("m", generator=generator)
    assert [row.qid for row in report.failed] == ["q2", "q4"]
    assert report.rows[2].error == "RuntimeError: CUDA out of memory"
    assert "None" in str(report.rows[4].error)
    assert (report.overall.n, report.overall.think_presence_rate, report.n) == (4, 1.0, 6)


def test_a_probe_without_any_response_is_an_error_that_says_why() -> None:
    def generator(_question: ProbeQuestion) -> str:
        raise RuntimeError("no such device")

    with pytest.raises(ProbeError, match=r"none of 6 questions got a response; the first: .*no such device"):
        probe().run("m", generator=generator)


def test_an_interrupt_is_no_failed_row() -> None:
    def generator(_question: ProbeQuestion) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe().run("m", generator=generator)


def test_a_chain_without_an_end_is_reported_as_truncated() -> None:
    report = probe().run("m", generator=lambda q: "<think>on and on" if q.qid == "q1" else think(q))
    assert [row.qid for row in report.truncated] == ["q1"]
    assert not report.rows[1].has_think


def test_half_a_surrogate_in_a_response_does_not_cost_the_report(tmp_path: Path) -> None:
    report = probe().run("m", generator=lambda _question: "\ud83d", resume_path=tmp_path / "rows.jsonl")
    assert ProbeReport.from_json(report.to_json(tmp_path / "r.json")) == report


class Batches:
    """A batch generator that can fail as real ones do: on a prompt, or on too large a batch."""

    batch_size = 4
    counted_by = "words"

    def __init__(self, *, bad: str = "", most: int = 99) -> None:
        self.bad, self.most, self.asked = bad, most, list[int]()

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def answer(self, prompts: Sequence[str]) -> list[Response]:
        self.asked.append(len(prompts))
        if self.bad in prompts or len(prompts) > self.most:
            raise RuntimeError("out of memory")
        return [Response(f"<think>{prompt} it is</think>x", is_complete=True) for prompt in prompts]


def test_a_batch_generator_is_asked_in_batches_and_counts_its_tokens() -> None:
    generator = Batches()
    report = probe().run("m", generator=generator)
    assert generator.asked == [4, 2]
    assert {row.think_n_tok for row in report.rows} == {4}
    assert report.counted_by == "words"
    assert [row.think_text for row in report.rows] == [f"question {i}? it is" for i in range(6)]


def test_a_batch_that_fails_is_halved_down_to_the_question_that_fails() -> None:
    generator = Batches(bad="question 1?")
    report = probe().run("m", generator=generator)
    assert [row.qid for row in report.failed] == ["q1"]
    assert generator.asked == [4, 2, 1, 1, 2, 2]
    tight = Batches(most=2)
    assert not probe().run("m", generator=tight).failed
    assert tight.asked == [4, 2, 2, 2]


def test_a_generator_that_loses_an_answer_is_found_out() -> None:
    class Lossy(Batches):
        def answer(self, prompts: Sequence[str]) -> list[Response]:
            return super().answer(prompts)[: max(1, len(prompts) - 1)]

    report = probe().run("m", generator=Lossy())
    assert not report.failed
    assert report.rows[3].think_text.startswith("question 3?")


def test_a_chain_that_the_model_left_open_itself_is_not_cut_off_by_the_budget() -> None:
    class Open(Batches):
        def answer(self, prompts: Sequence[str]) -> list[Response]:
            return [Response("<think>and", is_complete=prompt != "question 0?") for prompt in prompts]

    assert [row.qid for row in probe().run("m", generator=Open()).truncated] == ["q0"]


def test_a_run_resumes_with_what_is_missing_and_tries_failures_again(tmp_path: Path) -> None:
    log = tmp_path / "rows.jsonl"
    asked: list[str] = []

    def until_the_power_cut(question: ProbeQuestion) -> str:
        asked.append(question.qid)
        if question.qid == "q1":
            raise RuntimeError("out of memory")
        if question.qid == "q3":
            raise KeyboardInterrupt
        return think(question)

    with pytest.raises(KeyboardInterrupt):
        probe().run("m", generator=until_the_power_cut, resume_path=log)
    assert asked == ["q0", "q1", "q2", "q3"]

    asked.clear()
    counts: list[int] = []

    def after(question: ProbeQuestion) -> str:
        asked.append(question.qid)
        return think(question)

    report = probe().run(
        "m", generator=after, resume_path=log, on_progress=lambda i, _n, _row: counts.append(i)
    )
    assert asked == ["q1", "q3", "q4", "q5"]
    assert counts == [3, 4, 5, 6]
    fresh = probe().run("m", generator=think)
    assert [_without_time(row) for row in report.rows] == [_without_time(row) for row in fresh.rows]
    asked.clear()
    probe().run("m", generator=after, resume_path=log)
    assert asked == []


def _without_time(row: ProbeRow) -> dict[str, Any]:
    return row.__dict__ | {"wall_seconds": 0}


def test_a_torn_line_costs_its_row_alone(tmp_path: Path) -> None:
    log = tmp_path / "rows.jsonl"
    probe().run("m", generator=think, resume_path=log)
    whole = log.read_bytes()
    for size in (0, 1, len(whole) // 2, len(whole) - 2):
        log.write_bytes(whole[:size])
        asked: list[str] = []
        kept = whole[:size].count(b"\n")

        def generator(question: ProbeQuestion, asked: list[str] = asked) -> str:
            asked.append(question.qid)
            return think(question)

        report = probe().run("m", generator=generator, resume_path=log)
        assert len(asked) == 6 - kept
        assert report.overall.n == 6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_new_tokens": 2048}, "max_new_tokens was 1024, is 2048"),
        ({"temperature": 0.0}, "temperature was 0.6, is 0.0"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"lora_path": "/runs/x"}, "lora_path was None, is '/runs/x'"),
    ],
)
def test_rows_of_another_run_are_never_mixed_in(tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    log = tmp_path / "rows.jsonl"
    probe().run("m", generator=think, resume_path=log)
    with pytest.raises(ProbeError, match=said):
        probe().run("m", generator=think, resume_path=log, **arguments)
    log.write_text('{"some": "other file"}\n', encoding="utf-8")
    with pytest.raises(ProbeError, match="no row of a probe"):
        probe().run("m", generator=think, resume_path=log)
    with pytest.raises(ProbeError, match="cannot be read"):
        probe().run("m", generator=think, resume_path=tmp_path)
    with pytest.raises(ProbeError, match="no regular file"):
        probe().run("m", generator=think, resume_path="/dev/zero")


def test_an_adapter_that_was_trained_anew_is_another_one(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(b"one")
    log = tmp_path / "rows.jsonl"
    probe().run("m", lora_path=adapter, generator=think, resume_path=log)
    os.utime(weights, (1, 1))
    probe().run("m", lora_path=adapter, generator=lambda _q: pytest.fail("asked"), resume_path=log)
    weights.write_bytes(b"two")
    with pytest.raises(ProbeError, match="adapter_files"):
        probe().run("m", lora_path=adapter, generator=think, resume_path=log)


def test_a_question_whose_text_changed_is_asked_again(tmp_path: Path) -> None:
    log = tmp_path / "rows.jsonl"
    probe().run("m", generator=think, resume_path=log)
    changed = (ProbeQuestion("q0", "even", "another question?"), *QUESTIONS[1:3])
    asked: list[str] = []

    def generator(question: ProbeQuestion) -> str:
        asked.append(question.question)
        return think(question)

    report = ReasoningProbe(changed).run("m", generator=generator, resume_path=log)
    assert asked == ["another question?"]
    assert report.n == 3


KILLED = """
import sys
from tests.tools.probe.test_reasoning_probe import probe, think
def slow(question):
    print(question.qid, flush=True)
    sys.stdin.readline()
    return think(question)
probe().run("m", generator=slow, resume_path=sys.argv[1])
"""


def test_a_killed_run_loses_the_question_in_flight_alone(tmp_path: Path) -> None:
    log = tmp_path / "rows.jsonl"
    root = Path(__file__).parents[3]
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(log)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    for expected in ("q0", "q1", "q2"):
        assert child.stdout.readline().strip() == expected
        if expected != "q2":
            child.stdin.write("\n")
            child.stdin.flush()
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdin.close()
    child.stdout.close()
    assert [json.loads(line)["row"]["qid"] for line in log.read_text().splitlines()] == ["q0", "q1"]
    asked: list[str] = []

    def generator(question: ProbeQuestion) -> str:
        asked.append(question.qid)
        return think(question)

    assert probe().run("m", generator=generator, resume_path=log).overall.n == 6
    assert asked == ["q2", "q3", "q4", "q5"]


def test_a_disk_that_runs_full_costs_what_did_not_fit(tmp_path: Path) -> None:
    log = tmp_path / "rows.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1200, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            probe().run("m", generator=think, resume_path=log)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert log.stat().st_size == 1200
    kept = log.read_bytes().count(b"\n")
    assert 0 < kept < 6
    asked: list[str] = []

    def generator(question: ProbeQuestion) -> str:
        asked.append(question.qid)
        return think(question)

    assert probe().run("m", generator=generator, resume_path=log).overall.n == 6
    assert len(asked) == 6 - kept


def test_without_torch_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from tools.probe import ProbeQuestion, ReasoningProbe\n"
        "try: ReasoningProbe([ProbeQuestion('q', 'c', 'x')]).run('m')\n"
        "except ImportError as err: print(err)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'bakehouse[train]'" in done.stdout
    assert "generator=" in done.stdout
