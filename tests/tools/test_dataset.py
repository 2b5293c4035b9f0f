from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from tools.dataset import (
    MAX_LINE_BYTES,
    Message,
    Row,
    check_dataset,
    data_digest,
    load_dataset,
    write_dataset,
)
from tools.errors import DatasetError

GOOD = {
    "id": "a-1",
    "messages": [{"role": "user", "content": "land"}, {"role": "assistant", "content": "ok"}],
    "tags": ["easy"],
}


def write(tmp_path: Path, *lines: Any, name: str = "rows.jsonl") -> Path:
    """Write each line: bytes as they are, anything else as JSON."""
    path = tmp_path / name
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return path


def messages(*turns: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_a_row_gives_its_prompt_and_its_expected_answer(tmp_path: Path) -> None:
    row_json = messages(
        ("system", "s"), ("user", "u1"), ("assistant", "a1"), ("user", "u2"), ("assistant", "a2")
    )
    (row,) = load_dataset(write(tmp_path, row_json))

    assert [turn.content for turn in row.prompt] == ["s", "u1", "a1", "u2"]
    assert row.expected == "a2"


def test_a_row_without_an_answer_loads_only_where_none_is_required(tmp_path: Path) -> None:
    path = write(tmp_path, messages(("user", "u")))

    with pytest.raises(DatasetError, match=r"the last turn is the user's; it must be the assistant's"):
        load_dataset(path)
    (row,) = load_dataset(path, require_answer=False)
    assert row.prompt == (Message("user", "u"),)
    with pytest.raises(DatasetError, match="ends without an assistant turn"):
        _ = row.expected


@pytest.mark.parametrize("question", ["prompt", "input"])
@pytest.mark.parametrize("answer", ["completion", "output"])
def test_a_pair_is_a_conversation_of_two_turns(tmp_path: Path, question: str, answer: str) -> None:
    (row,) = load_dataset(write(tmp_path, {question: "land", answer: "ok", "source": "x"}))

    assert row.messages == (Message("user", "land"), Message("assistant", "ok"))
    assert row.meta == {"source": "x"}


def test_other_keys_move_into_meta(tmp_path: Path) -> None:
    (row,) = load_dataset(write(tmp_path, {**GOOD, "meta": {"a": 1}, "source": ["b"], "prompt": "kept"}))

    assert row.meta == {"a": 1, "source": ["b"], "prompt": "kept"}


def test_a_row_is_frozen_and_still_copies_like_data(tmp_path: Path) -> None:
    (row,) = load_dataset(write(tmp_path, {**GOOD, "meta": {"a": 1}}))

    with pytest.raises(dataclasses.FrozenInstanceError):
        row.id = "b"  # type: ignore[misc]
    with pytest.raises(TypeError, match="frozen"):
        row.meta["a"] = 2  # type: ignore[index]
    assert pickle.loads(pickle.dumps(row)) == row == copy.deepcopy(row)
    assert hash(row) == hash(copy.deepcopy(row))
    assert dataclasses.asdict(row)["meta"] == {"a": 1}


def test_an_id_is_made_from_the_content_and_does_not_depend_on_the_place(tmp_path: Path) -> None:
    pair, other = {"prompt": "land", "completion": "ok"}, {"prompt": "up", "completion": "ok"}
    first = load_dataset(write(tmp_path, pair, other))
    second = load_dataset(write(tmp_path, other, messages(("user", "land"), ("assistant", "ok"))))

    assert {row.id for row in first} == {row.id for row in second}
    assert len({row.id for row in first}) == 2


def test_repeated_rows_without_ids_each_get_one(tmp_path: Path) -> None:
    pair = {"prompt": "land", "completion": "ok"}
    ids = [row.id for row in load_dataset(write(tmp_path, pair, pair, pair))]

    assert len(set(ids)) == 3
    assert ids[1:] == [ids[0] + "-2", ids[0] + "-3"]


# One bad line each; the line before and after it is good.
BAD_LINES: list[tuple[Any, str]] = [
    (b'{"id": "x", ', "not JSON"),
    (b'["a"]', r"\[\"a\"\] is no JSON object"),
    (b"3", "3 is no JSON object"),
    (b"null", "null is no JSON object"),
    (b'{"messages": []}', r"messages is \[\]; a list of at least one turn"),
    ({"messages": "hi"}, r'messages is "hi"'),
    ({"id": "x"}, r'the keys are \["id"\]; `messages` is needed'),
    ({"messages": ["hi"]}, r'messages\[0\] is "hi"; an object with "role" and "content"'),
    (messages(("bot", "x")), r'messages\[0\]\.role is "bot"; one of system, user, assistant'),
    (messages((None, "x")), r"messages\[0\]\.role is missing or null"),
    (messages((["user"], "x")), r'messages\[0\]\.role is \["user"\]'),
    (messages(("user", 3)), r"messages\[0\]\.content is 3; text is needed"),
    (messages(("user", [{"type": "text"}])), r"messages\[0\]\.content is \[\{"),
    (messages(("user", "")), r'messages\[0\]\.content is ""'),
    (messages(("user", " \n\t")), r"messages\[0\]\.content is "),
    (messages(("user", "u"), ("assistant", "")), r"messages\[1\]\.content is "),
    ({"messages": [{"role": "user", "content": "u", "tool_calls": []}]}, r'has the keys \["tool_calls"\]'),
    (messages(("user", "u")), "the last turn is the user's"),
    (messages(("assistant", "a")), "at least one user turn"),
    (messages(("user", "u"), ("assistant", "a"), ("assistant", "b")), "the last two turns are both"),
    ({**GOOD, "id": "a-1"}, "id 'a-1' is taken by line 1"),
    ({**GOOD, "id": ""}, r'id is ""'),
    ({**GOOD, "id": True}, "id is true"),
    ({**GOOD, "id": "a\tb"}, r"id is .* printable"),
    ({**GOOD, "id": "x" * 201}, "1 to 200 printable"),
    ({**GOOD, "id": "x", "tags": "easy"}, r'tags is "easy"; a list of strings'),
    ({**GOOD, "id": "x", "tags": [1]}, r"tags is \[1\]"),
    ({**GOOD, "id": "x", "meta": []}, r"meta is \[\]; an object"),
    ({**GOOD, "id": "x", "meta": {"k": 1}, "k": 2}, r'"k" stands both in meta and beside it'),
    ({"prompt": "p", "input": "i", "output": "o"}, "both prompt and input are given"),
    ({"prompt": "", "output": "o"}, r'prompt is ""; text is needed'),
    ({"prompt": "p", "output": {"cmd": 1}}, r'output is \{"cmd": 1\}; text is needed'),
    ({"prompt": "p"}, "a pair of"),
    (b'{"prompt": "p", "prompt": "q", "output": "o"}', 'key "prompt" is given twice'),
    (b'{"prompt": "p", "output": "o", "score": NaN}', "NaN is no JSON number"),
    (b'{"prompt": "p\xff", "output": "o"}', "not UTF-8 at byte 13"),
    (b'\xef\xbb\xbf{"prompt": "p", "output": "o"}', "byte order mark"),
    (b'{"prompt": "p\x00", "output": "o"}', "holds a NUL byte"),
    (b'{"prompt": "p\\u0000", "output": "o"}', "holds a NUL character"),
    (b'{"prompt": "p\\ud83d", "output": "o"}', "half a surrogate pair"),
    (b'{"prompt": "p", "output": "o", "k": {"\\udc00": 1}}', "half a surrogate pair"),
    (b'{"prompt": "p", "output": "o", "k": ' + b"[" * 40 + b"]" * 40 + b"}", "nested too deep"),
    (b"[" * 200_000, "nested too deep"),
]


@pytest.mark.parametrize(("line", "expected"), BAD_LINES)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: Any, expected: str) -> None:
    other = {**GOOD, "id": "a-2"}
    path = write(tmp_path, GOOD, line, other)

    with pytest.raises(DatasetError, match=expected) as caught:
        load_dataset(path)
    assert [text.split(": ")[0] for text in caught.value.problems] == [f"{path}:2"]
    assert check_dataset(path) == caught.value.problems


