"""The sections of a prompt: what every model that proposes something is shown, in one form.

The head's sections are never shortened. Of the state's each gets a share of the room and the
history what is left, the newest trials first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agent.ideas.queue import QueueItem
from agent.plan import PlanContext, TrialSummary
from agent.planners.quoting import cut, quote, tagged
from tools.patch import diff_recipes, format_changes

__all__ = ["StateSections", "head_sections", "state_sections"]

_HEAD_SECTIONS: Final = ("mission", "background", "system_prompt", "task")
# In the order in which they get their share of the space; what is left over is the history's.
_STATE_SECTIONS: Final = (
    "tried_beside_yours",
    "diagnostics",
    "dev_failures",
    "decisions",
    "unverified_notes",
    "lineage",
)
_SECTION_SHARE: Final = 0.2
_IDEAS_SHOWN: Final = 12
_IDEA_CHARS: Final = 300


@dataclass(frozen=True)
class StateSections:
    """The sections of a state, and how many old trials were left out."""

    texts: tuple[str, ...]
    n_trials_left_out: int = 0


def head_sections(context: PlanContext) -> tuple[str, ...]:
    """Return what may be patched, and the documents, whole."""
    documents = [
        tagged(name, context.background[name])
        for name in _HEAD_SECTIONS
        if context.background.get(name, "").strip()
    ]
    return (tagged("patch_space", context.patch_space.describe()), *documents)


def state_sections(context: PlanContext, first: Sequence[str], room: int) -> StateSections:
    """Return a state of at most about room characters.

    Args:
        context: What may be shown.
        first: Sections that come first, whole.
    """
    share = int(room * _SECTION_SHARE)
    found = [*first, *([tagged("queue", _describe_queue(context.ideas))] if context.ideas else [])]
    room -= sum(map(len, found))
    for name in _STATE_SECTIONS:
        text = context.background.get(name, "").strip()
        if text:
            section = tagged(name, _first_lines(text, max(0, min(room, share))))
            room -= len(section)
            found.append(section)
    history, left_out = _history(context, max(0, room))
    return StateSections((*found, history), left_out)


def _describe_queue(ideas: Sequence[QueueItem]) -> str:
    lines = [quote(_idea(item)) for item in ideas[:_IDEAS_SHOWN]]
    rest = len(ideas) - len(lines)
    return "\n".join([*lines, *([f"{rest} more wait behind them"] if rest > 0 else [])])


def _idea(item: QueueItem) -> dict[str, object]:
    asked = item.idea.data_request
    what: dict[str, object] = {"patch": str(item.idea)}
    if asked is not None:
        what = {"data_request": cut(asked.focus, _IDEA_CHARS), "rows": asked.rows}
    return {
        "idea": item.id,
        "author": item.author,
        **what,
        "hypothesis": cut(item.idea.hypothesis, _IDEA_CHARS),
        "expected": item.idea.expected_gain,
        "references": [cut(str(reference), _IDEA_CHARS) for reference in item.idea.references[:3]],
    }


def _history(context: PlanContext, room: int) -> tuple[str, int]:
    """Return the trials, oldest first, as many of the newest as fit, and how many did not."""
    lines: list[str] = []
    used = 0
    for trial in reversed(context.history):
        line = _trial(trial, context)
        if used + len(line) + 1 > room and lines:
            break
        lines.append(line)
        used += len(line) + 1
    left_out = len(context.history) - len(lines)
    return tagged("history", "\n".join(_history_lines(lines, left_out))), left_out


def _history_lines(newest_first: Sequence[str], left_out: int) -> list[str]:
    first = [f"{left_out} older trial(s) left out; read_lineage pages through all"] if left_out else []
    return [*first, *reversed(newest_first)] or ["no trial yet"]


def _trial(trial: TrialSummary, context: PlanContext) -> str:
    told = {
        "trial": trial.trial_id,
        "planner": trial.planner,
        "status": trial.status,
        "score": trial.score,
        "gain": trial.gain,
        "expected": trial.expected_gain,
        "train_s": trial.train_s,
        "against_incumbent": format_changes(diff_recipes(context.incumbent, trial.recipe)),
    }
    return quote(told)


def _first_lines(text: str, room: int) -> str:
    """Return whole lines from the start, which is where each section has its newest."""
    if len(text) <= room:
        return text
    mark = "(shortened; the tools show the rest)"
    kept = text[: max(0, room - len(mark) - 1)].rpartition("\n")[0]
    return f"{kept}\n{mark}" if kept else mark
