"""Files survive a crash: whole or not at all, and a torn line costs itself alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.files import append_line, digest_json, read_jsonl, write_json_atomic, write_text_atomic


def test_a_failed_write_leaves_the_old_file_and_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file.json"
    write_text_atomic(target, "old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_text_atomic(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_written_file_has_the_mode_that_open_would_give(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    assert write_text_atomic(tmp_path / "atomic", "x").stat().st_mode == plain.stat().st_mode


def test_nan_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        write_json_atomic(tmp_path / "x.json", {"score": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_torn_last_line_is_never_glued_onto(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n{"a": 2', encoding="utf-8")
    append_line(path, '{"a": 3}')
    found = read_jsonl(path)
    assert found.rows == ({"a": 1}, {"a": 3})
    assert len(found.problems) == 1
    assert ":2:" in found.problems[0]


def test_a_header_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    append_line(path, "1", header="n")
    append_line(path, "2", header="n")
    assert path.read_text() == "n\n1\n2\n"


@pytest.mark.parametrize("line", ["two\nlines", "carriage\rreturn"])
def test_a_line_with_a_break_in_it_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        append_line(tmp_path / "log", line)
    assert not (tmp_path / "log").exists()


def test_appends_of_many_processes_leave_every_line_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    code = (
        "import sys, json; from tools.files import append_line\n"
        "for n in range(50): append_line(sys.argv[1], json.dumps([int(sys.argv[2]), n, 'x' * 500]))"
    )
    children = [
        subprocess.Popen([sys.executable, "-P", "-c", code, str(path), str(worker)]) for worker in range(6)
    ]
    assert [child.wait() for child in children] == [0] * 6
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted((worker, n) for worker, n, _ in lines) == [(w, n) for w in range(6) for n in range(50)]


def test_a_missing_file_has_no_rows(tmp_path: Path) -> None:
    assert read_jsonl(tmp_path / "none.jsonl").rows == ()


def test_the_digest_of_json_does_not_depend_on_order() -> None:
    assert digest_json({"a": 1, "b": [2]}) == digest_json({"b": [2], "a": 1})
    assert digest_json({"a": 1}) != digest_json({"a": 2})
