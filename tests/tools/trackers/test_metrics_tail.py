"""A metrics file read while it grows, is replaced, or is torn."""

from __future__ import annotations

import json

from tools.files import append_line, write_text_atomic
from tools.trackers.metrics_tail import MetricsTail


def test_every_whole_line_is_read_once_and_a_torn_one_waits(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert tail.read() == ()
    append_line(path, json.dumps({"step": 1}))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": ')
    assert tail.read() == ({"step": 1},)
    assert tail.read() == ()
    with path.open("a", encoding="utf-8") as file:
        file.write("2}\n")
    assert tail.read() == ({"step": 2},)


def test_a_file_that_was_replaced_is_read_from_its_start(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    write_text_atomic(path, '{"step": 1}\n{"step": 2}\n')
    assert [line["step"] for line in tail.read()] == [1, 2]
    write_text_atomic(path, '{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    assert [line["step"] for line in tail.read()] == [1, 2, 3]


def test_lines_that_are_no_objects_are_left_out_however_long_they_are(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("[1]\nnonsense\n" + "x" * (3 << 20) + '\n{"step": 1}\n', encoding="utf-8")
    tail = MetricsTail(path)
    found = [line for _ in range(6) for line in tail.read()]
    assert found == [{"step": 1}]
