"""Commit messages: a subject, a body and trailers that cannot be forged by their values."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tools.errors import RepoError

__all__ = ["compose_message", "fold_line"]

_TRAILER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_LIKE_TRAILER = re.compile(r"[A-Za-z0-9-]+[ \t]*:")


def compose_message(subject: str, body: str, trailers: Mapping[str, str]) -> str:
    """Return the text of a commit message.

    The trailers stand in a paragraph of their own at the end, the only place where git reads
    them, and each stays on one line: text from a model cannot add or change one.

    Raises:
        RepoError: the subject or a trailer is empty, or a trailer's name is not one.
    """
    first = fold_line(subject)
    if not first:
        raise RepoError("the commit's subject is empty; say in one line what the commit brings")
    lines = [_trailer_line(name, value) for name, value in trailers.items()]
    # Where no trailers follow, git would read them from the end of the body; indented they are none.
    parts = (first, _clean_body(body, shield=not lines), "\n".join(lines))
    return "\n\n".join(part for part in parts if part) + "\n"


def fold_line(text: str) -> str:
    """Return text on one line: each run of white space or control characters is one space."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _trailer_line(name: str, value: str) -> str:
    if not _TRAILER_NAME.fullmatch(name):
        raise RepoError(f"{name!r} is no trailer's name; allowed are letters, digits and '-'")
    folded = fold_line(value)
    if not folded:
        raise RepoError(f"trailer {name} is empty; give it a value or leave it out")
    return f"{name}: {folded}"


def _clean_body(body: str, *, shield: bool) -> str:
    kept = "".join(c if c.isprintable() or c in "\n\t" else " " for c in body.replace("\r\n", "\n"))
    lines = (line.rstrip() for line in kept.split("\n"))
    if shield:
        lines = (f"  {line}" if _LIKE_TRAILER.match(line) else line for line in lines)
    return "\n".join(lines).strip("\n")
