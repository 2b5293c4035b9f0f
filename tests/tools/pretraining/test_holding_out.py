"""What is measured on is not learned from."""

from __future__ import annotations

import pytest

from tools.errors import DatasetError
from tools.pretraining.corpus import Document
from tools.pretraining.holding_out import hold_out

DOCUMENTS = [Document(f"d{n}", f"text {n} " * 20, f"key{n}") for n in range(40)]


def test_the_documents_are_parted_by_about_the_share():
    parts = hold_out(DOCUMENTS, 0.1, seed=1)
    assert len(parts.held_out) == 4
    assert sorted([*parts.train, *parts.held_out], key=lambda d: d.name) == sorted(
        DOCUMENTS, key=lambda d: d.name
    )


def test_the_choice_follows_the_seed_and_not_the_order():
    chosen = hold_out(DOCUMENTS, 0.1, seed=1).held_out
    assert set(hold_out(DOCUMENTS[::-1], 0.1, seed=1).held_out) == set(chosen)
    assert set(hold_out(DOCUMENTS, 0.1, seed=2).held_out) != set(chosen)


def test_a_document_at_least_is_held_out_and_one_at_least_is_learned():
    for share in (0.01, 0.5):
        parts = hold_out(DOCUMENTS[:2], share, seed=1)
        assert (len(parts.train), len(parts.held_out)) == (1, 1)


def test_of_a_single_document_the_end_is_held_out():
    text = "\n\n".join(f"paragraph {n}" for n in range(10))
    parts = hold_out([Document("book", text, "k")], 0.2, seed=1)
    assert parts.train[0].text.endswith("paragraph 7")
    assert (parts.held_out[0].name, parts.held_out[0].text) == ("book (end)", "paragraph 8\n\nparagraph 9")
    with pytest.raises(DatasetError, match="one document of one paragraph"):
        hold_out([Document("book", "one", "k")], 0.2, seed=1)


@pytest.mark.parametrize("share", [0, -0.1, 0.51, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(DatasetError, match="held-out share"):
        hold_out(DOCUMENTS, share, seed=1)
