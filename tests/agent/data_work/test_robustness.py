"""What a teacher's endpoint, a cap or a kill can do to a job."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.data_work.job_log import JobLog, data_work_dir
from agent.data_work.row_commands import generate_request
from agent.data_work.row_making import make_rows
from agent.data_work.row_request import MadeRows
from agent.teachers.asking import worst_case_tokens
from agent.teachers.meter import Caps, Meter, Spent
from agent.teachers.registry import TeacherChoice, open_teacher
from tests.agent.data_work.desk import ask_teacher, good_answer, good_items, train_rows
from tests.agent.data_work.teacher_server import Asked, Says, TeacherServer
from tools.errors import BudgetError, MissingExtraError, TaskError, TeacherError
from tools.journal import Journal
from tools.workspace import Workspace

KEY = "sk-teacher-0123456789"
OPEN = Caps()


def generate(
    desk: Workspace, server: TeacherServer, *, caps: Caps = OPEN, n: int = 10, concurrency: int = 1
) -> MadeRows:
    request = generate_request(desk, n=n, batch_size=5, concurrency=concurrency, output=None)
    return make_rows(request, ask_teacher(server), caps=caps, sleep=lambda _: None)


def only_log(desk: Workspace) -> Path:
    (found,) = [p for p in data_work_dir(desk).glob("*.jsonl") if ".leaks" not in p.name]
    return found


# Endpoints.


@pytest.mark.parametrize("status", [429, 500, 502, 503, 529])
def test_a_busy_teacher_is_asked_again(status: int, desk: Workspace, server: TeacherServer) -> None:
    server.answer = lambda asked: Says(status=status) if asked.number % 2 else good_answer(asked)
    assert generate(desk, server).added == 10
    assert len(server.asked) == 4


def test_the_wait_is_what_the_server_names_within_reason(desk: Workspace, server: TeacherServer) -> None:
    waits: list[float] = []
    named = {1: "7", 2: "soon", 3: "86400"}
    server.answer = lambda asked: (
        Says(status=429, headers={"Retry-After": named[asked.number]})
        if asked.number in named
        else good_answer(asked)
    )
    request = generate_request(desk, n=5, batch_size=5, concurrency=1, output=None)
    assert make_rows(request, ask_teacher(server), caps=OPEN, sleep=waits.append).added == 5
    assert waits == [7.0, 1.0, 60.0]


def test_a_connection_that_breaks_is_tried_again(desk: Workspace, server: TeacherServer) -> None:
    server.answer = lambda asked: Says("[]", cut=True) if asked.number == 1 else good_answer(asked)
    assert generate(desk, server, n=5).added == 5
    assert len(server.asked) == 2


def test_a_teacher_that_never_answers_is_not_waited_for(desk: Workspace, server: TeacherServer) -> None:
    server.answer = lambda asked: Says("[]", delay_s=60.0) if asked.number == 1 else good_answer(asked)
    request = generate_request(desk, n=5, batch_size=5, concurrency=1, output=None)
    teacher = ask_teacher(server, timeout_s=1.5)
    started = time.monotonic()
    assert make_rows(request, teacher, caps=OPEN, sleep=lambda _: None).added == 5
    assert time.monotonic() - started < 30


def test_after_an_outage_the_same_command_goes_on(desk: Workspace, server: TeacherServer) -> None:
    server.answer = lambda asked: good_answer(asked) if asked.number <= 2 else Says(status=503)
    with pytest.raises(TeacherError, match="10 rows are kept") as caught:
        generate(desk, server, n=25)
    assert "the same command goes on" in str(caught.value)
    assert len(server.asked) == 2 + 3 * 4
    assert len(train_rows(desk)) == 4
    server.answer = good_answer
    before = len(server.asked)
    made = generate(desk, server, n=25)
    assert made.added == 25
    assert len(server.asked) - before == 3
    assert made.calls == len(server.asked)


def test_one_batch_that_fails_does_not_end_a_job(desk: Workspace, server: TeacherServer) -> None:
    server.answer = lambda asked: (
        Says("not now", status=400) if asked.number in (1, 3) else good_answer(asked)
    )
    assert generate(desk, server).added == 10


def test_a_key_is_sent_and_shown_to_nobody(
    desk: Workspace, server: TeacherServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    request = generate_request(desk, n=5, batch_size=5, concurrency=1, output=None)
    make_rows(request, ask_teacher(server, api_key_env="TEACHER_KEY"), caps=OPEN)
    assert server.asked[0].headers["Authorization"] == f"Bearer {KEY}"
    assert KEY not in only_log(desk).read_text(encoding="utf-8")
    server.answer = lambda asked: Says(f"wrong key {KEY}", status=401)
    again = generate_request(desk, n=6, batch_size=5, concurrency=1, output=None)
    with pytest.raises(TeacherError, match="HTTP 401") as caught:
        make_rows(again, ask_teacher(server, api_key_env="TEACHER_KEY"), caps=OPEN)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (TeacherChoice("gpt", "m"), "allowed: .'claude', 'openai'"),
        (TeacherChoice("openai", " ", "http://localhost/v1"), "--model"),
        (TeacherChoice("openai", "m"), "--base-url"),
        (TeacherChoice("openai", "m", "http://localhost/v1", "NO_SUCH_KEY"), "NO_SUCH_KEY is not set"),
        (TeacherChoice("claude", "m", api_key_env="NO_SUCH_KEY"), "NO_SUCH_KEY is not set"),
    ],
)
def test_a_teacher_that_cannot_be_asked_is_refused_before_the_first_call(
    choice: TeacherChoice, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    with pytest.raises(TeacherError, match=words):
        open_teacher(choice)


def test_without_its_package_claude_is_refused_with_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "anthropic", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"bakehouse\[anthropic\]"):
        open_teacher(TeacherChoice("claude", "m"))


def test_a_model_that_refuses_the_old_name_of_the_limit_is_given_the_new_one(
    desk: Workspace, server: TeacherServer
) -> None:
    def newer(asked: Asked) -> Says:
        if "max_tokens" in asked.body:
            return Says("Unsupported parameter; use 'max_completion_tokens' instead.", status=400)
        return good_answer(asked)

    server.answer = newer
    assert generate(desk, server, n=5).added == 5
    assert [asked.body.get("max_completion_tokens") for asked in server.asked] == [None, 4096]


@pytest.mark.parametrize("name", ["BACKGROUND.md", "mission.md", "system_prompt.md"])
def test_a_document_that_leads_out_of_the_workspace_is_not_sent(
    name: str, desk: Workspace, server: TeacherServer, tmp_path: Path
) -> None:
    secret = tmp_path / "id_ed25519"
    secret.write_text("a private matter", encoding="utf-8")
    (desk.root / name).unlink()
    (desk.root / name).symlink_to(secret)
    with pytest.raises(TaskError, match="leaves the workspace"):
        generate(desk, server)
    assert server.asked == []


def test_a_document_in_another_encoding_is_named(desk: Workspace, server: TeacherServer) -> None:
    (desk.root / "BACKGROUND.md").write_bytes("Höhe".encode("latin-1"))
    with pytest.raises(TaskError, match=r"BACKGROUND\.md is not UTF-8"):
        generate(desk, server)


# Claude, through the real package.


def test_claude_writes_rows_too(
    desk: Workspace, server: TeacherServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("anthropic")
    monkeypatch.setenv("TEACHER_KEY", KEY)
    busy = {1: 429, 3: 529}
    server.answer = lambda asked: (
        Says(status=busy[asked.number]) if asked.number in busy else good_answer(asked)
    )
    teacher = ask_teacher(server, kind="claude", base_url=server.url, api_key_env="TEACHER_KEY")
    request = generate_request(desk, n=10, batch_size=5, concurrency=1, output=None)
    made = make_rows(request, teacher, caps=Caps(calls=4), sleep=lambda _: None)
    assert (made.added, made.calls) == (10, 4)
    assert [asked.path for asked in server.asked] == ["/v1/messages"] * 4
    (head,) = server.asked[0].body["system"]
    assert head["cache_control"] == {"type": "ephemeral"}
    assert server.asked[1].system == server.asked[3].system
    assert train_rows(desk)[-1]["meta"]["generated"]["model"] == "tiny-teacher"


# Caps.


def test_no_call_is_made_over_the_cap(desk: Workspace, server: TeacherServer) -> None:
    made = generate(desk, server, caps=Caps(calls=3), n=100, concurrency=4)
    assert (made.stopped_by, made.calls, len(server.asked)) == ("cap", 3, 3)
    assert made.added == 15
    assert "cap of 3 calls" in made.reason
    assert len(train_rows(desk)) == 19


def test_attempts_on_a_busy_server_count(desk: Workspace, server: TeacherServer) -> None:
    server.answer = lambda asked: Says(status=503)
    made = generate(desk, server, caps=Caps(calls=2))
    assert (made.stopped_by, made.added, len(server.asked)) == ("cap", 0, 2)


def test_the_worst_case_of_a_call_is_debited_before_it_is_made(
    desk: Workspace, server: TeacherServer
) -> None:
    generate(desk, server, n=5)
    asked = server.asked[0]
    worst = worst_case_tokens(asked.system, asked.question, asked.body["max_tokens"])
    made = generate(desk, server, caps=Caps(tokens=worst - 1), n=6)
    assert (made.stopped_by, made.calls, made.tokens) == ("cap", 0, 0)
    assert f"over the cap of {worst - 1}" in made.reason
    assert len(server.asked) == 1


def test_a_server_that_does_not_say_what_it_took_is_charged_the_worst_case(
    desk: Workspace, server: TeacherServer
) -> None:
    server.answer = lambda asked: Says(json.dumps(good_items(asked)), usage=None)
    made = generate(desk, server, n=5)
    asked = server.asked[0]
    assert made.tokens == worst_case_tokens(asked.system, asked.question, asked.body["max_tokens"])


def test_a_meter_never_lets_threads_spend_the_same_call_twice() -> None:
    import threading

    meter = Meter(Caps(calls=100))
    refused: list[str] = []

    def spend() -> None:
        for _ in range(50):
            try:
                meter.debit(1)
            except BudgetError as err:
                refused.append(str(err))

    threads = [threading.Thread(target=spend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meter.spent == Spent(100, 100)
    assert len(refused) == 100


@pytest.mark.parametrize("caps", [{"calls": 0}, {"tokens": -1}])
def test_a_cap_below_one_is_refused(caps: dict[str, int]) -> None:
    with pytest.raises(BudgetError, match="from 1"):
        Caps(**caps)


# Kills.


def start_child(desk: Workspace, server: TeacherServer, n: int) -> subprocess.Popen[bytes]:
    arguments = ["--n", str(n), "--batch-size", "5", "--concurrency", "2", "--teacher", "openai"]
    where = ["--base-url", f"{server.url}/v1", "--model", "tiny-teacher", "--workspace", str(desk.root)]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "agent", "generate", *arguments, *where, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=desk.root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(condition: object, limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    assert callable(condition)
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def test_a_kill_loses_the_batches_in_flight_and_nothing_else(desk: Workspace, server: TeacherServer) -> None:
    def stall(asked: Asked) -> Says:
        return Says(json.dumps(good_items(asked)), delay_s=0.0 if asked.number <= 4 else 30.0)

    server.answer = stall
    child = start_child(desk, server, n=40)
    wait_for(lambda: len(server.asked) == 6)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert len(train_rows(desk)) == 4
    log = JobLog(only_log(desk), clock=str)
    assert len(log.batches) == 4
    assert log.spent.calls == 6

    server.answer = good_answer
    before = len(server.asked)
    child = start_child(desk, server, n=40)
    printed, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    made = json.loads(printed)
    assert (made["added"], made["calls"]) == (40, 10)
    assert len(server.asked) - before == 4
    rows = train_rows(desk)
    assert len(rows) == 44
    assert len({row["id"] for row in rows}) == len({row["messages"][0]["content"] for row in rows}) == 44
    assert only_log(desk).stem == made["job_id"]


def test_kills_at_any_moment_end_in_the_same_rows(desk: Workspace, server: TeacherServer) -> None:
    chance = random.Random(7)
    server.answer = lambda asked: Says(json.dumps(good_items(asked)), delay_s=chance.uniform(0.0, 0.05))
    before = (desk.root / "data" / "train.jsonl").read_bytes()
    for _ in range(4):
        child = start_child(desk, server, n=300)
        target = len(server.asked) + chance.randrange(1, 9)
        wait_for(lambda goal=target: len(server.asked) >= goal)  # type: ignore[misc]
        time.sleep(chance.uniform(0.0, 0.03))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert (desk.root / "data" / "train.jsonl").read_bytes() == before
    child = start_child(desk, server, n=300)
    printed, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    made = json.loads(printed)
    assert (made["added"], made["refused"]) == (300, {})
    texts = [row["messages"][0]["content"] for row in train_rows(desk)]
    assert len(texts) == len(set(texts)) == 304
    # Every debit is on disk before its call, so none of them was forgotten by a kill.
    assert len(server.asked) <= made["calls"] <= len(server.asked) + 8


def test_an_interrupt_does_not_wait_for_calls(desk: Workspace, server: TeacherServer) -> None:
    server.answer = lambda asked: Says(json.dumps(good_items(asked)), delay_s=30.0 * (asked.number > 1))
    child = start_child(desk, server, n=40)
    wait_for(lambda: len(server.asked) == 3)
    started = time.monotonic()
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=60)
    assert child.returncode != 0
    assert time.monotonic() - started < 20
    assert len(JobLog(only_log(desk), clock=str).batches) == 1


def test_a_kill_between_the_write_and_its_note_adds_nothing_twice(
    desk: Workspace, server: TeacherServer
) -> None:
    made = generate(desk, server)
    lines = made.log.read_text(encoding="utf-8").splitlines(keepends=True)
    assert '"written"' in lines[-1]
    made.log.write_text("".join(lines[:-1]), encoding="utf-8")
    desk.journal_file.unlink()
    again = generate(desk, server)
    assert (again.job_id, again.added, len(server.asked)) == (made.job_id, 10, 2)
    assert len(train_rows(desk)) == 14
    assert [e.key for e in Journal(desk.journal_file, clock=str).events()] == [made.job_id]


def test_a_torn_last_line_costs_its_batch_alone(desk: Workspace, server: TeacherServer) -> None:
    server.answer = lambda asked: good_answer(asked) if asked.number <= 2 else Says(status=503)
    with pytest.raises(TeacherError):
        generate(desk, server, n=20)
    log = only_log(desk)
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    last = max(place for place, line in enumerate(lines) if '"batch"' in line)
    log.write_text("".join(lines[:last]) + lines[last][:40], encoding="utf-8")
    server.answer = good_answer
    assert generate(desk, server, n=20).added == 20
    assert len(train_rows(desk)) == 24


def test_a_finished_job_is_not_taken_for_an_unfinished_one(desk: Workspace, server: TeacherServer) -> None:
    first = generate(desk, server)
    second = generate(desk, server)
    assert first.job_id != second.job_id
    assert (first.added, second.added) == (10, 10)
    assert len(train_rows(desk)) == 24


def test_rows_kept_before_a_split_grew_pass_the_gate_again(desk: Workspace, server: TeacherServer) -> None:
    server.answer = lambda asked: good_answer(asked) if asked.number == 1 else Says(status=503)
    with pytest.raises(TeacherError):
        generate(desk, server)
    kept = JobLog(only_log(desk), clock=str).batches[1]["rows"][0]
    with (desk.root / "data" / "test.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"id": "late", "messages": kept["messages"]}) + "\n")
    server.answer = good_answer
    made = generate(desk, server)
    texts = [row["messages"][0]["content"] for row in train_rows(desk)]
    assert kept["messages"][0]["content"] not in texts
    assert made.refused["leak"] == 1
    assert made.added == 10


def test_a_full_disk_spends_no_call(
    desk: Workspace, server: TeacherServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # /dev/full refuses every byte, as a full disk does.
    before = (desk.root / "data" / "train.jsonl").read_bytes()
    folder = data_work_dir(desk)
    folder.mkdir(parents=True)
    real = JobLog.debit

    def full(log: JobLog, worst: int) -> None:
        log.path = Path("/dev/full")
        real(log, worst)

    monkeypatch.setattr(JobLog, "debit", full)
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    with pytest.raises(TeacherError, match="ended without a result"):
        generate(desk, server)
    assert server.asked == []
    assert (desk.root / "data" / "train.jsonl").read_bytes() == before
