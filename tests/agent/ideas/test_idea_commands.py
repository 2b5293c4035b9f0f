"""ideate, queue and generate --request as a person types them: real children, a real teacher server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.data_work.desk import good_answer, good_items, make_desk, train_rows
from tests.agent.data_work.teacher_server import Asked, Says, TeacherServer
from tests.agent.ideas.test_ideator import GOOD, WISH
from tools.files import append_line
from tools.workspace import Workspace


@pytest.fixture
def desk(tmp_path: Path) -> Workspace:
    return make_desk(tmp_path / "a workspace")


@pytest.fixture
def server() -> Iterator[TeacherServer]:
    found = TeacherServer(good_answer)
    yield found
    found.close()


def bakehouse(desk: Workspace, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "agent", *arguments],
        cwd=desk.root,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


def answer(desk: Workspace, *arguments: str, stdin: str = "") -> Any:
    done = bakehouse(desk, *arguments, "--json", stdin=stdin)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def teacher(server: TeacherServer) -> tuple[str, ...]:
    return ("--teacher", "openai", "--base-url", f"{server.url}/v1", "--model", "tiny-teacher")


def test_a_brief_needs_no_key_and_asks_nobody(desk: Workspace) -> None:
    done = bakehouse(desk, "ideate", "--print-brief", "--n", "3")
    assert done.returncode == 0, done.stderr
    assert "Reply with one JSON array" in done.stdout
    assert "Propose up to 3 things" in done.stdout
    told = answer(desk, "ideate", "--print-brief")
    assert told["system"].startswith("You are the ideator")
    assert not (desk.state_dir / "ideas.jsonl").exists()


def test_proposals_go_in_by_file_or_stdin_and_are_listed_and_dropped(desk: Workspace, tmp_path: Path) -> None:
    source = tmp_path / "reply.txt"
    steering = {**GOOD, "hypothesis": "\x1b[2Jlow [bold]rate[/]\nq0009  done"}
    source.write_text("Gladly:\n" + json.dumps([steering, {**GOOD, "patch": {"seed": 3}}]), encoding="utf-8")
    done = bakehouse(desk, "ideate", "--from", str(source), "--author", "Ada")
    assert done.returncode == 0, done.stderr
    assert "1 idea(s) queued, 1 refused" in done.stdout
    assert "refused: 'seed': may not be patched" in done.stdout
    assert "\x1b" not in done.stdout
    assert "why: [2Jlow [bold]rate[/] q0009 done" in done.stdout
    made = answer(desk, "ideate", "--from", "-", stdin=json.dumps([WISH]))
    assert [item["id"] for item in made["queued"]] == ["q0002"]
    assert [item["id"] for item in answer(desk, "queue")["items"]] == ["q0001", "q0002"]
    assert (
        "q0002 is dropped: no hover here"
        in bakehouse(desk, "queue", "drop", "q0002", "--reason", "no hover here").stdout
    )
    assert "q0002" not in bakehouse(desk, "queue").stdout
    everything = answer(desk, "queue", "--all")
    assert [item["state"] for item in everything["items"]] == ["queued", "dropped"]
    assert [one["author"] for one in everything["refused"]] == ["Ada"]
    again = bakehouse(desk, "queue", "drop", "q0007", "--reason", "x")
    assert again.returncode == 1
    assert "no idea 'q0007'" in again.stderr


def test_a_model_is_asked_and_a_damaged_queue_is_told_of(desk: Workspace, server: TeacherServer) -> None:
    server.answer = lambda _: Says(json.dumps([GOOD]))
    made = answer(desk, "ideate", *teacher(server))
    assert [item["author"] for item in made["queued"]] == ["ideator/tiny-teacher"]
    append_line(desk.state_dir / "ideas.jsonl", "half a li")
    shown = bakehouse(desk, "queue")
    assert shown.returncode == 0
    assert "ideas.jsonl:2: not a JSON object" in " ".join(shown.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ideate",), "--model"),
        (("ideate", "--from", "nothing.json"), "cannot be read"),
        (("generate", "--request", "q0001"), "no idea 'q0001'"),
        (("queue", "drop", "q0001", "--reason", "x"), "none; `bakehouse ideate` makes some"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(
    desk: Workspace, arguments: tuple[str, ...], words: str
) -> None:
    done = bakehouse(desk, *arguments)
    assert done.returncode == 1
    assert words in " ".join(done.stderr.split())


def test_a_request_is_fulfilled_and_its_rows_name_it(desk: Workspace, server: TeacherServer) -> None:
    answer(desk, "ideate", "--from", "-", stdin=json.dumps([WISH, GOOD]))
    made = answer(desk, "generate", "--request", "q0001", "--n", "6", *teacher(server))
    assert (made["added"], made["wanted"]) == (6, 6)
    names = {row["meta"]["generated"]["request"] for row in train_rows(desk) if "meta" in row}
    (item,) = [one for one in answer(desk, "queue", "--all")["items"] if one["id"] == "q0001"]
    assert (item["state"], item["rows"], item["reason"]) == ("done", 6, "6 rows were made")
    assert names == {f"q0001 of {item['at']}"}
    assert '{"focus": "hover against loiter"}' in server.asked[0].question
    refused = bakehouse(desk, "generate", "--request", "q0001", *teacher(server))
    assert "q0001 is done (6 rows were made)" in " ".join(refused.stderr.split())
    patch = bakehouse(desk, "generate", "--request", "q0002", *teacher(server))
    assert "q0002 is a patch" in " ".join(patch.stderr.split())


def test_a_request_that_was_cut_short_goes_on_and_one_that_was_not_noted_is_not_made_twice(
    desk: Workspace, server: TeacherServer
) -> None:
    server.answer = lambda asked: Says(json.dumps(good_items(asked)[:2]))
    answer(desk, "ideate", "--from", "-", stdin=json.dumps([WISH]))
    ask = ("generate", "--request", "q0001", "--n", "4", *teacher(server))
    short = bakehouse(desk, *ask, "--max-calls", "1")
    assert short.returncode == 0, short.stderr
    assert "2 of 4 rows of q0001" in " ".join(short.stderr.split())
    assert answer(desk, "queue")["items"][0]["state"] == "queued"
    queue = (desk.state_dir / "ideas.jsonl").read_bytes()
    assert answer(desk, *ask)["added"] == 2
    assert len(train_rows(desk)) == 8
    # As if the kill had come between the rows and the note.
    (desk.state_dir / "ideas.jsonl").write_bytes(queue)
    n_asked = len(server.asked)
    again = bakehouse(desk, *ask)
    assert again.returncode == 0, again.stderr
    assert "4 of 4 rows of q0001" in " ".join(again.stderr.split())
    assert (len(server.asked), len(train_rows(desk))) == (n_asked, 8)
    assert answer(desk, "queue", "--all")["items"][0]["state"] == "done"


def test_a_leaking_row_is_refused_for_a_request_as_for_any_other(
    desk: Workspace, server: TeacherServer
) -> None:
    def leaking(asked: Asked) -> Says:
        leak = {"user": "dev walrus hold", "assistant": {"cmd": "hover"}}
        return Says(json.dumps([leak, *good_items(asked)]))

    server.answer = leaking
    answer(desk, "ideate", "--from", "-", stdin=json.dumps([WISH]))
    made = answer(desk, "generate", "--request", "q0001", "--n", "5", *teacher(server))
    assert made["refused"] == {"leak": 1}
    assert "walrus" not in (desk.root / "data" / "train.jsonl").read_text(encoding="utf-8")
