"""The audit: every row reviewed or named as not reviewed, and fixes that pass the gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.data_work.audit import Audit, audit_rows
from agent.data_work.findings import Severity
from agent.data_work.mending import Mended, check_severity, mend_rows
from agent.teachers.meter import Caps
from tests.agent.data_work.desk import JUDGED, JUDGED_MARK, TRAIN, ask_teacher, train_rows, write_rows
from tests.agent.data_work.teacher_server import Asked, Says, TeacherServer
from tools.errors import DatasetError, LockHeldError, TeacherError
from tools.journal import Journal
from tools.lock import hold_workspace
from tools.workspace import Workspace


def indexes(asked: Asked) -> list[int]:
    """The rows that a request asks about."""
    block = asked.question.partition("<data>\n")[2].partition("\n</data>")[0]
    return [json.loads(line)["index"] for line in block.splitlines()]


def reviewer(findings: dict[int, dict[str, Any]]) -> Any:
    """A teacher that finds this and nothing else."""

    def answer(asked: Asked) -> Says:
        told = [{"severity": "ok", "issue": "", **findings.get(i, {}), "index": i} for i in indexes(asked)]
        return Says(json.dumps(told))

    return answer


def audit(desk: Workspace, server: TeacherServer, **options: Any) -> Audit:
    settings = {"batch_size": 2, "concurrency": 1, "caps": Caps(), "sleep": lambda _: None, **options}
    return audit_rows(desk, ask_teacher(server), **settings)


def mend(desk: Workspace, found: Audit, least: Severity = "error") -> Mended:
    return mend_rows(desk, found, min_severity=least)


def severities(found: Audit) -> list[str]:
    return [finding.severity for finding in found.findings]


def fix(user: str, command: str, severity: str = "error", **more: Any) -> dict[str, Any]:
    suggested = {"user": user, "assistant": {"cmd": command}}
    return {"severity": severity, "issue": "wrong", "suggested_fix": suggested, **more}


def test_every_row_is_reviewed_and_the_file_is_left_alone(desk: Workspace, server: TeacherServer) -> None:
    before = (desk.root / "data" / "train.jsonl").read_bytes()
    server.answer = reviewer({2: fix("please land now", "rtl", issue="a\nlong  story")})
    found = audit(desk, server)
    assert severities(found) == ["ok", "error", "ok", "ok"]
    assert found.findings[1].issue == "a long story"
    assert (found.unreviewed, found.reason, found.calls) == ((), "", 2)
    assert (desk.root / "data" / "train.jsonl").read_bytes() == before
    assert "Commands: goto, land" in server.asked[0].system


def test_a_teacher_that_lies_about_rows_is_not_believed(desk: Workspace, server: TeacherServer) -> None:
    def answer(asked: Asked) -> Says:
        lies = [
            {"index": 99, "severity": "error"},
            {"index": True, "severity": "error"},
            {"index": "1", "severity": "error"},
            {"index": 1, "severity": "dreadful"},
            {"index": 1, "severity": "info", "issue": 4, "suggested_fix": "land"},
            {"index": 1, "severity": "error"},
            {"index": 3, "severity": "ok"},
        ]
        return Says(json.dumps(lies))

    server.answer = answer
    found = audit(desk, server)
    assert [(f.index, f.severity, f.issue, f.suggested_fix) for f in found.findings] == [
        (1, "info", "", None),
        (3, "ok", "", None),
    ]
    assert found.unreviewed == (2, 4)
    assert "asked twice" in found.reason


def test_rows_that_a_reply_left_out_are_asked_about_once_more(desk: Workspace, server: TeacherServer) -> None:
    def answer(asked: Asked) -> Says:
        told = [{"index": i, "severity": "ok", "issue": ""} for i in indexes(asked)]
        return Says(json.dumps(told if asked.number > 2 else told[:1]))

    server.answer = answer
    assert severities(audit(desk, server)) == ["ok"] * 4
    assert [indexes(asked) for asked in server.asked] == [[1, 2], [3, 4], [2, 4]]


def test_checks_find_what_needs_no_teacher(desk: Workspace, server: TeacherServer) -> None:
    rows = [*TRAIN[:2], ("Please, LAND now.", "land"), ("boom", "selfdestruct")]
    write_rows(desk.root / "data" / "train.jsonl", rows, "train")
    server.answer = reviewer({})
    found = audit(desk, server)
    assert severities(found) == ["ok", "ok", "warning", "error"]
    assert "earlier row" in found.findings[2].issue
    assert "forbidden" in found.findings[3].issue
    assert found.findings[3].found_by == "check"


def test_a_row_that_copies_a_judged_one_is_named_and_never_sent(
    desk: Workspace, server: TeacherServer
) -> None:
    write_rows(desk.root / "data" / "train.jsonl", [TRAIN[0], JUDGED["test"][0]], "train")
    server.answer = reviewer({})
    found = audit(desk, server)
    assert severities(found) == ["ok", "error"]
    assert found.findings[1].issue == "exact of a row of test; take it out"
    assert JUDGED_MARK not in server.everything_said
    assert found.unreviewed == ()


def test_what_was_reviewed_is_not_paid_for_again(desk: Workspace, server: TeacherServer) -> None:
    server.answer = reviewer({1: fix("go to B5", "goto")})
    first = audit(desk, server)
    again = audit(desk, server)
    assert again.findings == first.findings
    assert len(server.asked) == 2
    assert severities(audit(desk, server, anew=True)) == severities(first)
    assert len(server.asked) == 4


def test_after_an_outage_only_the_rest_is_asked(desk: Workspace, server: TeacherServer) -> None:
    good = reviewer({})
    server.answer = lambda asked: good(asked) if asked.number == 1 else Says(status=503)
    with pytest.raises(TeacherError, match="1 rows are reviewed"):
        audit(desk, server, batch_size=1)
    server.answer = good
    before = len(server.asked)
    assert severities(audit(desk, server, batch_size=1)) == ["ok"] * 4
    assert [indexes(asked) for asked in server.asked[before:]] == [[2], [3], [4]]


def test_a_cap_leaves_rows_unreviewed_and_says_so(desk: Workspace, server: TeacherServer) -> None:
    server.answer = reviewer({})
    found = audit(desk, server, caps=Caps(calls=1))
    assert severities(found) == ["ok", "ok"]
    assert found.unreviewed == (3, 4)
    assert "cap of 1 calls" in found.reason


def test_a_fix_takes_the_place_of_a_bad_row_and_the_old_one_is_kept(
    desk: Workspace, server: TeacherServer
) -> None:
    before = (desk.root / "data" / "train.jsonl").read_bytes().splitlines()
    server.answer = reviewer({2: fix("please land now", "rtl"), 3: fix("climb", "ascend", "warning")})
    found = audit(desk, server)
    assert mend(desk, found) == Mended((2,), {})
    after = (desk.root / "data" / "train.jsonl").read_bytes().splitlines()
    assert [after[i] for i in (0, 2, 3)] == [before[i] for i in (0, 2, 3)]
    row = train_rows(desk)[1]
    assert row["id"] == "train-2"
    assert json.loads(row["messages"][1]["content"]) == {"cmd": "rtl"}
    assert row["meta"]["mended"]["severity"] == "error"
    assert len(row["meta"]["mended"]["prompt_digest"]) == 64
    notes = [json.loads(line) for line in found.log.read_text(encoding="utf-8").splitlines()]
    (kept,) = [note for note in notes if note["kind"] == "mended"]
    assert kept["before"]["messages"][1]["content"] == '{"cmd": "land"}'
    (event,) = [e for e in Journal(desk.journal_file, clock=str).events() if e.event == "data_work"]
    assert (event.data["command"], event.data["mended"]) == ("audit", 1)


def test_more_is_mended_from_a_lower_severity_on(desk: Workspace, server: TeacherServer) -> None:
    server.answer = reviewer({2: fix("please land", "land"), 3: fix("climb", "ascend", "warning")})
    assert mend(desk, audit(desk, server), "warning").mended == (2, 3)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (fix("x", "selfdestruct"), "forbidden"),
        ({**fix("x", "y"), "suggested_fix": {"user": "x", "assistant": "land!"}}, "scorer"),
        ({**fix("x", "y"), "suggested_fix": {"user": "x"}}, "needed"),
        ({**fix("x", "y"), "suggested_fix": None}, "no fix"),
        (fix("go to B4", "goto"), "duplicate"),
        (fix("please land now", "land"), "changes nothing"),
        (fix(JUDGED["selection"][0][0], "ascend"), "leak"),
    ],
)
def test_a_fix_that_fails_a_check_leaves_the_row_as_it_is(
    bad: dict[str, Any], why: str, desk: Workspace, server: TeacherServer
) -> None:
    before = (desk.root / "data" / "train.jsonl").read_bytes()
    server.answer = reviewer({2: bad})
    mended = mend(desk, audit(desk, server))
    assert mended.mended == ()
    assert why in mended.kept[2]
    assert JUDGED_MARK not in mended.kept[2]
    assert (desk.root / "data" / "train.jsonl").read_bytes() == before


def test_rows_that_changed_since_are_not_mended(desk: Workspace, server: TeacherServer) -> None:
    server.answer = reviewer({2: fix("please land now", "rtl")})
    found = audit(desk, server)
    write_rows(desk.root / "data" / "train.jsonl", TRAIN[1:], "train")
    with pytest.raises(DatasetError, match="changed since"):
        mend(desk, found)
    assert len(train_rows(desk)) == 3


def test_nothing_is_mended_under_a_flywheel(desk: Workspace, server: TeacherServer) -> None:
    server.answer = reviewer({2: fix("please land now", "rtl")})
    found = audit(desk, server)
    with hold_workspace(desk.state_dir, what="flywheel"), pytest.raises(LockHeldError):
        mend(desk, found)


def test_an_empty_file_has_nothing_to_audit(desk: Workspace, server: TeacherServer) -> None:
    (desk.root / "data" / "train.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="no rows"):
        audit(desk, server)


@pytest.mark.parametrize("text", ["ok", "fatal", ""])
def test_a_severity_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(DatasetError, match="allowed: error, warning, info"):
        check_severity(text)


def test_a_crlf_file_keeps_its_other_lines(desk: Workspace, server: TeacherServer) -> None:
    train: Path = desk.root / "data" / "train.jsonl"
    train.write_bytes(train.read_bytes().replace(b"\n", b"\r\n").rstrip(b"\r\n"))
    before = train.read_bytes().split(b"\n")
    server.answer = reviewer({2: fix("please land now", "rtl")})
    assert mend(desk, audit(desk, server)).mended == (2,)
    after = train.read_bytes().split(b"\n")
    assert [after[i] for i in (0, 2, 3)] == [before[i] for i in (0, 2, 3)]
