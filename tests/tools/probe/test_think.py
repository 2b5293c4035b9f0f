from __future__ import annotations

import time

import pytest
from hypothesis import given, strategies as st

from tools.probe import THINK_REGEX, is_cut_off, parse_think, strip_think

PIECES = st.lists(
    st.sampled_from(["<think>", "</think>", "<think", "think>", "a", "chain of words ", "\n", "é"])
)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("", (False, None, "")),
        ("no block", (False, None, "")),
        ("<think></think>answer", (True, 0, "")),
        ("<think> \n </think>answer", (True, 0, "")),
        ("<think>12345678</think>", (True, 2, "12345678")),
        ("<think>\n12345678\n</think>", (True, 2, "12345678")),
        ("<think></think>first<think>real chain</think>answer", (True, 2, "real chain")),
        ("<think>longer than it</think><think>short</think>", (True, 3, "longer than it")),
        ("chain</think>answer", (False, None, "")),
        ("<think>never ends", (False, None, "")),
        ("<THINK>12345678</THINK>", (False, None, "")),
    ],
)
def test_the_longest_chain_of_a_response_counts(
    response: str, expected: tuple[bool, int | None, str]
) -> None:
    assert parse_think(response) == expected


def test_white_space_does_not_make_a_block_the_longest() -> None:
    assert parse_think(f"<think>{' ' * 99}</think><think>the chain</think>")[2] == "the chain"


def test_a_tokenizer_can_count_instead_and_is_not_asked_about_an_empty_block() -> None:
    assert parse_think("<think>one two three</think>", count_tokens=lambda text: len(text.split()))[1] == 3
    assert parse_think("<think></think>", count_tokens=lambda _text: 7)[1] == 0


@given(PIECES.map("".join))
def test_blocks_are_those_of_the_documented_expression(response: str) -> None:
    chains = [chain.strip() for chain in THINK_REGEX.findall(response)]
    has_think, _, chain = parse_think(response)
    assert has_think == bool(chains)
    assert len(chain) == max(map(len, chains), default=0)
    rest = THINK_REGEX.sub("", response)
    assert is_cut_off(response) == ("<think>" in rest and _opens_last(response))
    if not is_cut_off(response):
        assert strip_think(response) == rest.strip()


def _opens_last(response: str) -> bool:
    end = max((match.end() for match in THINK_REGEX.finditer(response)), default=0)
    return "<think>" in response[end:]


def test_an_open_chain_is_cut_off_and_no_part_of_the_answer() -> None:
    assert is_cut_off("<think></think>hm<think>and so on")
    assert not is_cut_off("<think>whole</think>answer")
    assert strip_think("<think></think>hm<think>and so on") == "hm"


def test_a_model_that_loops_on_the_tag_costs_no_time() -> None:
    looping = "<think>" * 200_000
    started = time.perf_counter()
    assert parse_think(looping) == (False, None, "")
    assert is_cut_off(looping)
    assert strip_think(looping) == ""
    assert time.perf_counter() - started < 2
