"""The budget of a run: what it may spend, what it has spent, and what is left."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.budget.amounts import Amounts
    from agent.budget.ledger import Ledger
    from agent.budget.simple import Budget

__all__ = ["Amounts", "Budget", "Ledger"]

_HOMES = {
    "Amounts": "agent.budget.amounts",
    "Budget": "agent.budget.simple",
    "Ledger": "agent.budget.ledger",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
