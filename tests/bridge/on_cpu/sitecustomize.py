"""Puts the stand-ins in place the moment a program imports Megatron-Bridge."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any


class _Before(MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name == "megatron.bridge":
            sys.meta_path.remove(self)
            from stand_ins import install

            install()


sys.meta_path.insert(0, _Before())
