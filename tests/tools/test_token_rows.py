"""Rows that are tokens already."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.errors import DatasetError
from tools.token_rows import TokenRow, is_token_file, load_token_rows, write_token_rows


def test_what_is_written_is_read_back_and_its_digest_depends_on_every_token(tmp_path):
    rows = (TokenRow("a.md", (1, 2, 3)), TokenRow("b.md#2", (3, 4)))
    path = write_token_rows(tmp_path / "x.tokens.jsonl", rows)
    found = load_token_rows(path, vocab_size=5)
    assert found.rows == rows
    other = write_token_rows(tmp_path / "y.tokens.jsonl", (rows[0], TokenRow("b.md#2", (3, 1))))
    assert load_token_rows(other).digest != found.digest


def test_a_name_tells_whether_rows_are_tokens(tmp_path):
    assert is_token_file("data/x.tokens.jsonl")
    assert not is_token_file(Path("data/tokens.jsonl"))
    with pytest.raises(DatasetError, match="must end in"):
        write_token_rows(tmp_path / "x.jsonl", [])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "no JSON object"),
        ("[1]", "and nothing else"),
        ('{"id": "a", "input_ids": [1, 2], "more": 1}', "and nothing else"),
        ('{"id": "", "input_ids": [1, 2]}', "must be a text"),
        ('{"id": "a", "input_ids": [1]}', "two token ids at least"),
        ('{"id": "a", "input_ids": [1, 9]}', r"whole numbers in \[0, 9\)"),
        ('{"id": "a", "input_ids": [1, true]}', "whole numbers"),
        ('{"id": "a", "input_ids": [1, -1]}', "whole numbers"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, line, reason):
    path = tmp_path / "x.tokens.jsonl"
    path.write_text('{"id": "fine", "input_ids": [1, 2]}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=reason) as caught:
        load_token_rows(path, vocab_size=9)
    assert caught.value.problems[0].startswith(f"{path}:2: ")


def test_a_row_twice_an_empty_file_and_no_file_are_refused(tmp_path):
    path = tmp_path / "x.tokens.jsonl"
    path.write_text('{"id": "a", "input_ids": [1, 2]}\n' * 2, encoding="utf-8")
    with pytest.raises(DatasetError, match="stands in the file twice"):
        load_token_rows(path)
    path.write_text("", encoding="utf-8")
    with pytest.raises(DatasetError, match="holds no rows"):
        load_token_rows(path)
    with pytest.raises(DatasetError, match="cannot be read"):
        load_token_rows(tmp_path / "none.tokens.jsonl")
