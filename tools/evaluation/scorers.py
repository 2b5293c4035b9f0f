"""Scorers: one expected answer and one actual answer in, a score in [0, 1] out.

An answer comes from a model, so nothing in it can raise: whatever is wrong with it is a score
of 0 with a reason. What can raise is the other side: an expected answer that the scorer cannot
read, or a workspace's own scorer that breaks its contract.
"""

from __future__ import annotations

import json
import math
import numbers
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tools.errors import ScorerError
from tools.files import digest_bytes

__all__ = ["SCORERS", "ScoreOutcome", "Scorer", "get_scorer", "is_forbidden"]

SCORERS: Final = ("exact", "json_cmd", "json", "custom")

# Far above any answer that a token limit lets through; it bounds the time spent on a hostile one.
_MAX_CHARS: Final = 1_000_000
_MAX_DEPTH: Final = 64


@dataclass(frozen=True)
class ScoreOutcome:
    """A score, and why it is not 1 where the scorer can tell."""

    score: float
    error: str | None = None


Scorer = Callable[[str, str], ScoreOutcome]


def get_scorer(name: str, *, ignore: Sequence[str] = (), scorer_file: str | Path | None = None) -> Scorer:
    """Return the scorer called name.

    `exact` compares the two texts, case-sensitively, without the white space around them.
    `json_cmd` parses both as JSON objects and compares the field `cmd` only. `json` compares
    the whole objects: numbers by value (10 equals 10.0), true and false are not numbers, the
    order of keys is free. `custom` calls `score(expected, actual)` of scorer_file.

    Args:
        ignore: Top-level keys that `json` neither compares nor requires.
        scorer_file: The file that `custom` loads; no other file is looked for.
    Raises:
        ScorerError: name is unknown, an argument does not fit it, or scorer_file cannot be
            loaded. The scorer itself raises it for an expected answer it cannot read and for
            a custom scorer that fails or returns no number in [0, 1].
    """
    if name not in SCORERS:
        raise ScorerError(f"scorer is {name!r}; allowed: {list(SCORERS)}")
    if isinstance(ignore, str):
        raise ScorerError(f"ignore is the text {ignore!r}; give a list of keys: [{ignore!r}]")
    if ignore and name != "json":
        raise ScorerError(f"ignore is {list(ignore)}, but scorer {name!r} ignores no keys; use `json`")
    if name == "exact":
        return _score_exact
    if name == "json_cmd":
        return _score_cmd
    if name == "json":
        return _object_scorer(frozenset(ignore))
    if scorer_file is None:
        raise ScorerError("scorer `custom` needs the path of the workspace's scorer.py")
    return _custom_scorer(Path(scorer_file))


def is_forbidden(output: str, forbidden_outputs: Sequence[str]) -> bool:
    """Say whether output, or a `cmd` of the JSON object that it is, is one of forbidden_outputs.

    Read as widely as a careless consumer would: every value of a repeated `cmd` counts.
    """
    if not forbidden_outputs:
        return False
    text = output.strip()
    if text in forbidden_outputs:
        return True
    try:
        commands = _top_level_values(text, "cmd")
    except (ValueError, RecursionError):
        return False
    return any(isinstance(command, str) and command in forbidden_outputs for command in commands)


def _score_exact(expected: str, actual: str) -> ScoreOutcome:
    return _PASS if expected.strip() == actual.strip() else ScoreOutcome(0.0, "mismatch")


def _score_cmd(expected: str, actual: str) -> ScoreOutcome:
    wanted = _expected_object(expected)
    if "cmd" not in wanted:
        raise ScorerError(
            f"the expected answer has no key 'cmd': {_short(expected)}; mend the row, or use `json`"
        )
    try:
        found = _parse_object(actual)
    except _BadAnswer as err:
        return ScoreOutcome(0.0, err.reason)
    if "cmd" not in found:
        return ScoreOutcome(0.0, "missing:cmd")
    return _PASS if _equal(wanted["cmd"], found["cmd"]) else ScoreOutcome(0.0, "wrong_cmd")


def _object_scorer(ignore: frozenset[str]) -> Scorer:
    def score(expected: str, actual: str) -> ScoreOutcome:
        wanted = _expected_object(expected)
        try:
            found = _parse_object(actual)
        except _BadAnswer as err:
            return ScoreOutcome(0.0, err.reason)
        reason = _difference(wanted, found, ignore)
        return _PASS if reason is None else ScoreOutcome(0.0, reason)

    return score


