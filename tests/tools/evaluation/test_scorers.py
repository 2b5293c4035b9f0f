"""What an answer is worth, and that no answer can break a scorer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from tools.errors import ScorerError
from tools.evaluation.scorers import ScoreOutcome, get_scorer, is_forbidden

GOTO = '{"cmd": "goto_waypoint", "args": {"grid": "B4"}, "confidence": 0.97}'

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
objects = st.dictionaries(st.text(), values, max_size=4)


def reason(name: str, expected: str, actual: str, **options: object) -> str | None:
    outcome = get_scorer(name, **options)(expected, actual)  # type: ignore[arg-type]
    assert (outcome.score == 1.0) == (outcome.error is None)
    return outcome.error


def test_an_unknown_scorer_is_refused_with_the_list_of_known_ones() -> None:
    with pytest.raises(ScorerError, match=r"'fuzzy'; allowed: \['exact', 'json_cmd', 'json', 'custom'\]"):
        get_scorer("fuzzy")


def test_ignored_keys_are_refused_where_nothing_would_be_ignored() -> None:
    with pytest.raises(ScorerError, match="ignores no keys"):
        get_scorer("json_cmd", ignore=("confidence",))
    with pytest.raises(ScorerError, match="give a list of keys"):
        get_scorer("json", ignore="confidence")


def test_exact_is_case_sensitive_and_looks_past_outer_white_space_only() -> None:
    assert reason("exact", "Paris", " Paris\n") is None
    assert reason("exact", "Paris", "paris") == "mismatch"
    assert reason("exact", "a b", "a  b") == "mismatch"


def test_json_cmd_compares_the_command_only() -> None:
    assert reason("json_cmd", GOTO, '\n{"args": {"grid": "Z9"}, "cmd": "goto_waypoint"} ') is None
    assert reason("json_cmd", GOTO, '{"cmd": "GOTO_WAYPOINT"}') == "wrong_cmd"
    assert reason("json_cmd", GOTO, '{"command": "goto_waypoint"}') == "missing:cmd"


def test_json_compares_the_whole_object_in_any_order_of_keys() -> None:
    assert (
        reason("json", GOTO, '{"confidence": 0.97, "args": {"grid": "B4"}, "cmd": "goto_waypoint"}') is None
    )
    assert reason("json", GOTO, GOTO.replace("0.97", "0.98")) == "mismatch:confidence"
    assert reason("json", GOTO, GOTO.replace("B4", "b4")) == "mismatch:args"
    assert reason("json", GOTO, '{"cmd": "land", "args": {}}') == "wrong_cmd"
    assert reason("json", GOTO, '{"cmd": "goto_waypoint", "confidence": 0.97}') == "missing:args"
    assert reason("json", GOTO, GOTO[:-1] + ', "why": "asked"}') == "extra:why"


def test_json_ignores_a_key_whether_it_differs_lacks_or_is_added() -> None:
    ignore = ("confidence", "note")
    assert reason("json", GOTO, GOTO.replace("0.97", "0.1"), ignore=ignore) is None
    assert reason("json", GOTO, '{"cmd": "goto_waypoint", "args": {"grid": "B4"}}', ignore=ignore) is None
    assert reason("json", GOTO, GOTO[:-1] + ', "note": 1}', ignore=ignore) is None
    nested = GOTO.replace('"B4"', '"B4", "confidence": 1')
    assert reason("json", GOTO, nested, ignore=ignore) == "mismatch:args"


@pytest.mark.parametrize(
    ("wanted", "found", "equal"),
    [
        ("10", "10.0", True),
        ("10", "1e1", True),
        ("0", "-0.0", True),
        ("10", '"10"', False),
        ("1", "true", False),
        ("0", "false", False),
        ("true", "true", True),
        ("null", "false", False),
        ("[1, 2]", "[2, 1]", False),
        ("[1, [2.0]]", "[1.0, [2]]", True),
        ("[1]", "[true]", False),
        ('{"a": 1}', '{"a": 1, "b": 2}', False),
        ("12345678901234567890", "12345678901234567891", False),
        ('"\\u00e9"', '"é"', True),
    ],
)
def test_json_compares_numbers_by_value_and_keeps_types_apart(wanted: str, found: str, equal: bool) -> None:
    expected, actual = f'{{"x": {wanted}}}', f'{{"x": {found}}}'
    assert reason("json", expected, actual) == (None if equal else "mismatch:x")
    assert reason("json", actual, expected) == (None if equal else "mismatch:x")


@pytest.mark.parametrize("name", ["json", "json_cmd"])
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("", "invalid_json"),
        (f"Sure! {GOTO}", "invalid_json"),
        (f"{GOTO} Done.", "invalid_json"),
        (f"```json\n{GOTO}\n```", "invalid_json"),
        (GOTO[:-1], "invalid_json"),
        ("[1]", "not_an_object"),
        ('"goto_waypoint"', "not_an_object"),
        ('{"cmd": NaN}', "invalid_json"),
        ('{"cmd": -Infinity}', "invalid_json"),
        ('{"cmd": 1e999}', "infinite_number"),
        ('{"cmd": "land", "cmd": "goto_waypoint"}', "duplicate_key"),
        ('{"cmd": "goto_waypoint", "args": {"a": 1, "a": 1}}', "duplicate_key"),
        ("[" * 200_000, "too_deep"),
        ('{"a":' * 100 + "1" + "}" * 100, "too_deep"),
        ('{"cmd": ' + "9" * 50_000 + "}", "invalid_json"),
        (" " * 1_000_001, "too_long"),
        ("\x00", "invalid_json"),
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_a_hostile_answer_scores_zero_with_its_reason(name: str, answer: str, error: str) -> None:
    assert get_scorer(name)(GOTO, answer) == ScoreOutcome(0.0, error)


def test_a_reason_never_carries_more_than_a_short_printable_key() -> None:
    answer = GOTO[:-1] + ', "\\ud800\\n: ' + "k" * 500 + '": 1}'
    error = reason("json", GOTO, answer)
    assert error is not None
    assert error.startswith("extra:")
    assert error.isascii()
    assert error.isprintable()
    assert error.count(":") == 1
    assert len(error) < 60


@pytest.mark.parametrize("name", ["json", "json_cmd"])
def test_an_expected_answer_that_cannot_be_read_is_an_error_not_a_score(name: str) -> None:
    with pytest.raises(ScorerError, match=r"no JSON object \(invalid_json\): 'plain text'; mend the row"):
        get_scorer(name)("plain text", GOTO)


def test_an_expected_answer_without_a_command_is_an_error() -> None:
    with pytest.raises(ScorerError, match="has no key 'cmd'"):
        get_scorer("json_cmd")('{"x": 1}', GOTO)


@given(objects)
def test_json_finds_every_object_equal_to_itself_however_it_is_written(value: dict[str, object]) -> None:
    assert (
        reason("json", json.dumps(value), json.dumps(value, indent=3, sort_keys=True, ensure_ascii=False))
        is None
    )


@given(objects, objects)
def test_json_is_symmetric(one: dict[str, object], other: dict[str, object]) -> None:
    score = get_scorer("json")
    assert score(json.dumps(one), json.dumps(other)).score == score(json.dumps(other), json.dumps(one)).score


@given(st.text() | values.map(json.dumps))
def test_no_text_can_break_a_scorer(answer: str) -> None:
    for name in ("exact", "json_cmd", "json"):
        assert get_scorer(name)(GOTO, answer).score in (0.0, 1.0)
    assert is_forbidden(answer, ("no such command, surely",)) is False


def test_forbidden_is_a_whole_output_or_a_command() -> None:
    forbidden = ("disarm", "I cannot help.")
    assert is_forbidden(' {"cmd": "disarm", "args": {}}', forbidden)
    assert is_forbidden("I cannot help.\n", forbidden)
    assert not is_forbidden('{"cmd": "land", "why": "disarm"}', forbidden)
    assert not is_forbidden('{"cmd": "land", "then": {"cmd": "disarm"}}', forbidden)
    assert not is_forbidden("please disarm", forbidden)
    assert not is_forbidden('{"cmd": ["disarm"]}', forbidden)
    assert not is_forbidden('{"cmd": "disarm"}', ())


def test_a_forbidden_command_cannot_hide_behind_a_second_one_or_a_bad_number() -> None:
    assert is_forbidden('{"cmd": "disarm", "cmd": "land"}', ("disarm",))
    assert is_forbidden('{"cmd": "land", "cmd": "disarm"}', ("disarm",))
    assert is_forbidden('{"cmd": "disarm", "x": NaN}', ("disarm",))
    assert not is_forbidden("[" * 200_000, ("disarm",))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_custom_calls_the_score_function_of_the_given_file(tmp_path: Path) -> None:
    file = write(
        tmp_path / "scorer.py",
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Pair:\n"
        "    a: str\n"
        "    b: str\n"
        "def score(expected: str, actual: str) -> float:\n"
        "    pair = Pair(expected, actual)\n"
        "    return len(set(pair.a) & set(pair.b)) / len(set(pair.a))\n",
    )
    score = get_scorer("custom", scorer_file=file)
    assert score("ab", "ab") == ScoreOutcome(1.0)
    assert score("ab", "b") == ScoreOutcome(0.5, "custom")
    assert [path.name for path in tmp_path.iterdir()] == ["scorer.py"]


def test_custom_takes_no_other_file_than_the_one_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "scorer.py", "def score(expected, actual):\n    return 0.25\n")
    mine = write(tmp_path / "mine.py", "def score(expected, actual):\n    return True\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert get_scorer("custom", scorer_file=mine)("", "").score == 1.0
    assert "scorer" not in sys.modules
    with pytest.raises(ScorerError, match="needs the path"):
        get_scorer("custom")


def test_custom_sees_a_change_of_the_file_at_once(tmp_path: Path) -> None:
    file = write(tmp_path / "scorer.py", "def score(expected, actual):\n    return 0.0\n")
    assert get_scorer("custom", scorer_file=file)("", "").score == 0.0
    write(file, "def score(expected, actual):\n    return 1.0\n")
    assert get_scorer("custom", scorer_file=file)("", "").score == 1.0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1.5", "returned 1.5"),
        ("return -0.1", "returned -0.1"),
        ("return float('nan')", "returned nan"),
        ("return 10 ** 400", "allowed: a number in"),
        ("return None", "returned None"),
        ("return '1'", "returned '1'"),
        ("return 1j", "returned 1j"),
        ("return 1 / 0", "raised ZeroDivisionError"),
        ("raise SystemExit(3)", "raised SystemExit: 3"),
    ],
)
def test_a_custom_scorer_that_breaks_its_contract_is_an_error(
    tmp_path: Path, body: str, message: str
) -> None:
    file = write(tmp_path / "scorer.py", f"def score(expected, actual):\n    {body}\n")
    with pytest.raises(ScorerError, match=message) as caught:
        get_scorer("custom", scorer_file=file)("yes", "no")
    assert "expected 'yes', actual 'no'" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def score(:", "cannot be used: SyntaxError"),
        ("raise RuntimeError('no')", "cannot be used: RuntimeError: no"),
        ("def rate(expected, actual): ...", "there is no function score"),
        ("score = 3", "there is no function score"),
        ("# \x00", "cannot be used"),
    ],
)
def test_a_custom_scorer_that_cannot_be_loaded_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    before = set(sys.modules)
    with pytest.raises(ScorerError, match=message):
        get_scorer("custom", scorer_file=write(tmp_path / "scorer.py", text))
    assert set(sys.modules) == before


def test_a_custom_scorer_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ScorerError, match="cannot be read"):
        get_scorer("custom", scorer_file=tmp_path / "scorer.py")
    with pytest.raises(ScorerError, match="cannot be read"):
        get_scorer("custom", scorer_file=tmp_path)
