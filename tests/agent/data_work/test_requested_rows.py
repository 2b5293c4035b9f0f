"""Rows that a flywheel has made for a request: a data set beside the splits, or the reason why not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.data_work.requested_rows import make_requested_rows, next_request, note_requested
from agent.ideas.idea import Idea
from agent.ideas.queue import IdeaQueue, QueueItem, open_queue
from agent.plan import DataRequest
from agent.teachers.budgeted import BudgetedTeacher
from agent.training_rows import find_rows
from tests.agent.data_work.desk import TRAIN, ask_teacher, train_rows, write_rows
from tests.agent.data_work.teacher_server import Says, TeacherServer
from tools.clock import utc_now
from tools.dataset import load_dataset
from tools.errors import BudgetError
from tools.workspace import Workspace

DATASET = "data/train.jsonl"


def ask(queue: IdeaQueue, rows: int = 50) -> QueueItem:
    idea = Idea(hypothesis="hover is rare", data_request=DataRequest(focus="hover", rows=rows))
    item = queue.add(idea, author="claude/tiny")
    assert item is not None
    return item


def make(desk: Workspace, item: QueueItem, teacher: Any) -> Any:
    return make_requested_rows(desk, desk.load_task(), DATASET, item, teacher, clock=utc_now)


def test_rows_join_the_data_set_of_the_incumbent_and_are_paid_for_once(
    desk: Workspace, server: TeacherServer
) -> None:
    before = (desk.root / DATASET).read_bytes()
    item = ask(open_queue(desk))
    found = make(desk, item, ask_teacher(server))
    assert (found.n_rows, found.why, found.author) == (len(TRAIN) // 2, "", "claude/tiny")
    rows = load_dataset(find_rows(desk, found.dataset)).rows
    assert [row.id for row in rows[: len(TRAIN)]] == [row["id"] for row in train_rows(desk)]
    assert len(rows) == len(TRAIN) + 2
    assert (desk.root / DATASET).read_bytes() == before
    n_asked = len(server.asked)
    assert make(desk, item, ask_teacher(server)) == found
    assert len(server.asked) == n_asked


def test_a_row_of_the_data_set_is_not_put_into_it_again(desk: Workspace, server: TeacherServer) -> None:
    item = ask(open_queue(desk), rows=2)
    first = make(desk, item, ask_teacher(server))
    again = make_requested_rows(
        desk, desk.load_task(), first.dataset, item, ask_teacher(server), clock=utc_now
    )
    assert (again.dataset, again.is_over) == (None, True)


def test_a_request_that_brings_nothing_is_over(desk: Workspace, server: TeacherServer) -> None:
    server.answer = lambda _: Says("I know none.")
    queue = open_queue(desk)
    found = make(desk, ask(queue), ask_teacher(server))
    assert (found.dataset, found.is_over, found.why) == (None, True, "no usable row came of it")
    note_requested(queue, "i0002", found)
    assert (queue.find("q0001").state, queue.find("q0001").rows) == ("done", 0)


def test_a_cap_or_an_outage_leaves_the_request_waiting(desk: Workspace, server: TeacherServer) -> None:
    class Empty:
        def reserve(self, worst: object) -> int:
            raise BudgetError("up to 9000 more would pass budget.tokens")

        def settle(self, number: int, spent: object) -> None:
            raise AssertionError("nothing was reserved")

    queue = open_queue(desk)
    item = ask(queue)
    capped = make(desk, item, BudgetedTeacher(ask_teacher(server), Empty(), None))
    assert (capped.dataset, capped.is_over) == (None, False)
    assert "budget.tokens" in capped.why
    assert server.asked == []
    server.answer = lambda _: Says("gone", status=404)
    out = make(desk, item, ask_teacher(server))
    assert (out.dataset, out.is_over) == (None, False)
    for found in (capped, out):
        note_requested(queue, "i0002", found)
    assert queue.find("q0001").state == "queued"


def test_what_could_not_be_committed_is_not_tried(
    desk: Workspace, server: TeacherServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = ask(open_queue(desk))
    with monkeypatch.context() as patch:
        patch.setattr("agent.data_work.requested_rows.DEFAULT_MAX_BYTES", 100)
        assert "100 can be committed" in make(desk, item, ask_teacher(server)).why
    key = "AKIA" + "IOSFODNN7EXAMPLQ"
    write_rows(desk.root / DATASET, [*TRAIN, (f"log in with {key}", "hover")], "train")
    found = make(desk, item, ask_teacher(server))
    assert "what looks like a credential" in found.why
    assert key not in json.dumps(found.model_dump())


def test_an_iteration_goes_on_with_the_request_that_it_took(desk: Workspace) -> None:
    queue = open_queue(desk)
    assert next_request(queue, "i0001") is None
    for focus in ("hover", "land"):
        queue.add(Idea(hypothesis="h", data_request=DataRequest(focus=focus)), author="a")
    assert next_request(queue, "i0001") == queue.find("q0001")
    queue.take("q0002", "i0001")
    assert next_request(queue, "i0001") == queue.find("q0002")
    assert next_request(queue, "i0002") == queue.find("q0001")
