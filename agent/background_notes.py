"""BACKGROUND.additions.md: what planners would add to BACKGROUND.md, for a person to take over or not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.planners.quoting import cut, quote
from agent.records import IterationRecord
from agent.review.log import read_reviews
from tools.files import write_text_atomic

__all__ = ["ADDITIONS_FILE", "Addition", "describe_additions", "parse_additions", "write_additions"]

ADDITIONS_FILE: Final = "BACKGROUND.additions.md"
_HEAD: Final = """\
# What planners would add to BACKGROUND.md

Written by the flywheel, checked by nobody. Move what is true into BACKGROUND.md and delete it here; no
teacher is shown this page.
"""
_TITLE: Final = re.compile(r"## (i\d{4,}), by (.+)\Z")
_SHOWN: Final = 10
_SHOWN_CHARS: Final = 1500


@dataclass(frozen=True)
class Addition:
    """What one iteration's planner would add."""

    iteration: str
    planner: str
    text: str


def write_additions(root: Path, record: IterationRecord) -> None:
    """Put an iteration's additions into a workspace's page; written again they replace themselves."""
    text = record.background_additions.strip()
    if not text:
        return
    path = root / ADDITIONS_FILE
    before = parse_additions(path.read_text(encoding="utf-8")) if path.is_file() else ()
    kept = [one for one in before if one.iteration != record.iteration_id]
    found = [*kept, Addition(record.iteration_id, " ".join(record.planner.split()), text)]
    write_text_atomic(path, "\n".join([_HEAD, *map(_section, found)]))


def parse_additions(text: str) -> tuple[Addition, ...]:
    """Return what a page holds, oldest first. Only quoted lines are an addition's own."""
    found: list[tuple[str, str, list[str]]] = []
    for line in text.split("\n"):
        if title := _TITLE.match(line):
            found.append((title[1], title[2], []))
        elif found and line.startswith(">"):
            found[-1][2].append(line[1:].removeprefix(" "))
    return tuple(Addition(name, planner, "\n".join(lines)) for name, planner, lines in found)


def describe_additions(root: Path) -> str:
    """Return the newest additions of a workspace, quoted, those of rejected iterations left out."""
    path = root / ADDITIONS_FILE
    if not path.is_file():
        return ""
    rejected = {note.iteration for note in read_reviews(root)}
    page = parse_additions(path.read_text(encoding="utf-8", errors="replace"))
    found = [one for one in page if one.iteration not in rejected]
    return "\n".join(
        quote({"iteration": one.iteration, "planner": one.planner, "says": cut(one.text, _SHOWN_CHARS)})
        for one in reversed(found[-_SHOWN:])
    )


def _section(addition: Addition) -> str:
    # A mark before every line, so that nothing in it can be taken for a heading of the page.
    quoted = "\n".join(f"> {line}".rstrip() for line in addition.text.splitlines())
    return f"## {addition.iteration}, by {addition.planner}\n\n{quoted}\n"
