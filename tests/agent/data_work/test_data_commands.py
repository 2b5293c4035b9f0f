"""The data commands as a person types them: real children, a real teacher server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agent.data_work.desk import JUDGED, JUDGED_MARK, good_items, make_desk, train_rows
from tests.agent.data_work.teacher_server import Asked, Says, TeacherServer
from tools.workspace import Workspace


def bakehouse(desk: Workspace, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "agent", *arguments],
        cwd=desk.root,
        capture_output=True,
        text=True,
        check=False,
    )


def teacher(server: TeacherServer) -> tuple[str, ...]:
    return ("--teacher", "openai", "--base-url", f"{server.url}/v1", "--model", "tiny-teacher")


def leaking(asked: Asked) -> Says:
    leak = {"user": JUDGED["test"][0][0], "assistant": {"cmd": "rtl"}}
    return Says(json.dumps([leak, *good_items(asked)]))


def test_generate_says_what_came_and_shows_no_judged_text(desk: Workspace, server: TeacherServer) -> None:
    server.answer = leaking
    done = bakehouse(desk, "generate", "--n", "6", "--batch-size", "6", *teacher(server))
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    assert "6 of 6 rows added" in words
    assert "refused: 1 leak" in words
    assert "for your eyes only" in words
    assert JUDGED_MARK not in (done.stdout + done.stderr).lower()
    assert len(train_rows(desk)) == 10


def test_json_is_all_that_stands_on_stdout(desk: Workspace, server: TeacherServer) -> None:
    server.answer = leaking
    done = bakehouse(desk, "patch", "coordinates as floats", "--n", "3", "--json", *teacher(server))
    made = json.loads(done.stdout)
    assert (made["added"], made["stopped_by"], made["refused"]) == (3, "done", {"leak": 1})
    assert JUDGED_MARK not in done.stdout
    removed = json.loads(bakehouse(desk, "clean", "--json").stdout)
    assert (removed["removed"], removed["left"]) == (3, 4)


def test_audit_prints_its_report_and_fixes_on_request(desk: Workspace, server: TeacherServer) -> None:
    fix = {"user": "please land now", "assistant": {"cmd": "rtl"}}
    told = [{"index": i, "severity": "ok", "issue": ""} for i in (1, 3, 4)]
    told.append({"index": 2, "severity": "error", "issue": "lands [red]nowhere", "suggested_fix": fix})
    server.answer = lambda _: Says(json.dumps(told))
    shown = bakehouse(desk, "audit", *teacher(server))
    assert shown.returncode == 0, shown.stderr
    words = " ".join(shown.stdout.split())
    for part in ("index", "severity", "issue", "suggested fix", "error", "[red]nowhere", "3 rows ok"):
        assert part in words, part
    fixed = bakehouse(desk, "audit", "--fix", *teacher(server), "--json")
    assert json.loads(fixed.stdout)["mended"] == [2]
    assert json.loads(train_rows(desk)[1]["messages"][1]["content"]) == {"cmd": "rtl"}
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("generate",), "--model"),
        (("generate", "--output", "data/test.jsonl"), "judges results"),
        (("augment",), "no bakeoff"),
        (("audit", "--min-severity", "fatal"), "allowed: error, warning, info"),
        (("clean", "--keep-seed"), "data/seed.jsonl"),
    ],
)
def test_what_cannot_be_done_is_one_readable_message(
    arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    done = bakehouse(make_desk(tmp_path / "desk"), *arguments)
    assert done.returncode == 1
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
