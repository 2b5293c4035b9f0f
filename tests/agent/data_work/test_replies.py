"""Replies: whatever a teacher says, reading it ends soon and raises nothing."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, strategies as st

from agent.data_work.replies import find_objects

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(st.sampled_from(["user", "assistant", "n"]), JSON, max_size=3), max_size=5))
def test_a_whole_array_is_read_back(rows: list[dict[str, Any]]) -> None:
    assert list(find_objects("Here:\n" + json.dumps(rows) + "\nDone.")) == rows


@given(st.text(alphabet='[]{}",:\\ab1 \n', max_size=200))
def test_no_text_raises(text: str) -> None:
    assert all(isinstance(found, dict) for found in find_objects(text))


@given(st.integers(min_value=0, max_value=400))
def test_a_cut_array_gives_the_rows_before_the_cut(cut: int) -> None:
    rows = [{"user": f"row {n}", "assistant": "ok"} for n in range(8)]
    found = find_objects(json.dumps(rows)[:cut])
    assert list(found) == rows[: len(found)]


@pytest.mark.parametrize(
    "text", ["[" * 400_000, '{"a":' * 100_000, "[1," * 150_000, '["' + "x" * 400_000, "{}" * 200_000]
)
def test_hostile_replies_are_read_in_bounded_time(text: str) -> None:
    started = time.monotonic()
    find_objects(text)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("text", ['[{"user": NaN}]', '[{"user": 1, "user": 2}]', "[1, 2]", "", "{"])
def test_what_is_no_object_of_json_is_left_out(text: str) -> None:
    assert find_objects(text) == ()


def test_only_what_is_said_after_the_thinking_counts() -> None:
    assert find_objects('<think>[{"user": "no"}]</think>[{"user": "yes"}]') == ({"user": "yes"},)