def test_every_bad_row_is_listed_and_the_message_shows_fifty(tmp_path: Path) -> None:
    path = write(tmp_path, *[b"nonsense"] * 120)

    with pytest.raises(DatasetError, match="120 problems") as caught:
        load_dataset(path)
    assert len(caught.value.problems) == 120
    assert str(caught.value).count("nonsense") == 0
    assert str(caught.value).count(f"{path}:") == 50
    assert str(caught.value).endswith("and 70 more")


def test_one_row_can_have_several_problems(tmp_path: Path) -> None:
    path = write(tmp_path, {"id": 1.5, "tags": 1, "messages": [{"role": "x", "content": 1}]})

    assert len(check_dataset(path)) == 4


def test_a_file_that_was_torn_in_its_last_row_does_not_load(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, {**GOOD, "id": "a-2"})
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(DatasetError, match=r"rows\.jsonl:2: not JSON"):
        load_dataset(path)


def test_a_line_over_the_limit_is_one_problem_and_the_next_line_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, b"x" * (MAX_LINE_BYTES * 2 + 7), b"nonsense")

    assert [text.split(": ")[0] for text in check_dataset(path)] == [f"{path}:2", f"{path}:3"]


def test_what_is_no_file_of_rows_is_refused(tmp_path: Path) -> None:
    empty, blank, pipe = tmp_path / "empty", tmp_path / "blank", tmp_path / "pipe"
    empty.touch()
    blank.write_text("\n \n", encoding="utf-8")
    os.mkfifo(pipe)

    assert "no rows" in check_dataset(empty)[0]
    assert "no rows" in check_dataset(blank)[0]
    assert "regular file is needed" in check_dataset(tmp_path)[0]
    assert "regular file is needed" in check_dataset(pipe)[0]
    assert "cannot be read" in check_dataset(tmp_path / "missing")[0]
    assert "cannot be read" in check_dataset("a\0b")[0]


