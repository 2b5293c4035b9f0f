"""Which trackers the environment asks for. None is used unasked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["PACKAGES", "chosen_trackers"]

PACKAGES: Final = {"wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow"}
"""What must be importable for a tracker; the extra has the tracker's own name."""

_OFF: Final = ("disabled",)


def chosen_trackers(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the trackers that the environment names, in a fixed order.

    wandb: `WANDB_API_KEY`, or `WANDB_MODE=offline`, which needs no key. trackio:
    `TRACKIO_SPACE_ID` or `TRACKIO_SERVER_URL`, or `TRACKIO_DIR` for files of this machine
    alone. mlflow: `MLFLOW_TRACKING_URI`.
    """
    mode = environment.get("WANDB_MODE", "").strip().lower()
    asked = {
        "wandb": mode not in _OFF and (_is_set(environment, "WANDB_API_KEY") or mode == "offline"),
        "trackio": _is_set(environment, "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_DIR"),
        "mlflow": _is_set(environment, "MLFLOW_TRACKING_URI"),
    }
    return tuple(name for name in PACKAGES if asked[name])


def _is_set(environment: Mapping[str, str], *names: str) -> bool:
    return any(environment.get(name, "").strip() for name in names)
