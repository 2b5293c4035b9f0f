"""The hardware: what the machine has, what a model needs, and whether a recipe fits."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tools.hardware.fit import Fit, check_fit, estimate
    from tools.hardware.footprint import Answering
    from tools.hardware.machine import Hardware, detect
    from tools.hardware.shape import ModelShape, read_shape
    from tools.hardware.stack import StackChoice, choose_stack

__all__ = [
    "Answering",
    "Fit",
    "Hardware",
    "ModelShape",
    "StackChoice",
    "check_fit",
    "choose_stack",
    "detect",
    "estimate",
    "read_shape",
]

_HOMES = {
    "Answering": "footprint",
    "Fit": "fit",
    "Hardware": "machine",
    "ModelShape": "shape",
    "StackChoice": "stack",
    "check_fit": "fit",
    "choose_stack": "stack",
    "detect": "machine",
    "estimate": "fit",
    "read_shape": "shape",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"tools.hardware.{_HOMES[name]}"), name)
