"""Published rows: what a bakeoff trained on beside the splits, put on its branch."""

from __future__ import annotations

import json
from pathlib import Path

from agent.incumbent import Incumbent
from agent.records import IterationRecord
from agent.training_rows import find_rows, is_own_file
from tools.files import write_bytes_atomic
from tools.workspace import Workspace

__all__ = ["publish_rows"]


def publish_rows(
    workspace: Workspace, here: Workspace, record: IterationRecord, incumbent: Incumbent
) -> list[str]:
    """Put the rows of an iteration's own into the worktree; return the paths to commit beside the lineage.

    What was made for a request is kept with the iteration that tried it, whatever came of it. The
    whole data set joins the branch once a recipe that trains on it is the incumbent.
    """
    for candidate in record.candidates:
        dataset = candidate.train_recipe.dataset_jsonl
        if not candidate.patch and candidate.idea is not None and is_own_file(dataset):
            lines = _lines_for(candidate.idea, find_rows(workspace, dataset))
            folder = here.lineage_dir / record.iteration_id
            write_bytes_atomic(folder / "requested_rows.jsonl", b"".join(lines))
    dataset = incumbent.train_recipe.dataset_jsonl
    if not is_own_file(dataset):
        return []
    write_bytes_atomic(here.inside(dataset), find_rows(workspace, dataset).read_bytes())
    return [dataset]


def _lines_for(idea: str, path: Path) -> list[bytes]:
    """Return the lines of a data set that were made for an idea, as they stand there."""
    found = []
    for line in path.read_bytes().splitlines(keepends=True):
        meta = json.loads(line).get("meta", {})
        origin = meta.get("generated") if isinstance(meta, dict) else None
        if isinstance(origin, dict) and str(origin.get("request", "")).startswith(f"{idea} of "):
            found.append(line)
    return found
