from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from tools.dataset import Dataset, Message, Row
from tools.errors import DatasetError, LeakError
from tools.leakage import Leak, check_leaks, find_leaks
from tools.similarity import JaccardIndex, character_grams, numbered_words
from tools.wording import fold_words, squeeze_words


def rows(*texts: str, prefix: str = "t") -> Dataset:
    answer = Message("assistant", "the same answer, which is never compared")
    made = tuple(
        Row(f"{prefix}-{place}", (Message("user", text), answer)) for place, text in enumerate(texts)
    )
    return Dataset(Path(f"{prefix}.jsonl"), made, "")


def kinds(train: Sequence[str], judged: Sequence[str]) -> list[str]:
    return [leak.kind for leak in find_leaks(rows(*train), {"test": rows(*judged, prefix="j")})]


LONG = "please bring the drone back to the pad before the battery runs out"


@pytest.mark.parametrize(
    ("train", "judged", "expected"),
    [
        ("go to B4", "go to B4", ["exact"]),
        ("Go to B4!", "go to b4", ["normalized"]),
        ("take-off, please.", "Takeoff please", ["normalized"]),
        ("ｌａｎｄ ｎｏｗ", "land now", ["normalized"]),
        ("la\u200bnd n\u00adow", "land now", ["normalized"]),
        ("STRASSE", "straße", ["normalized"]),
        ("cafe\u0301 bleu", "CAFÉ  bleu", ["normalized"]),
        (LONG.replace("pad", "dock"), LONG, ["near_duplicate"]),
        (LONG.upper().replace(" ", ", "), LONG, ["normalized"]),
        ("hey, " + LONG + " ok?", LONG, ["ngram"]),
        (LONG.replace("battery", "batery").replace("drone", "droen"), LONG, ["near_duplicate"]),
        ("the drone before the battery runs out bring back to the pad please", LONG, ["near_duplicate"]),
        ("把无人机降落在停机坪上面吧", "把无人机降落在停机坪上面", ["ngram"]),
    ],
)
def test_a_copy_is_found_however_it_is_dressed(train: str, judged: str, expected: list[str]) -> None:
    assert kinds([train], [judged]) == expected


@pytest.mark.parametrize(
    ("train", "judged"),
    [
        ("go to B4", "go to B5"),
        ("please go to the waypoint B4", "please go to the waypoint B5"),
        ("fly to 4.1", "fly to 41"),
        ("fly to 41.9, 12.5", "fly to 4.19, 12.5"),
        ("fly to -12.5", "fly to 12.5"),
        ("climb 1 23", "climb 12 3"),
        ("🛬", "🛫"),
        ("pay 5 €", "pay 5 $"),
        ("!!!", "???"),
        ("कि", "का"),
        ("把无人机降落", "把无人机升空"),
        ("land", "land now"),
        (LONG, "the weather in the mountains is said to be fine for the rest of the week"),
    ],
)
def test_different_rows_are_not_tied(train: str, judged: str) -> None:
    assert kinds([train], [judged]) == []


def test_a_range_is_not_a_negative_number() -> None:
    assert fold_words("5-10 m") == ("5", "10", "m")
    assert fold_words("-5 m (−3)") == ("-5", "m", "-3")


def test_words_that_are_written_apart_squeeze_to_one_and_numbers_do_not() -> None:
    assert squeeze_words(fold_words("take off")) == squeeze_words(fold_words("Take-Off"))
    assert squeeze_words(fold_words("4 5")) != squeeze_words(fold_words("45"))


def test_a_short_quote_in_a_long_row_is_no_leak_and_a_long_quote_is() -> None:
    words = [first + second + third for first in "bdfgklm" for second in "aeiou" for third in "bdfgklmnp"]
    judged = " ".join(words[:200])

    assert kinds([" ".join([*words[200:], *words[50:62]])], [judged]) == []
    assert kinds([" ".join([*words[200:], *words[50:90]])], [judged]) == ["ngram"]


TEMPLATE = "Turn the following order for a drone into one JSON command: "


def test_a_wording_that_all_judged_rows_share_is_a_template_and_ties_nothing() -> None:
    judged = [TEMPLATE + order for order in ("go to B5", "land now", "hover", "come home", LONG)]

    assert kinds([TEMPLATE + "go to B4", TEMPLATE + "take off"], judged) == []
    assert kinds([TEMPLATE + "land, now!"], judged) == ["normalized"]
    assert kinds([LONG.replace("pad", "dock")], judged) == ["near_duplicate"]
    assert kinds([TEMPLATE + LONG.replace("pad", "dock")], judged) == ["near_duplicate"]