def _custom_scorer(path: Path) -> Scorer:
    function = _load_function(path, "score")

    def score(expected: str, actual: str) -> ScoreOutcome:
        case = f"expected {_short(expected)}, actual {_short(actual)}"
        try:
            value = function(expected, actual)
        except (Exception, SystemExit) as err:
            raise ScorerError(f"{path}: score() raised {type(err).__name__}: {err}; {case}") from err
        number = _unit_number(value)
        if number is None:
            raise ScorerError(f"{path}: score() returned {value!r}; allowed: a number in [0, 1]; {case}")
        return ScoreOutcome(number, None if number == 1.0 else "custom")

    return score


def _unit_number(value: Any) -> float | None:
    """Return value as a number in [0, 1], or None where it is none."""
    if not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if 0.0 <= number <= 1.0 else None


def _load_function(path: Path, name: str) -> Callable[[str, str], Any]:
    """Run the file and return one function of it.

    Compiled here, not imported: the workspace gets no byte-code folder, a change within the
    same second is seen, and no search path can put another file in its place.
    """
    try:
        source = path.read_bytes()
    except OSError as err:
        raise ScorerError(
            f"the custom scorer cannot be read: {err}; write score(expected, actual) there"
        ) from err
    module = types.ModuleType(f"bakehouse_scorer_{digest_bytes(bytes(path.absolute()) + source)[:16]}")
    module.__file__ = str(path)
    # Dataclasses look their own module up by name while they are defined.
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
        function = module.__dict__.get(name)
        if not callable(function):
            raise ScorerError(f"there is no function {name}(expected: str, actual: str) -> float in it")
    except (Exception, SystemExit) as err:
        sys.modules.pop(module.__name__, None)
        raise ScorerError(f"{path} cannot be used: {type(err).__name__}: {err}") from err
    return function  # type: ignore[no-any-return]


_PASS: Final = ScoreOutcome(1.0)


class _BadAnswer(ValueError):
    """An answer that holds no JSON object."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _expected_object(text: str) -> dict[str, Any]:
    try:
        return _parse_object(text)
    except _BadAnswer as err:
        raise ScorerError(
            f"the expected answer is no JSON object ({err.reason}): {_short(text)}; "
            "mend the row, or use `exact`"
        ) from err


def _parse_object(text: str) -> dict[str, Any]:
    if len(text) > _MAX_CHARS:
        raise _BadAnswer("too_long")
    try:
        value = json.loads(
            text.strip(),
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except _BadAnswer:
        raise
    except ValueError as err:
        raise _BadAnswer("invalid_json") from err
    except RecursionError as err:
        raise _BadAnswer("too_deep") from err
    if not isinstance(value, dict):
        raise _BadAnswer("not_an_object")
    if _is_deeper(value, _MAX_DEPTH):
        raise _BadAnswer("too_deep")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _BadAnswer("duplicate_key")
    return value


def _refuse_constant(name: str) -> Any:
    # Python reads NaN and Infinity; JSON has no such words.
    raise _BadAnswer("invalid_json")


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _BadAnswer("infinite_number")
    return value


def _top_level_values(text: str, key: str) -> list[Any]:
    """Return all values of key in the object that text is, those of a repeated key too."""
    if len(text) > _MAX_CHARS:
        return []
    value = json.loads(text, object_pairs_hook=_Pairs)
    return [found for name, found in value if name == key] if isinstance(value, _Pairs) else []


class _Pairs(list[tuple[str, Any]]):
    """An object's members as they came, so that it is not taken for an array."""


def _is_deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [child for node in level for child in _children(node)]
        if not level:
            return False
    return True


def _children(node: Any) -> Sequence[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else ()


def _difference(wanted: dict[str, Any], found: dict[str, Any], ignore: frozenset[str]) -> str | None:
    """Name the first top-level difference: the command first, then in the order of wanted."""
    keys = [key for key in wanted if key not in ignore]
    if "cmd" in keys and "cmd" in found and not _equal(wanted["cmd"], found["cmd"]):
        return "wrong_cmd"
    for key in keys:
        if key not in found:
            return f"missing:{_label(key)}"
        if not _equal(wanted[key], found[key]):
            return f"mismatch:{_label(key)}"
    extra = [key for key in found if key not in wanted and key not in ignore]
    return f"extra:{_label(extra[0])}" if extra else None


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    # In Python True equals 1; in JSON it does not.
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)


def _label(key: str) -> str:
    """Return a key fit for a reason: short, printable, without the reason's own separator."""
    return ascii(key)[1:-1].replace(":", ".")[:40]


def _short(text: str) -> str:
    return ascii(text if len(text) <= 120 else text[:117] + "...")
