"""How re-runs are shown: what would be measured again, at what cost, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.text import Text

from agent.cli.output import CONSOLE, duration, points
from agent.rerun.listing import Prospect, worst_s
from agent.rerun.session import Measured
from tools.commit_message import fold_line

__all__ = ["describe_prospect", "show_measured", "show_prospects"]

_STYLES = {"confirmed": "green", "reversed": "red", "undecided": "yellow"}


def describe_prospect(prospect: Prospect) -> dict[str, Any]:
    """Return an entry that was looked at, for programs."""
    pair = prospect.pair
    return {
        "slug": prospect.entry.slug,
        "reasons": list(prospect.reasons),
        "runnable": pair is not None,
        "why_not": prospect.obstacle,
        "candidate": None if pair is None else pair.candidate_trial,
        "seeds": None if pair is None else list(pair.seeds),
        "trials": None if pair is None else pair.n_trials,
        "worst_s": None if pair is None else worst_s(pair),
        "commit": None if pair is None else pair.source,
    }


def show_prospects(prospects: Sequence[Prospect]) -> None:
    """Print each entry, why it is stale, and the trials that measuring it again takes."""
    for prospect in prospects:
        _line(prospect.entry.slug, "bold")
        _line(f"  {'; '.join(prospect.reasons) or 'fresh, but asked for by name'}")
        pair = prospect.pair
        if pair is None:
            _line(f"  not re-runnable here: {prospect.obstacle}", "yellow")
            continue
        seeds = ", ".join(map(str, pair.seeds))
        _line(f"  {pair.candidate_trial} against its incumbent, seeds {seeds}: {_cost([prospect])}")
    able = [prospect for prospect in prospects if prospect.pair is not None]
    if not prospects:
        _line("nothing is stale")
    else:
        cost = f": {_cost(able)}" if able else ""
        _line(f"{len(able)} of {len(prospects)} can be measured again{cost}")


def show_measured(measured: Sequence[Measured], branch: str) -> None:
    """Print what came of each entry, and how it is reviewed."""
    for one in measured:
        _line(f"{one.slug}: {one.state}", _STYLES.get(one.state, "bold"))
        if one.gain is not None:
            ends = "" if one.low is None else f" ({points(one.low)} to {points(one.high)})"
            _line(f"  gain now {points(one.gain)} points{ends}")
        _line(f"  {one.why}")
    done = [one.rerun_id for one in measured if one.rerun_id is not None]
    if not measured:
        _line("nothing is stale")
    elif done:
        _line(f"committed on {branch}; `bakehouse review show {done[-1]}` has the evidence")


def _cost(prospects: Sequence[Prospect]) -> str:
    pairs = [prospect.pair for prospect in prospects if prospect.pair is not None]
    times = [worst_s(pair) for pair in pairs]
    known = [seconds for seconds in times if seconds is not None]
    told = f"at most {duration(sum(known))}" if len(known) == len(times) else "for how long is not on record"
    return f"{sum(pair.n_trials for pair in pairs)} trials, {told}"


def _line(text: str, style: str = "") -> None:
    # An entry may quote a planner, whose words must not steer the terminal.
    CONSOLE.print(Text(("  " if text.startswith("  ") else "") + fold_line(text), style=style))
