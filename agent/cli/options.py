"""Options that many commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Where = Annotated[Path, typer.Option("--workspace", "-w", help="Workspace, or a folder inside it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
