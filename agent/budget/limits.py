"""The limits of a budget: what is left of it, and whether a worst case still fits."""

from __future__ import annotations

from agent.budget.amounts import Amounts
from agent.plan import BudgetLeft
from tools.task import BudgetCaps

__all__ = ["describe_left", "describe_spent", "find_refusal", "what_is_left"]


def what_is_left(caps: BudgetCaps, committed: Amounts) -> BudgetLeft:
    """Return the caps less what is spent or reserved; None where there is no cap.

    What nobody knows (a price, a reservation without an estimate) leaves nothing.
    """
    return BudgetLeft(
        trials=_rest_int(caps.trials, len(committed.trials)),
        wall_s=_rest(caps.wall_s, committed.wall_s),
        gpu_s=_rest(_gpu_cap_s(caps), committed.gpu_s),
        dollars=_rest(caps.dollars, committed.dollars),
        tokens=_rest_int(caps.tokens, committed.tokens),
        turns=_rest_int(caps.turns, committed.turns),
    )


def find_refusal(caps: BudgetCaps, committed: Amounts, worst: Amounts) -> str | None:
    """Return the first cap that a worst case would pass, in words, or None where it fits."""
    left = what_is_left(caps, committed)
    more = len(set(worst.trials) - set(committed.trials))
    if left.trials is not None and caps.trials is not None and more > left.trials:
        return f"{more} trial(s) more would pass the cap of {caps.trials}; {left.trials} left"
    for name, cap, rest, asked in (
        ("budget.wall_s", caps.wall_s, left.wall_s, worst.wall_s),
        ("budget.gpu_hours", _gpu_cap_s(caps), left.gpu_s, worst.gpu_s),
    ):
        if cap is not None and rest is not None and (rest <= 0 if asked is None else asked > rest):
            told = "all that is left" if asked is None else f"up to {asked:.0f} s more"
            return f"{told} would pass {name}, {cap:.0f} s in all; {rest:.0f} s left"
    if left.dollars is not None and (worst.dollars is None or worst.dollars > left.dollars):
        asked_text = "an unknown price" if worst.dollars is None else f"up to ${worst.dollars:.4f} more"
        return f"{asked_text} would pass budget.dollars, ${caps.dollars:g} in all; ${left.dollars:.4f} left"
    for name, cap_n, rest_n, asked_n in (
        ("budget.tokens", caps.tokens, left.tokens, worst.tokens),
        ("budget.turns", caps.turns, left.turns, worst.turns),
    ):
        if rest_n is not None and asked_n > rest_n:
            return f"up to {asked_n} more would pass {name}, {cap_n} in all; {rest_n} left"
    return None


def describe_left(left: BudgetLeft) -> str:
    """Return what is left in words, the units without a cap named last."""
    parts = []
    if left.wall_s is not None:
        parts.append(f"{_hours(left.wall_s)} of wall clock")
    if left.gpu_s is not None:
        parts.append(f"{_hours(left.gpu_s)} of GPU")
    if left.dollars is not None:
        parts.append(f"${left.dollars:.2f}")
    for number, what in ((left.tokens, "tokens"), (left.turns, "turns"), (left.trials, "trials")):
        if number is not None:
            parts.append(f"{number:,} {what}")
    return ", ".join(parts) or "no cap"


def describe_spent(spent: Amounts) -> str:
    """Return what was spent in words."""
    parts = [_hours(spent.wall_s or 0.0), f"{len(spent.trials)} trials"]
    if spent.gpu_s:
        parts.append(f"{_hours(spent.gpu_s)} of GPU")
    if spent.turns:
        dollars = "dollars unknown" if spent.dollars is None else f"${spent.dollars:.4f}"
        parts += [f"{spent.turns} turns", f"{spent.tokens:,} tokens", dollars]
    return ", ".join(parts)


def _gpu_cap_s(caps: BudgetCaps) -> float | None:
    return None if caps.gpu_hours is None else 3600 * caps.gpu_hours


def _rest(cap: float | None, committed: float | None) -> float | None:
    if cap is None:
        return None
    return 0.0 if committed is None else max(0.0, cap - committed)


def _rest_int(cap: int | None, committed: int) -> int | None:
    return None if cap is None else max(0, cap - committed)


def _hours(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
