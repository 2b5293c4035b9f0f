"""The journal: a finished step is never run twice, and a torn line costs itself alone."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.errors import JournalError
from tools.journal import Journal


def at_noon() -> str:
    return "2026-11-20T12:00:00Z"


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "state" / "journal.jsonl", clock=at_noon)


def again(journal: Journal) -> Journal:
    """The journal as the next process finds it."""
    return Journal(journal.path, clock=at_noon)


def never() -> None:
    pytest.fail("a finished step was run again")


def raising(error: BaseException) -> Callable[[], None]:
    def fn() -> None:
        raise error

    return fn


def rows(journal: Journal) -> list[dict[str, object]]:
    return [json.loads(line) for line in journal.path.read_text(encoding="utf-8").splitlines()]


def test_a_finished_step_is_never_run_again(journal: Journal) -> None:
    journal.run_step("train", "i0001", lambda: {"loss": 0.5})
    assert journal.run_step("train", "i0001", never) == {"loss": 0.5}
    assert again(journal).run_step("train", "i0001", never) == {"loss": 0.5}


def test_steps_of_other_names_and_keys_are_other_steps(journal: Journal) -> None:
    journal.run_step("train", "i0001", lambda: 1)
    assert journal.run_step("train", "i0002", lambda: 2) == 2
    assert journal.run_step("evaluate", "i0001", lambda: 3) == 3


@pytest.mark.parametrize("result", [None, [], {}, 0, "", False, [{"a": None}]])
def test_a_step_with_an_empty_result_is_finished_too(journal: Journal, result: object) -> None:
    journal.run_step("smoke", "i0001", lambda: result)
    assert again(journal).run_step("smoke", "i0001", never) == result
    assert again(journal).is_done("smoke", "i0001")


def test_the_first_run_gets_what_a_later_run_reads_back(journal: Journal) -> None:
    first = journal.run_step("plan", "i0001", lambda: {"seeds": (1, 2), 3: "three"})
    assert first == {"seeds": [1, 2], "3": "three"}
    assert again(journal).done("plan", "i0001") == first


def test_a_changed_copy_does_not_change_the_record(journal: Journal) -> None:
    journal.run_step("plan", "i0001", lambda: {"patches": []})["patches"].append("x")
    journal.done("plan", "i0001")["patches"].append("y")
    assert journal.done("plan", "i0001") == {"patches": []}


def test_a_failed_step_is_recorded_and_tried_again(journal: Journal) -> None:
    with pytest.raises(ZeroDivisionError):
        journal.run_step("train", "i0001", raising(ZeroDivisionError("by zero")))
    assert not journal.is_done("train", "i0001")
    assert again(journal).failures("train", "i0001") == ("ZeroDivisionError: by zero",)
    assert again(journal).run_step("train", "i0001", lambda: "fine") == "fine"
    assert [(row["event"], row["attempt"]) for row in rows(journal)] == [
        ("start", 1),
        ("failed", 1),
        ("start", 2),
        ("done", 2),
    ]


def test_a_step_that_failed_too_often_is_refused_with_its_last_error(journal: Journal) -> None:
    for text in ("first", "second"):
        with pytest.raises(ValueError, match=text):
            journal.run_step("train", "i0001", raising(ValueError(text)), max_attempts=2)
    with pytest.raises(JournalError, match=r"failed 2 times, allowed is 2.*second"):
        again(journal).run_step("train", "i0001", never, max_attempts=2)


def test_a_step_given_up_can_be_settled_with_a_result(journal: Journal) -> None:
    with pytest.raises(ValueError, match="no"):
        journal.run_step("train", "i0001", raising(ValueError("no")))
    assert journal.settle("train", "i0001", {"status": "failed"}) == {"status": "failed"}
    assert again(journal).settle("train", "i0001", {"status": "failed"}) == {"status": "failed"}
    assert again(journal).run_step("train", "i0001", never) == {"status": "failed"}
    with pytest.raises(JournalError, match="never changes"):
        journal.settle("train", "i0001", {"status": "done"})


def test_an_interrupted_attempt_is_no_failure(journal: Journal) -> None:
    with pytest.raises(KeyboardInterrupt):
        journal.run_step("train", "i0001", raising(KeyboardInterrupt()), max_attempts=1)
    assert journal.failures("train", "i0001") == ()
    assert journal.run_step("train", "i0001", lambda: "fine", max_attempts=1) == "fine"
    assert journal.attempts("train", "i0001") == 2


@pytest.mark.parametrize("result", [float("nan"), {"path": Path("x")}, {1, 2}], ids=str)
def test_a_result_that_is_not_json_fails_the_step(journal: Journal, result: object) -> None:
    with pytest.raises(JournalError, match="cannot be recorded"):
        journal.run_step("train", "i0001", lambda: result)
    assert len(again(journal).failures("train", "i0001")) == 1


def test_text_of_any_kind_survives(journal: Journal) -> None:
    text = "two\nlines\r, a line separator \u2028, a lone surrogate \ud800 and ünïcode"
    journal.append("note", "i0001", text=text)
    assert again(journal).last("note").data["text"] == text  # type: ignore[union-attr]


def test_every_event_carries_its_number_time_and_names(journal: Journal) -> None:
    journal.append("note", "i0001", step="plan", text="hello")
    assert rows(journal) == [
        {"seq": 1, "at": at_noon(), "event": "note", "step": "plan", "key": "i0001", "text": "hello"}
    ]


def test_events_that_belong_to_steps_and_reserved_names_are_refused(journal: Journal) -> None:
    with pytest.raises(JournalError, match="belongs to steps"):
        journal.append("done", "i0001")
    with pytest.raises(JournalError, match="reserved"):
        journal.append("note", "i0001", seq=7)
    with pytest.raises(JournalError, match="not JSON"):
        journal.append("note", "i0001", value=float("inf"))
    assert not journal.path.exists()


def test_the_newest_events_are_found(journal: Journal) -> None:
    for number in range(5):
        journal.append("note", f"i{number % 2}", number=number)
    assert [event.data["number"] for event in journal.tail(2)] == [3, 4]
    assert journal.tail(0) == ()
    assert journal.last("note", "i1").data["number"] == 3  # type: ignore[union-attr]
    assert journal.last("other") is None


def test_a_run_that_was_not_ended_is_resumed(journal: Journal) -> None:
    assert journal.begin_run("r1", planner="optuna").event == "run_begin"
    assert again(journal).open_runs() == ("r1",)
    assert again(journal).begin_run("r1").event == "run_resume"
    journal.end_run("r1")
    assert again(journal).open_runs() == ()
    with pytest.raises(JournalError, match="has ended"):
        journal.begin_run("r1")
    with pytest.raises(JournalError, match="not open"):
        journal.end_run("r2")


def test_a_reader_sees_what_another_process_appended(journal: Journal) -> None:
    journal.append("note", "a")
    reader = again(journal)
    assert len(reader.events()) == 1
    journal.append("note", "b")
    assert [event.key for event in reader.events()] == ["a", "b"]


def test_a_journal_that_was_replaced_is_read_anew(journal: Journal) -> None:
    journal.run_step("plan", "i0001", lambda: 1)
    journal.path.unlink()
    assert journal.events() == ()
    assert journal.run_step("plan", "i0001", lambda: 2) == 2


def test_a_torn_last_line_is_reported_and_costs_itself_alone(journal: Journal) -> None:
    journal.append("note", "a")
    with journal.path.open("a", encoding="utf-8") as file:
        file.write('{"seq": 2, "at": "20')
    assert [event.key for event in again(journal).events()] == ["a"]
    assert "torn" in again(journal).problems[0]
    journal.append("note", "b")
    assert [(event.seq, event.key) for event in again(journal).events()] == [(1, "a"), (2, "b")]
    assert len(journal.problems) == 1
    assert "journal.jsonl:2" in journal.problems[0]


def test_a_log_cut_at_any_byte_is_resumed_to_the_same_end(tmp_path: Path) -> None:
    def play(journal: Journal) -> list[str]:
        ran: list[str] = []
        for step in ("plan", "train"):

            def fn(step: str = step) -> str:
                ran.append(step)
                return f"result of {step}"

            assert journal.run_step(step, "i0001", fn) == f"result of {step}"
        return ran

    whole = Journal(tmp_path / "whole.jsonl", clock=at_noon)
    play(whole)
    data = whole.path.read_bytes()
    second_step = data.index(b'{"seq": 3')
    for length in range(second_step, len(data) + 1):
        cut = Journal(tmp_path / f"{length}.jsonl", clock=at_noon)
        cut.path.write_bytes(data[:length])
        # A line is whole when only its newline is missing.
        finished = sum(b'"done"' in line and line.endswith(b"}") for line in data[:length].split(b"\n"))
        assert play(cut) == ["plan", "train"][finished:]
        assert play(again(cut)) == []


def line(seq: int, event: str, **data: object) -> str:
    row = {"seq": seq, "at": at_noon(), "event": event, "step": "train", "key": "i0001", **data}
    return json.dumps(row) + "\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (line(1, "start") + line(2, "done", result=1) + line(3, "done", result=1), "after the step was done"),
        (line(1, "start") + line(2, "done", result=1) + line(3, "start"), "after the step was done"),
        (line(2, "start") + line(1, "failed", error=""), "follows event 2"),
        (line(1, "start") + line(1, "start"), "follows event 1"),
        (line(1, "done", result=1), "has no start"),
        (line(1, "start") + line(2, "done"), "holds no result"),
    ],
)
def test_a_log_that_contradicts_itself_is_refused_every_time(
    journal: Journal, text: str, complaint: str
) -> None:
    journal.path.parent.mkdir()
    journal.path.write_text(text, encoding="utf-8")
    for _ in range(2):
        with pytest.raises(JournalError, match=complaint):
            journal.run_step("train", "i0001", never)
    assert journal.path.read_text(encoding="utf-8") == text


def test_a_lost_start_does_not_lose_the_result(journal: Journal) -> None:
    journal.path.parent.mkdir()
    journal.path.write_text("\0\0\0\0\n" + line(2, "done", result=7), encoding="utf-8")
    assert journal.run_step("train", "i0001", never) == 7


CHILD = """
import sys, time
from tools.journal import Journal
journal = Journal(sys.argv[1], clock=lambda: "2026-11-20T12:00:00Z")
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", CHILD + code, *arguments], stdout=subprocess.PIPE, text=True
    )