def test_repeating_a_copy_in_the_training_rows_does_not_make_it_a_template() -> None:
    copies = [f"{LONG} {place}" for place in range(50)]

    assert kinds(copies, [LONG]) == ["ngram"] * 50


def test_copies_of_one_judged_row_do_not_make_it_a_template() -> None:
    assert kinds([LONG + " ok"], [LONG] * 4) == ["ngram"] * 4


def test_all_user_turns_count_and_the_answers_and_system_turns_do_not() -> None:
    system = Message("system", LONG)
    asked = (Message("user", "land"), Message("assistant", "where?"), Message("user", "at home"))
    train = Dataset(Path("t"), (Row("t", (system, *asked, Message("assistant", "ok"))),), "")
    other = (Message("user", "land"), Message("assistant", "when?"), Message("user", "at home"))
    judged = Dataset(Path("j"), (Row("j", other), Row("k", (system, *other[:1]))), "")

    (leak,) = find_leaks(train, {"dev": judged})
    assert (leak.judged_id, leak.kind) == ("j", "exact")


def test_a_leak_names_both_rows_their_texts_and_the_split() -> None:
    leaks = find_leaks(
        rows("up", "Land!"), {"dev": rows("hover", prefix="d"), "test": rows("x", "land", prefix="j")}
    )

    assert leaks == (Leak("normalized", "t-1", "test", "j-1", "Land!", "land", 1.0),)


def test_the_gate_refuses_and_shows_the_pairs() -> None:
    judged = {"test": rows(*(f"order {place}" for place in range(60)), prefix="j")}
    train = rows("take off", *(f"Order: {place}." for place in range(60)))

    with pytest.raises(LeakError, match="60 of 61 training rows are tied") as caught:
        check_leaks(train, judged)
    assert "normalized (1.00): train row 't-1' 'Order: 0.' ~ test row 'j-0' 'order 0'" in str(caught.value)
    assert "and 10 more pairs" in str(caught.value)
    assert len(caught.value.problems) == 60
    check_leaks(rows("take off"), judged)


@pytest.mark.parametrize(("ngram", "threshold"), [(1, 0.7), (8, 0.0), (8, 1.1), (8, float("nan"))])
def test_settings_out_of_range_are_refused(ngram: int, threshold: float) -> None:
    with pytest.raises(DatasetError, match="are allowed"):
        find_leaks(rows("a"), {}, ngram=ngram, threshold=threshold)


_sets = st.lists(st.frozensets(st.sampled_from("abcdefgh"), max_size=8), max_size=12)


@given(_sets, _sets, st.sampled_from([0.01, 0.3, 0.5, 0.7, 0.75, 0.8, 1.0]))
def test_the_join_finds_exactly_the_pairs_that_counting_all_of_them_finds(
    stored: list[frozenset[str]], asked: list[frozenset[str]], threshold: float
) -> None:
    index = JaccardIndex(stored, threshold=threshold)
    for members in asked:
        expected = {
            place: len(members & other) / len(members | other)
            for place, other in enumerate(stored)
            if members | other and len(members & other) / len(members | other) >= threshold - 1e-9
        }
        assert dict(index.similar(members)) == pytest.approx(expected)


def test_a_repeated_word_counts_as_often_as_it_stands_there() -> None:
    assert len(numbered_words(["up", "up", "up"])) == 3
    assert numbered_words(["up", "up"]) < numbered_words(["up", "down", "up"])
    assert character_grams(["up"]) == {" up "}


def test_many_rows_pass_in_seconds() -> None:
    rng = random.Random(1)
    words = [f"{rng.choice('bdfgklmnprstvz')}{rng.choice('aeiou')}{rng.choice('lmnrst')}" for _ in range(400)]
    texts = [" ".join(rng.choices(words, k=12)) for _ in range(4_400)]
    train, judged = texts[:4_000], texts[4_000:]

    copy = judged[7].split()
    copy[5] = "other"
    assert kinds([*train, " ".join(copy)], judged) == ["near_duplicate"]


def test_the_drone_router_rows_pass_the_gate() -> None:
    from tools.dataset import load_dataset

    folder = Path(__file__).parents[2] / "examples" / "drone-router" / "data"
    splits = {name: load_dataset(folder / f"{name}.jsonl") for name in ("train", "dev", "selection", "test")}
    train = splits.pop("train")

    check_leaks(train, splits)
    check_leaks(splits.pop("dev"), splits)
