"""The rows that the NeMo trainer learns from: rendered by this package, laid out for Megatron.

Megatron-Bridge's own reader strips spaces, encodes prompt and answer apart and learns whole
prompts where a chat template carries no generation marks. Here tokens and mask come from
`tools.chat`, the same as on the local lane, and so do the rows of every step.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tools.chat import render
from tools.dataset import load_dataset
from tools.errors import DatasetError
from tools.files import read_jsonl, write_text_atomic
from tools.recipe import TrainRecipe

__all__ = ["TrainingRow", "batch_rows", "pack_rows", "pad_rows", "read_rows", "write_rows"]

# Kernels like lengths that are multiples of this.
_MULTIPLE: Final = 16


@dataclass(frozen=True)
class TrainingRow:
    """One conversation as tokens."""

    row_id: str
    input_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]


def write_rows(recipe: TrainRecipe, tokenizer: Any, folder: Path) -> Path:
    """Write `training.jsonl` into folder: text, tokens and mask of every row. Return its path.

    `input` and `output` are what the row's text is before and from the first learned token on,
    for people and for Megatron-Bridge's stock reader.

    Raises:
        DatasetError: rows are malformed, longer than seq_length, or teach nothing.
    """
    prompt = recipe.system_prompt_file
    system = None if prompt is None else Path(prompt).read_text(encoding="utf-8").strip() or None
    lines: list[str] = []
    too_long: list[str] = []
    mute: list[str] = []
    for row in load_dataset(recipe.dataset_jsonl).rows:
        rendered = render(tokenizer, row.messages, system_prompt=system)
        ids, mask = rendered.input_ids, rendered.loss_mask
        if len(ids) > recipe.seq_length:
            too_long.append(row.id)
        if not any(mask[1:]):
            mute.append(row.id)
            continue
        first = mask.index(True)
        line = {
            "id": row.id,
            "input": tokenizer.decode(ids[:first]),
            "output": tokenizer.decode(ids[first:]),
            "input_ids": ids,
            "loss_mask": [int(learned) for learned in mask],
        }
        lines.append(json.dumps(line, ensure_ascii=False))
    if too_long:
        raise DatasetError(
            f"{len(too_long)} rows are longer than seq_length {recipe.seq_length}: {too_long[:20]}; "
            "raise seq_length or shorten them"
        )
    if mute:
        raise DatasetError(f"{len(mute)} rows have no token to learn: {mute[:20]}")
    return write_text_atomic(folder / "training.jsonl", "\n".join(lines) + "\n")


def read_rows(path: Path) -> tuple[TrainingRow, ...]:
    """Return the rows that `write_rows` wrote.

    Raises:
        DatasetError: the file is missing, torn or not ours.
    """
    found = read_jsonl(path)
    try:
        rows = tuple(
            TrainingRow(line["id"], tuple(line["input_ids"]), tuple(bool(one) for one in line["loss_mask"]))
            for line in found.rows
        )
    except (KeyError, TypeError) as err:
        raise DatasetError(f"{path} holds rows without tokens ({err!r}); remove it, it is made anew") from err
    if found.problems or not rows:
        raise DatasetError(f"{path} cannot be used: {found.problems[:3] or 'no rows'}; remove it")
    return rows


def batch_rows(rows: Sequence[TrainingRow], batch_size: int, seed: int, steps: int) -> list[TrainingRow]:
    """Return the rows of all steps in order, batch_size a step, as the local lane takes them.

    The last batch of an epoch may be short: it is filled with rows of which nothing is learned.
    """
    from tools.engine.batches import rows_of_step

    filler = TrainingRow("", rows[0].input_ids[:2], (False, False))
    found: list[TrainingRow] = []
    for step in range(steps):
        numbers = rows_of_step(len(rows), batch_size, seed, step)
        found += [rows[number] for number in numbers]
        found += [filler] * (batch_size - len(numbers))
    return found


def pad_rows(rows: Sequence[TrainingRow]) -> dict[str, Any]:
    """Return a micro-batch for Megatron, each row padded to the longest."""
    import torch

    width = _ceil(max(len(row.input_ids) for row in rows) - 1)
    cells: dict[str, list[list[int]]] = {"tokens": [], "labels": [], "loss_mask": []}
    for row in rows:
        padding = [0] * (width - len(row.input_ids) + 1)
        cells["tokens"].append([*row.input_ids[:-1], *padding])
        cells["labels"].append([*row.input_ids[1:], *padding])
        cells["loss_mask"].append([*(int(learned) for learned in row.loss_mask[1:]), *padding])
    positions = torch.arange(width).expand(len(rows), -1).contiguous()
    return {name: torch.tensor(value) for name, value in cells.items()} | {"position_ids": positions}


def pack_rows(rows: Sequence[TrainingRow]) -> dict[str, Any]:
    """Return a micro-batch for Megatron, its rows end to end with attention inside each alone.

    What fills the end up to a multiple is a row of its own, of which nothing is learned.
    """
    import torch

    tokens: list[int] = []
    labels: list[int] = []
    mask: list[int] = []
    positions: list[int] = []
    ends = [0]
    for row in rows:
        length = len(row.input_ids) - 1
        tokens += row.input_ids[:-1]
        labels += row.input_ids[1:]
        mask += (int(learned) for learned in row.loss_mask[1:])
        positions += range(length)
        ends.append(ends[-1] + length)
    spare = _ceil(len(tokens)) - len(tokens)
    if spare:
        positions += range(spare)
        ends.append(ends[-1] + spare)
    padding = [0] * spare
    longest = max(after - before for before, after in itertools.pairwise(ends))
    return {
        "tokens": torch.tensor([tokens + padding]),
        "labels": torch.tensor([labels + padding]),
        "loss_mask": torch.tensor([mask + padding]),
        "position_ids": torch.tensor([positions]),
        # A -1 ends the list, and its place is told, as Megatron-Bridge's own packing does.
        "cu_seqlens": torch.tensor([[*ends, -1]], dtype=torch.int32),
        "cu_seqlens_argmin": torch.tensor([[len(ends)]]),
        "max_seqlen": torch.tensor([[longest]], dtype=torch.int32),
    }


def _ceil(length: int) -> int:
    return math.ceil(length / _MULTIPLE) * _MULTIPLE
