"""The rows of examples/drone-router keep the promises of its BACKGROUND.md and data/README.md."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "drone-router"
SPLITS = ("train", "dev", "selection", "test")
JUDGED = ("dev", "selection", "test")
SIZES = {"train": (380, 440), "dev": (80, 80), "selection": (120, 120), "test": (120, 120)}
ARGS: dict[str, tuple[frozenset[str], ...]] = {
    "takeoff": (frozenset({"altitude_m"}),),
    "land": (frozenset(),),
    "goto_waypoint": (frozenset({"grid"}), frozenset({"lat", "lon"})),
    "rtl": (frozenset(),),
    "hover": (frozenset({"duration_s"}),),
    "loiter": (frozenset({"radius_m", "duration_s"}),),
    "ascend": (frozenset({"delta_m"}),),
    "descend": (frozenset({"delta_m"}),),
    "unknown": (frozenset(),),
}
DEFAULTS = {
    "takeoff": {"altitude_m": 10.0},
    "hover": {"duration_s": None},
    "loiter": {"radius_m": 20.0, "duration_s": None},
    "ascend": {"delta_m": 5.0},
    "descend": {"delta_m": 5.0},
}
RANGES = {
    "altitude_m": (1, 120),
    "delta_m": (0.5, 120),
    "radius_m": (1, 120),
    "lat": (-90, 90),
    "lon": (-180, 180),
}
CONFIDENCE = {"easy": 0.97, "medium": 0.92, "hard": 0.85}
NGRAM_CAP = 0.6
WORDS = {"a": 1, "one": 1, "two": 2, "three": 3, "five": 5, "ten": 10, "a couple of": 2, "half a": 0.5}
SPECIAL_DURATIONS = {"a minute and a half": 90, "a quarter of an hour": 900}
DURATION = re.compile(
    r"\b(\d+|" + "|".join(sorted(WORDS, key=len, reverse=True)) + r") ?(s|seconds|min|mins|minutes?)\b"
)
FEET = re.compile(r"(?<![\d.])(\d+) ?(?:ft|feet|foot)\b")

Gram = tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """One row as it lies in the file."""

    split: str
    id: str
    text: str
    answer: str
    tags: tuple[str, ...]

    @property
    def cmd(self) -> str:
        return str(json.loads(self.answer)["cmd"])

    @property
    def args(self) -> dict[str, object]:
        args = json.loads(self.answer)["args"]
        assert isinstance(args, dict)
        return args

    @property
    def confidence(self) -> object:
        return json.loads(self.answer)["confidence"]


@cache
def read_split(split: str) -> tuple[Item, ...]:
    lines = (EXAMPLE / "data" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(read_item(split, line) for line in lines)


def read_item(split: str, line: str) -> Item:
    row = json.loads(line)
    assert list(row) == ["id", "messages", "tags"], line
    user, assistant = row["messages"]
    assert list(user) == list(assistant) == ["role", "content"], line
    assert (user["role"], assistant["role"]) == ("user", "assistant"), line
    return Item(split, row["id"], user["content"], assistant["content"], tuple(row["tags"]))


def all_items() -> list[Item]:
    return [item for split in SPLITS for item in read_split(split)]


def normalise(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())


def trigrams(text: str) -> frozenset[Gram]:
    words = normalise(text).split()
    return frozenset(tuple(words[i : i + 3]) for i in range(len(words) - 2))


def shared_part(text: str, other: str) -> float:
    """Return how much of the first text's trigrams the other one has, 0.0 where it has no trigram."""
    grams = trigrams(text)
    return len(grams & trigrams(other)) / len(grams) if grams else 0.0


@pytest.mark.parametrize("split", SPLITS)
def test_split_has_its_size_and_ends_with_a_newline(split: str) -> None:
    low, high = SIZES[split]
    assert low <= len(read_split(split)) <= high
    assert (EXAMPLE / "data" / f"{split}.jsonl").read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("split", SPLITS)
