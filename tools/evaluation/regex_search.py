"""Searching a text with a regular expression that may never end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Final

__all__ = ["RegexError", "search_within"]

# The kernel ends the child when its processor time is spent, so that a busy machine does not
# turn a match into a timeout; the wall limit is for a child that does not even get to run.
_CHILD: Final = """
import json, re, signal, sys
limit_s, pattern, text = json.load(sys.stdin)
signal.setitimer(signal.ITIMER_PROF, limit_s)
try:
    found = re.search(pattern, text) is not None
except (re.error, RecursionError, OverflowError, MemoryError) as err:
    print(json.dumps(f"{type(err).__name__}: {err}"))
else:
    print(json.dumps(found))
"""
_WALL_FACTOR: Final = 10
_START_S: Final = 30.0


class RegexError(Exception):
    """A pattern that is malformed or took too long; says which."""


def search_within(pattern: str, text: str, limit_s: float) -> bool:
    """Say whether pattern is found in text, in a child process of limit_s seconds of processor time.

    Raises:
        RegexError: the pattern is malformed, or the time was not enough.
    """
    too_long = f"regex took longer than {limit_s:g} s"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-I", "-S", "-W", "ignore", "-c", _CHILD],
            input=json.dumps([limit_s, pattern, text]),
            capture_output=True,
            encoding="utf-8",
            timeout=limit_s * _WALL_FACTOR + _START_S,
        )
    except subprocess.TimeoutExpired as err:
        raise RegexError(too_long) from err
    if done.returncode == -signal.SIGPROF:
        raise RegexError(too_long)
    try:
        answer = json.loads(done.stdout)
    except ValueError as err:
        raise RegexError(f"regex search ended with code {done.returncode}: {done.stderr[-200:]}") from err
    if isinstance(answer, str):
        raise RegexError(answer)
    return bool(answer)
