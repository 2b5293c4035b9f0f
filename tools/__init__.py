"""The core: every primitive of the flywheel, usable from plain Python.

Importing this package loads nothing; a name loads its module when it is first used. The stub
`__init__.pyi` beside this file is the one list of names, for type checkers and at run time.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_homes: dict[str, str] = {}


def __getattr__(name: str) -> Any:
    if not _homes:
        _read_stub()
    if name == "__all__":
        return sorted(_homes)
    if name not in _homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_homes[name]}"), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__getattr__("__all__")]


def _read_stub() -> None:
    import ast
    from pathlib import Path

    stub = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    for node in ast.parse(stub).body:
        if isinstance(node, ast.ImportFrom):
            _homes.update({alias.name: str(node.module) for alias in node.names})