def test_ids_count_up_inside_their_split(split: str) -> None:
    items = read_split(split)
    assert [item.id for item in items] == [f"{split}-{n:04d}" for n in range(1, len(items) + 1)]


def test_answers_are_one_line_of_json_in_the_documented_key_order() -> None:
    for item in all_items():
        answer = json.loads(item.answer)
        assert list(answer) == ["cmd", "args", "confidence"], item
        assert item.answer == json.dumps(answer), item


def test_arguments_have_the_names_and_types_of_their_command() -> None:
    for item in all_items():
        assert item.cmd in ARGS, item
        assert frozenset(item.args) in ARGS[item.cmd], item
        for name, value in item.args.items():
            check_argument(item, name, value)


def check_argument(item: Item, name: str, value: object) -> None:
    if name == "grid":
        assert isinstance(value, str), item
        assert re.fullmatch(r"[A-J](?:1[0-2]|[1-9])", value), item
    elif name == "duration_s":
        assert value is None or (type(value) is int and 0 < value <= 3600), item
    else:
        low, high = RANGES[name]
        assert type(value) is float, item
        assert low <= value <= high, item


def test_messages_are_short_and_trimmed() -> None:
    for item in all_items():
        assert item.text == item.text.strip(), item
        assert 1 <= len(normalise(item.text).split()) <= 20, item


def test_tags_start_with_the_difficulty_and_do_not_repeat() -> None:
    for item in all_items():
        assert item.tags[0] in CONFIDENCE, item
        assert len(set(item.tags)) == len(item.tags), item
        assert not set(item.tags[1:]) & set(CONFIDENCE), item


def test_confidence_follows_from_the_tags() -> None:
    for item in all_items():
        expected = CONFIDENCE[item.tags[0]]
        if "ambiguous" in item.tags:
            expected = 0.6
        if item.cmd == "unknown":
            expected = 0.2 if "unsupported" in item.tags else 0.0
        assert item.confidence == expected, item


def test_rows_without_an_amount_carry_the_documented_default() -> None:
    for item in all_items():
        if "default" in item.tags:
            assert item.args == DEFAULTS[item.cmd], item
        elif item.cmd in DEFAULTS:
            assert item.args != DEFAULTS[item.cmd] or re.search(r"\d", item.text), item


def test_feet_are_converted_and_rounded() -> None:
    checked = 0
    for item in all_items():
        feet = FEET.findall(item.text)
        assert not feet or "feet" in item.tags, item
        if feet:
            # The last number stands where a correction replaces an earlier one.
            assert round(int(feet[-1]) * 0.3048, 1) in item.args.values(), item
            checked += 1
    assert checked >= 20


def test_feet_of_the_judged_splits_are_in_the_table_and_in_train() -> None:
    background = (EXAMPLE / "BACKGROUND.md").read_text(encoding="utf-8")
    known = {value for item in read_split("train") if "feet" in item.tags for value in item.args.values()}
    for split in JUDGED:
        for item in read_split(split):
            if "feet" in item.tags:
                assert set(item.args.values()) & known, item
                assert any(f" {value} |" in background for value in item.args.values()), item


def test_bare_metre_amounts_stand_in_the_answer() -> None:
    for item in all_items():
        amounts = re.findall(r"(?<![\d.])(\d+(?:\.\d+)?) ?(?:m|met(?:re|er)s?)\b", item.text)
        if amounts and item.cmd != "unknown":
            assert float(amounts[-1]) in item.args.values(), item


def test_durations_are_seconds() -> None:
    checked = 0
    for item in all_items():
        seconds = stated_seconds(item.text)
        if seconds is not None and item.cmd in ("hover", "loiter"):
            assert item.args["duration_s"] == seconds, item
            checked += 1
    assert checked >= 50


def stated_seconds(text: str) -> float | None:
    for phrase, seconds in SPECIAL_DURATIONS.items():
        if phrase in text:
            return seconds
    found = DURATION.findall(text)
    if not found:
        return None
    number, unit = found[-1]
    return (WORDS[number] if number in WORDS else int(number)) * (60 if unit.startswith("m") else 1)