def test_blank_lines_and_windows_line_ends_are_fine_and_lines_still_count(tmp_path: Path) -> None:
    good = json.dumps(GOOD).encode()
    assert len(load_dataset(write(tmp_path, b"", good + b"\r", b"  "))) == 1
    assert check_dataset(write(tmp_path, b"", good, b"?"))[0].split(": ")[0].endswith(":3")


def test_the_digest_ignores_layout_and_sees_every_change_of_content(tmp_path: Path) -> None:
    digest = load_dataset(write(tmp_path, GOOD)).digest
    spaced = json.dumps(dict(reversed(GOOD.items())), indent=None, separators=(" , ", " : ")).encode() + b"\r"
    escaped = json.dumps(GOOD).replace("land", "l\\u0061nd").encode()

    assert load_dataset(write(tmp_path, b"", spaced)).digest == digest
    assert load_dataset(write(tmp_path, escaped)).digest == digest
    changes: list[dict[str, Any]] = [{"id": "b"}, {"tags": []}, {"k": 1}]
    for change in (*changes, messages(("user", "Land"), ("assistant", "ok"))):
        assert load_dataset(write(tmp_path, {**GOOD, **change})).digest != digest


def test_the_digest_of_the_data_covers_each_split_by_name(tmp_path: Path) -> None:
    one = write(tmp_path, GOOD, name="one.jsonl")
    two = write(tmp_path, {**GOOD, "id": "b"}, name="two.jsonl")

    assert data_digest({"train": one, "dev": two}) == data_digest({"dev": two, "train": one})
    assert data_digest({"train": one, "dev": two}) != data_digest({"train": two, "dev": one})


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    row = Row(
        "ü-1",
        (Message("user", "lande\u2028 jetzt 漢"), Message("assistant", '{"a": "\\n"}')),
        ("t",),
        {"k": [1]},
    )
    path = write_dataset(tmp_path / "new" / "rows.jsonl", [row])

    assert load_dataset(path).rows == (row,)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (Row("a", (Message("user", ""),)), r"messages\[0\]\.content"),
        (Row("", (Message("user", "u"),)), "id is"),
        (Row("a", (Message("user", "\ud800"),)), "cannot be written"),
        (Row("a", (Message("user", "u"),), (), {"k": float("nan")}), "cannot be written"),
        (Row("a", (Message("user", "u"),), (), {"k": {1, 2}}), "cannot be written"),
    ],
)
def test_nothing_is_written_when_a_row_would_not_read_back(tmp_path: Path, row: Row, expected: str) -> None:
    path = write(tmp_path, GOOD)
    before = path.read_bytes()

    with pytest.raises(DatasetError, match=expected):
        write_dataset(path, [Row("ok", (Message("user", "u"),)), row])
    with pytest.raises(DatasetError, match="taken by line 1"):
        write_dataset(path, [Row("ok", (Message("user", "u"),))] * 2)
    with pytest.raises(DatasetError, match="no rows"):
        write_dataset(path, [])
    assert path.read_bytes() == before
