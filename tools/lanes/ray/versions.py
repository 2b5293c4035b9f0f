"""Whether a node's libraries are those that training needs."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping
from typing import Final

from tools.errors import TrainError
from tools.lanes.ray.view import Facts
from tools.versions import library_versions

__all__ = ["check_versions"]

logger = logging.getLogger(__name__)

_NEEDED: Final = ("torch", "transformers", "peft", "safetensors")
_COMPARED: Final = ("python", "torch", "transformers", "peft")


def check_versions(node: Facts, bounds: Mapping[str, str] | None = None) -> None:
    """Refuse a node that cannot train, and warn of one whose numbers may be others than here.

    Args:
        bounds: Requirement specifiers by library; those of the extra `train` by default.
    Raises:
        TrainError: a library is missing there, or too old.
    """
    from packaging.specifiers import SpecifierSet

    found = _train_bounds() if bounds is None else bounds
    missing = [name for name in _NEEDED if name not in node.versions]
    old = [
        f"{name} {node.versions[name]} (needed: {bound})"
        for name, bound in found.items()
        if name in node.versions and not SpecifierSet(bound).contains(node.versions[name], prereleases=True)
    ]
    if missing or old:
        raise TrainError(
            f"node {node.name} cannot train; missing there: {', '.join(missing) or 'nothing'}; "
            f"too old: {', '.join(old) or 'nothing'}. "
            "Install the extra `train` on the cluster's nodes: pip install 'bakehouse[train]'"
        )
    here = library_versions()
    for name in _COMPARED:
        mine, theirs = here.get(name), node.versions.get(name)
        if mine and theirs and _minor(mine) != _minor(theirs):
            logger.warning(
                "node %s has %s %s, this machine %s: what is trained there may differ in its last digits",
                *(node.name, name, theirs, mine),
            )


def _train_bounds() -> dict[str, str]:
    """Return what the installed package says that training needs; nothing for a bare checkout."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("bakehouse") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found = [Requirement(line) for line in lines]
    return {
        item.name: str(item.specifier)
        for item in found
        if item.name in _NEEDED and item.marker is not None and item.marker.evaluate({"extra": "train"})
    }


def _minor(version: str) -> tuple[str, ...]:
    return tuple(version.split(".")[:2])