def test_two_writers_never_share_a_number(journal: Journal) -> None:
    code = "for number in range(40): journal.append('note', sys.argv[2], number=number)"
    children = [start(code, str(journal.path), name) for name in ("a", "b")]
    for child in children:
        child.communicate()
        assert child.returncode == 0
    events = journal.events()
    assert [event.seq for event in events] == list(range(1, 81))
    for name in ("a", "b"):
        assert [event.data["number"] for event in events if event.key == name] == list(range(40))


@pytest.mark.parametrize("room", [5, 60])
def test_a_full_disk_shows_the_first_error_and_loses_only_what_did_not_fit(
    journal: Journal, room: int
) -> None:
    journal.append("note", "a")
    code = """
import os, resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def fn():
    size = os.path.getsize(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + int(sys.argv[2]), resource.RLIM_INFINITY))
    raise ValueError("the real reason")
try:
    journal.run_step("train", "i0001", fn)
except ValueError as err:
    print(err, err.__notes__)
"""
    output, _ = start(code, str(journal.path), str(room)).communicate()
    assert output.startswith("the real reason")
    assert "could not record" in output
    assert journal.run_step("train", "i0001", lambda: "fine") == "fine"
    assert again(journal).done("train", "i0001") == "fine"


def test_a_run_killed_again_and_again_ends_with_every_step_once(journal: Journal, tmp_path: Path) -> None:
    code = """
for number in range(150):
    def fn():
        with open(sys.argv[2], "a") as file:
            file.write(f"{number}\\n")
        return number
    assert journal.run_step("train", f"i{number}", fn) == number
"""
    effects = tmp_path / "effects"
    delays = random.Random(7)
    kills = 0
    for _ in range(10):
        before = len(journal.events())
        child = start(code, str(journal.path), str(effects))
        while len(journal.events()) == before and child.poll() is None:
            time.sleep(0.001)
        time.sleep(delays.uniform(0, 0.03))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        kills += child.returncode == -signal.SIGKILL
    child = start(code, str(journal.path), str(effects))
    child.communicate()
    assert child.returncode == 0
    done = [event.key for event in again(journal).events() if event.event == "done"]
    assert done == [f"i{number}" for number in range(150)]
    ran = effects.read_text().split()
    # Only a step whose end was not on disk may have run more than once: at most one a kill.
    assert set(ran) == {str(number) for number in range(150)}
    assert len(ran) <= 150 + kills
    assert kills >= 3
