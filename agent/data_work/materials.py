"""The materials of a prompt: what the task is, in its own documents' words, and rows to learn from."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from agent.data_work.gate import has_rows, load_judged, tied_ids
from agent.data_work.origin import is_generated
from tools.dataset import load_dataset
from tools.errors import TaskError
from tools.files import digest_json
from tools.rows import Row
from tools.task import Task
from tools.workspace import Workspace

__all__ = ["Materials", "read_materials", "read_seed_rows"]

SEED_FILE: Final = "data/seed.jsonl"
_SAMPLE_ROWS: Final = 12


@dataclass(frozen=True)
class Materials:
    """What a teacher is told about a task. BACKGROUND.md is here whole: it is never shortened."""

    task: Task
    mission: str
    background: str
    system_prompt: str
    seeds: tuple[Row, ...]
    """Rows written by hand that no judged split knows; samples are drawn from them."""

    @property
    def digest(self) -> str:
        """Digest of what every prompt says, the samples apart."""
        return digest_json([self.task.digest, self.mission, self.background, self.system_prompt])

    def sample(self, key: str) -> tuple[Row, ...]:
        """Return some seed rows, the same ones for the same key."""
        count = min(_SAMPLE_ROWS, len(self.seeds))
        return tuple(random.Random(key).sample(self.seeds, count))


def read_materials(workspace: Workspace, task: Task) -> Materials:
    """Read a workspace's documents and its seed rows.

    Rows that are tied to a judged split are no seeds: a teacher must not see judged text, and
    rows made by a teacher are none either, or mistakes would breed.

    Raises:
        TaskError: a document leads out of the workspace, or is no UTF-8.
    """
    prompt_file = workspace.load_recipe().system_prompt_file
    rows = [row for row in _train_rows(workspace, task) if not is_generated(row)]
    rows += [row for row in read_seed_rows(workspace) or () if row.id not in {known.id for known in rows}]
    tied = tied_ids(rows, load_judged(workspace, task))
    return Materials(
        task=task,
        mission=_read(workspace, "mission.md"),
        background=_read(workspace, "BACKGROUND.md"),
        system_prompt=_read(workspace, prompt_file) if prompt_file else "",
        seeds=tuple(row for row in rows if row.id not in tied),
    )


def read_seed_rows(workspace: Workspace) -> tuple[Row, ...] | None:
    """Return the rows of data/seed.jsonl, None where there is no such file."""
    path = workspace.inside(SEED_FILE)
    return load_dataset(path).rows if has_rows(path) else None


def _train_rows(workspace: Workspace, task: Task) -> tuple[Row, ...]:
    path = workspace.split_file(task, "train")
    return load_dataset(path).rows if has_rows(path) else ()


def _read(workspace: Workspace, name: str) -> str:
    # A link out of the workspace would send somebody's other files to the teacher.
    path = workspace.inside(name)
    try:
        return path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    except UnicodeDecodeError as err:
        raise TaskError(f"{path} is not UTF-8 at byte {err.start}; save it as UTF-8") from err
