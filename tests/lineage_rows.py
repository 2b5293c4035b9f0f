"""Trials for tests that care about one or two fields."""

from __future__ import annotations

from typing import Any

from tools.lineage import FailureLabel, Trial


def make_trial(exp_id: str, **changes: Any) -> Trial:
    """Return a kept trial with metric 0.5 and the changes given."""
    values: dict[str, Any] = dict.fromkeys(Trial.header(), "") | {
        "exp_id": exp_id,
        "status": FailureLabel.KEEP,
        "core_metric": 0.5,
        "val_bpb": None,
        "delta_vs_best": None,
        "train_s": None,
        "total_s": None,
    }
    return Trial(**values | changes)
