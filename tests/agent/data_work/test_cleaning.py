"""Cleaning: what a teacher wrote goes, what people wrote stays byte for byte."""

from __future__ import annotations

import json

import pytest

from agent.data_work.cleaning import clean_rows
from agent.data_work.row_commands import generate_request
from agent.data_work.row_making import make_rows
from agent.teachers.meter import Caps
from tests.agent.data_work.desk import TRAIN, ask_teacher, train_rows, write_rows
from tests.agent.data_work.teacher_server import TeacherServer
from tools.errors import LockHeldError, TaskError
from tools.journal import Journal
from tools.lock import hold_workspace
from tools.workspace import Workspace


def generate(desk: Workspace, server: TeacherServer) -> None:
    request = generate_request(desk, n=6, batch_size=6, concurrency=1, output=None)
    assert make_rows(request, ask_teacher(server), caps=Caps()).added == 6


def test_generated_rows_go_and_are_kept_in_the_log(desk: Workspace, server: TeacherServer) -> None:
    train = desk.root / "data" / "train.jsonl"
    before = train.read_bytes()
    generate(desk, server)
    cleaned = clean_rows(desk)
    assert (cleaned.removed, cleaned.left) == (6, 4)
    assert train.read_bytes() == before
    assert cleaned.log is not None
    kept = [json.loads(line) for line in cleaned.log.read_text(encoding="utf-8").splitlines()]
    assert sum(line["kind"] == "removed" for line in kept) == 6
    events = Journal(desk.journal_file, clock=str).events()
    assert [event.data["command"] for event in events] == ["generate", "clean"]
    assert clean_rows(desk).removed == 0


def test_only_rows_that_are_seeds_too_stay_on_request(desk: Workspace, server: TeacherServer) -> None:
    generate(desk, server)
    write_rows(desk.root / "data" / "seed.jsonl", TRAIN[:2], "seed")
    assert clean_rows(desk, keep_seed=True).left == 2
    assert [row["id"] for row in train_rows(desk)] == ["train-1", "train-2"]


def test_without_seeds_nothing_is_taken_for_one(desk: Workspace) -> None:
    with pytest.raises(TaskError, match=r"no data/seed\.jsonl"):
        clean_rows(desk, keep_seed=True)
    assert len(train_rows(desk)) == 4


def test_a_file_of_generated_rows_alone_becomes_empty(desk: Workspace, server: TeacherServer) -> None:
    train = desk.root / "data" / "train.jsonl"
    train.write_text("", encoding="utf-8")
    generate(desk, server)
    assert clean_rows(desk).left == 0
    assert train.read_bytes() == b""


def test_a_row_that_merely_has_such_a_key_is_not_generated(desk: Workspace) -> None:
    rows = train_rows(desk)
    rows[0]["meta"] = {"generated": True}
    rows[1]["meta"] = {"generated": {"generator": "a script of mine"}}
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (desk.root / "data" / "train.jsonl").write_text(text, encoding="utf-8")
    assert clean_rows(desk).removed == 0


def test_nothing_is_cleaned_under_a_flywheel(desk: Workspace) -> None:
    with hold_workspace(desk.state_dir, what="flywheel"), pytest.raises(LockHeldError, match="flywheel"):
        clean_rows(desk)