def test_squares_and_coordinates_stand_in_the_message() -> None:
    for item in all_items():
        if "lat" in item.args:
            assert "latlon" in item.tags, item
            for value in item.args.values():
                assert str(value).lstrip("-") in item.text, item
        elif "grid" in item.args and not {"nato", "spoken", "words"} & set(item.tags):
            assert str(item.args["grid"]) in item.text, item


def test_no_message_occurs_twice() -> None:
    counts = Counter(normalise(item.text) for item in all_items())
    assert [text for text, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("split", JUDGED)
def test_judged_messages_are_far_from_every_other_split(split: str) -> None:
    others = [item for item in all_items() if item.split != split]
    near = [
        (item.id, item.text, other.id, other.text)
        for item in read_split(split)
        for other in others
        if shared_part(item.text, other.text) > NGRAM_CAP
    ]
    assert near == []


def test_the_distance_sees_copied_trigrams() -> None:
    assert shared_part("ok, fly to the old barn", "Fly to the old barn!") == 0.75
    assert shared_part("fly to the barn now", "please fly to the barn now") == 1.0
    assert shared_part("fly to the barn", "circle around the pond") == 0.0


@pytest.mark.parametrize("split", SPLITS)
def test_every_command_has_its_share(split: str) -> None:
    items = read_split(split)
    counts = Counter(item.cmd for item in items)
    assert set(counts) == set(ARGS)
    for cmd, count in counts.items():
        assert 0.08 <= count / len(items) <= 0.15, (cmd, count)


@pytest.mark.parametrize("split", SPLITS)
def test_difficulty_is_mixed_as_documented(split: str) -> None:
    items = read_split(split)
    share = {level: sum(item.tags[0] == level for item in items) / len(items) for level in CONFIDENCE}
    assert 0.22 <= share["easy"] <= 0.35
    assert 0.45 <= share["medium"] <= 0.55
    assert 0.18 <= share["hard"] <= 0.26


def test_selection_and_test_have_the_same_make_up() -> None:
    for key in ("cmd", "tags"):
        selection, test = (
            Counter(str(getattr(item, key)) for item in read_split(split)) for split in ("selection", "test")
        )
        assert selection == test, key


def test_train_supports_every_convention_that_is_judged() -> None:
    counts = Counter(tag for item in read_split("train") for tag in set(item.tags))
    counts["square"] = counts["nato"] + counts["spoken"]
    for tag in ("words", "feet", "time", "latlon", "square", "default", "multi", "negation", "correction"):
        assert counts[tag] >= 20, tag


def test_readme_states_the_true_counts() -> None:
    table = dict(readme_counts())
    assert len(table) > 30
    for name, stated in table.items():
        assert stated == tuple(count_rows(split, name) for split in SPLITS), name
    used = {tag for item in all_items() for tag in item.tags}
    assert (used | set(ARGS)) <= set(table)


def readme_counts() -> list[tuple[str, tuple[int, ...]]]:
    text = (EXAMPLE / "data" / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| `?(\w+)`? \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", text, re.M)
    return [(name, tuple(int(n) for n in numbers)) for name, *numbers in found]


def count_rows(split: str, name: str) -> int:
    items = read_split(split)
    if name == "rows":
        return len(items)
    return sum(name == item.cmd or name in item.tags for item in items)


def test_documents_quote_no_judged_message() -> None:
    names = ("BACKGROUND.md", "mission.md", "llm.txt", "system_prompt.md", "data/README.md")
    documents = " ".join(normalise((EXAMPLE / name).read_text(encoding="utf-8")) for name in names)
    for split in JUDGED:
        for item in read_split(split):
            words = normalise(item.text)
            assert len(words.split()) < 3 or f" {words} " not in f" {documents} ", item


def test_system_prompt_is_short() -> None:
    prompt = (EXAMPLE / "system_prompt.md").read_text(encoding="utf-8").strip()
    assert prompt.count("\n") == 0
    assert len(re.findall(r"\w+|[^\w\s]", prompt)) <= 45
