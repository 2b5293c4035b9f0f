"""A corpus read from disk: what is in it, what is left out, what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools.errors import DatasetError
from tools.pretraining.corpus import read_corpus


def write(folder: Path, **files: str | bytes) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return folder


def test_texts_and_lines_are_documents_named_by_file_and_line(tmp_path):
    folder = write(
        tmp_path / "corpus",
        b_txt="second",
        a_md="# first\r\n\r\nwith a line",
        sub__c_jsonl='{"text": "third", "more": 1}\n\n{"text": "fourth"}\n',
        d_pdf=b"%PDF\x00",
        _hidden_txt="never",
    )
    found = read_corpus([folder])
    assert [(one.name, one.text) for one in found.documents] == [
        ("corpus/a.md", "# first\n\nwith a line"),
        ("corpus/b.txt", "second"),
        ("corpus/sub/c.jsonl:1", "third"),
        ("corpus/sub/c.jsonl:3", "fourth"),
    ]
    assert found.n_files == 3


def test_a_text_with_the_same_words_counts_once_and_one_without_words_not_at_all(tmp_path):
    folder = write(tmp_path, a_txt="The drone lands.", b_md="the DRONE  lands!\n", c_txt=" -- \n", d_txt="")
    found = read_corpus([folder, folder / "a.txt"])
    assert [one.text for one in found.documents] == ["The drone lands."]
    assert (found.n_duplicates, found.n_empty, found.n_files) == (1, 2, 4)


def test_the_digest_follows_the_texts_and_not_their_names(tmp_path):
    first = read_corpus([write(tmp_path / "x", a_txt="one", b_txt="two")])
    same = read_corpus([write(tmp_path / "y", c_txt="one", d_txt="two")])
    other = read_corpus([write(tmp_path / "z", a_txt="one", b_txt="two!")])
    assert first.digest == same.digest != other.digest


def test_every_bad_file_and_line_is_listed(tmp_path):
    folder = write(
        tmp_path,
        a_jsonl='{"text": "fine"}\n{"text": 3}\nnonsense\n{"body": "x"}\n{"text": "\\ud800"}\n',
        b_txt=b"caf\xe9",
        c_md=b"a\x00b",
    )
    with pytest.raises(DatasetError) as caught:
        read_corpus([folder, tmp_path / "none.txt", write(tmp_path, e_pdf=b"x") / "e.pdf"])
    said = "\n".join(caught.value.problems)
    for part in (
        f"{folder}/a.jsonl:2: an object with a string",
        f"{folder}/a.jsonl:3: no JSON object",
        f"{folder}/a.jsonl:4: an object",
        f"{folder}/a.jsonl:5: the text holds half",
        "b.txt: not UTF-8 at byte 3",
        "c.md: holds a NUL",
        "none.txt does not exist",
        "e.pdf is of no kind that is read",
    ):
        assert part in said, part
    assert len(caught.value.problems) == 8


def test_nothing_to_read_is_refused_and_pipes_and_loops_are_not_followed(tmp_path):
    with pytest.raises(DatasetError, match=r"no \.txt, \.md or \.jsonl"):
        read_corpus([tmp_path])
    (tmp_path / "a.txt").write_text("word", encoding="utf-8")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert len(read_corpus([tmp_path]).documents) == 1
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DatasetError, match="is no regular file"):
        read_corpus([tmp_path])
