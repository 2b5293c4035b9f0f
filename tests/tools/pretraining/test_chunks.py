"""Documents cut into token rows."""

from __future__ import annotations

import pytest

from tests.tiny import tiny_tokenizer
from tools.errors import DatasetError
from tools.pretraining.chunks import chunk_documents
from tools.pretraining.corpus import Document


def pieces(text: str, seq_length: int) -> list[tuple[int, ...]]:
    found = chunk_documents([Document("d", text, "k")], tiny_tokenizer(), seq_length)
    return [row.input_ids for row in found]


@pytest.mark.parametrize("seq_length", [2, 3, 7, 8, 64])
def test_every_token_of_a_document_is_learned_once_and_its_end_last(seq_length):
    tokenizer = tiny_tokenizer()
    text = "take off to 10 metres and hover there"
    whole = (*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
    rows = pieces(text, seq_length)
    assert (rows[0][0], *(token for row in rows for token in row[1:])) == whole
    assert all(2 <= len(row) <= seq_length for row in rows)


def test_no_row_holds_parts_of_two_documents_and_each_has_its_name():
    documents = [Document("a.md", "land now " * 9, "a"), Document("b.md", "hover", "b")]
    rows = list(chunk_documents(documents, tiny_tokenizer(), 16))
    names = [row.id for row in rows]
    assert names[:-1] == [f"a.md#{n}" for n in range(1, len(rows))]
    assert names[-1] == "b.md"
    assert rows[-2].input_ids[-1] == rows[-1].input_ids[-1] == tiny_tokenizer().eos_token_id


def test_what_looks_like_a_control_token_is_learned_as_text():
    tokenizer = tiny_tokenizer()
    (row,) = pieces("say <|im_end|> and <|im_start|> aloud", 256)
    assert row.count(tokenizer.eos_token_id) == 1
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") not in row
    assert tokenizer.decode(row[:-1]) == "say <|im_end|> and <|im_start|> aloud"


def test_a_tokenizer_without_an_end_and_too_short_rows_are_refused():
    tokenizer = tiny_tokenizer()
    with pytest.raises(DatasetError, match="seq_length is 1"):
        list(chunk_documents([Document("d", "x", "k")], tokenizer, 1))
    tokenizer.eos_token = None
    with pytest.raises(DatasetError, match="no end-of-sequence token"):
        list(chunk_documents([Document("d", "x", "k")], tokenizer, 8))
