"""The lineage as Markdown: what was tried, for whoever plans the next trial.

The text is a function of the rows and the arguments alone, byte for byte. What a planner wrote
into a row stays inside its own line and cell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tools.lineage.trial import Trial

EMPTY_PROMPT: Final = "# Session start — empty lineage\n"
# Everything that some Markdown reader or str.splitlines takes for the end of a line, and tabs.
_BREAKS: Final = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]+")
_PIPES: Final = re.compile(r"(\\*)\|")


@dataclass(frozen=True, slots=True)
class LineageSnapshot:
    """What a planner was shown: the Markdown, and the rows that it was made of."""

    rendered_prompt: str
    current_best: Trial
    """The empty trial where no row can be best."""
    chain_to_best: tuple[Trial, ...]
    top_k_leaderboard: tuple[Trial, ...]
    recent_n_activity: tuple[Trial, ...]
    last_m_with_full_hypothesis: tuple[Trial, ...]


def render_markdown(snapshot: LineageSnapshot, *, for_specialist: str, session_timestamp: str) -> str:
    """Return the block that the snapshot's rows make; its own text is not looked at."""
    best = snapshot.current_best
    lines = [f"# Session start — {_inline(session_timestamp) or '—'}"]
    standing = f"exp_{_inline(best.exp_id)}** (core_metric={_metric(best.core_metric)})."
    if not best.exp_id:
        standing = "none yet**."
    lines += [f"You are specialist **{_inline(for_specialist)}**. Current best: **{standing}", ""]
    lines += ["## LEADERBOARD.md", "", *_render_best(best), *_render_top(snapshot.top_k_leaderboard)]
    lines += ["## KNOWLEDGE.md", "", *_render_chain(snapshot.chain_to_best)]
    lines += _render_recent(snapshot.recent_n_activity)
    lines += _render_full(snapshot.last_m_with_full_hypothesis)
    return "\n".join(lines) + "\n"


def _render_best(best: Trial) -> list[str]:
    lines = ["## Current Best"]
    if not best.exp_id:
        return [*lines, "*(no trial has a metric yet)*", ""]
    lines += [
        f"- **exp_id**: {_inline(best.exp_id)}",
        f"- **core_metric**: {_metric(best.core_metric)}",
        f"- **specialist**: {_inline(best.specialist)}",
        f"- **hypothesis**: {_inline(best.hypothesis, 110)}",
    ]
    if best.snapshot_path:
        lines.append(f"- **snapshot**: `{_inline(best.snapshot_path).replace('`', chr(39))}`")
    return [*lines, ""]


def _render_top(trials: tuple[Trial, ...]) -> list[str]:
    lines = [f"## Top {len(trials)} Kept Trials", ""]
    if not trials:
        return [*lines, "*(no keeps yet)*", ""]
    lines += _head("exp", "core_metric", "Δ", "specialist", "hypothesis")
    lines += [
        _row(
            _inline(trial.exp_id),
            _metric(trial.core_metric),
            _delta(trial.delta_vs_best),
            _inline(trial.specialist),
            _inline(trial.hypothesis, 100),
        )
        for trial in trials
    ]
    return [*lines, ""]


def _render_chain(chain: tuple[Trial, ...]) -> list[str]:
    lines = ["**Current-best lineage** (root → best):", "```"]
    for depth, trial in enumerate(chain):
        branch = " └─ " if depth else ""
        facts = _facts(trial, specialist=_inline(trial.specialist) or "baseline")
        lines.append(f"{branch}exp_{_inline(trial.exp_id)} [{facts}] {_inline(trial.hypothesis, 100)}")
    if chain:
        lines[-1] += " ← BEST"
    return [*lines, "```", ""]


def _render_recent(trials: tuple[Trial, ...]) -> list[str]:
    lines = [f"## Recent Activity (last {len(trials)})", ""]
    if trials:
        lines += _head("exp", "specialist", "status", "core_metric", "hypothesis")
    lines += [
        _row(
            _inline(trial.exp_id),
            _inline(trial.specialist),
            trial.status.value,
            _metric(trial.core_metric),
            _inline(trial.hypothesis, 80),
        )
        for trial in reversed(trials)
    ]
    return [*lines, ""]


def _render_full(trials: tuple[Trial, ...]) -> list[str]:
    if not trials:
        return []
    lines = [f"## Recent Activity (most recent {len(trials)} — full hypothesis)"]
    for trial in reversed(trials):
        facts = _facts(trial, specialist=_inline(trial.specialist))
        lines.append(f"- exp_{_inline(trial.exp_id)} [{facts}] {_inline(trial.hypothesis)}")
        if trial.notes:
            lines.append(f"  └─ {_inline(trial.notes, 200)}")
    return [*lines, ""]


def _facts(trial: Trial, *, specialist: str) -> str:
    metric, delta = _metric(trial.core_metric), _delta(trial.delta_vs_best)
    return f"{specialist}, {trial.status.value}, metric={metric}, Δ={delta}"


def _head(*names: str) -> list[str]:
    rule = "|".join("-" * (len(name) + 2) for name in names)
    return [f"| {' | '.join(names)} |", f"|{rule}|"]


def _row(*cells: str) -> str:
    return f"| {' | '.join(_escape_pipes(cells))} |"


def _escape_pipes(cells: Iterable[str]) -> list[str]:
    # An odd number of backslashes before a pipe keeps it in its cell for every reader: those
    # that pair backslashes and those that look one character back.
    return [_PIPES.sub(lambda match: match[1] * 2 + r"\|", cell) for cell in cells]


def _inline(text: str, limit: int | None = None) -> str:
    line = _BREAKS.sub(" ", text)
    if limit is None or len(line) <= limit:
        return line
    return line[: limit - 1] + "…"


def _metric(value: float | None) -> str:
    return "—" if value is None else f"{value:.6f}"


def _delta(value: float | None) -> str:
    return "—" if value is None else f"{value:+.6f}"
