"""What the operator decides when the server starts. Nothing of it can be changed by a client."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tools.errors import McpError

TOOL_NAMES: Final = (
    "validate_recipe",
    "train",
    "poll",
    "cancel",
    "evaluate",
    "compare",
    "lineage",
    "start_bakeoff",
    "merge",
    "standardize",
    "probe",
    "decide",
    "refresh",
)
READ_ONLY_TOOLS: Final = frozenset({"validate_recipe", "poll", "compare", "lineage", "decide", "refresh"})
FREE_ROWS: Final = 50_000


@dataclass(frozen=True)
class Settings:
    """Roots, toolset and limits of one server.

    Raises:
        McpError: an unknown tool is named, no tool is left, or a root is no folder.
    """

    roots: tuple[Path, ...]
    read_only: bool = False
    tools: tuple[str, ...] = TOOL_NAMES
    allow_expensive: bool = False
    """Do what is expensive or destructive without asking."""
    free_rows: int = FREE_ROWS
    """Training rows, passes included, that a job may see before somebody is asked."""
    lanes: tuple[str, ...] = ("local",)
    """Lanes that recipes may run on; the containers are those of the lanes' defaults."""
    model_dirs: tuple[Path, ...] = field(default=())
    """Folders besides the roots that base models may be loaded from."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.tools) - set(TOOL_NAMES))
        if unknown:
            raise McpError(f"unknown tools {unknown}; allowed: {', '.join(TOOL_NAMES)}")
        if not self.enabled:
            raise McpError("no tool is left to serve; take back --exclude-tools or --read-only")
        for root in (*self.roots, *self.model_dirs):
            if not root.is_dir():
                raise McpError(f"{root} is no folder; name an existing one")

    @property
    def enabled(self) -> tuple[str, ...]:
        """The tools that are served, in their usual order."""
        return tuple(
            name
            for name in TOOL_NAMES
            if name in self.tools and (not self.read_only or name in READ_ONLY_TOOLS)
        )
