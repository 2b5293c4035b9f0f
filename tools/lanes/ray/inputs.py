"""What a run needs on its node: the worker's spec in the node's paths, and the files that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.lanes.ray.models import model_files
from tools.lanes.ray.node import INPUTS, RESULT, RUN
from tools.models import KNOWN_MODELS, resolve_base_model

__all__ = ["RunInputs", "local_base", "pack_inputs", "result_here"]

_ROWS, _PROMPT, _DEV_ROWS, _SCORER = "rows.jsonl", "system_prompt.txt", "mid_eval.jsonl", "scorer.py"


@dataclass(frozen=True)
class RunInputs:
    """A run ready to travel."""

    spec: Mapping[str, Any]
    """As the worker reads it in the job's folder on the node.

    The paths are the same on every node: they are part of the recipe's digest, by which a worker
    knows the checkpoints of its own run.
    """
    files: Mapping[str, Path]
    """What is sent into the folder of inputs, by its name there."""


def pack_inputs(spec: Mapping[str, Any], *, threads: int | None) -> RunInputs:
    """Return a local run's spec with its one member as it travels."""
    (member,) = spec["members"]
    recipe = dict(member["recipe"])
    files = {_ROWS: Path(recipe["dataset_jsonl"])}
    recipe |= {"dataset_jsonl": f"{INPUTS}/{_ROWS}", "output_dir": RUN}
    if recipe.get("system_prompt_file") is not None:
        files[_PROMPT] = Path(recipe["system_prompt_file"])
        recipe["system_prompt_file"] = f"{INPUTS}/{_PROMPT}"
    mid_eval = None if spec.get("mid_eval") is None else dict(spec["mid_eval"])
    if mid_eval is not None:
        files[_DEV_ROWS] = Path(mid_eval["rows"])
        mid_eval["rows"] = f"{INPUTS}/{_DEV_ROWS}"
        scorer = dict(mid_eval["scorer"])
        if scorer.get("scorer_file") is not None:
            files[_SCORER] = Path(scorer["scorer_file"])
            scorer["scorer_file"] = f"{INPUTS}/{_SCORER}"
        mid_eval["scorer"] = scorer
    there = {
        **spec,
        "members": [{**member, "recipe": recipe, "run_dir": RUN}],
        "mid_eval": mid_eval,
        "result_path": RESULT,
        "threads": threads,
    }
    return RunInputs(there, files)


def local_base(name: str) -> dict[str, Path]:
    """Return the files of a base model that lies here, nothing for a name that the node has to know.

    Raises:
        ModelError: a path that is no model.
    """
    if name in KNOWN_MODELS:
        return {}
    place = Path(resolve_base_model(name))
    return model_files(place) if place.exists() else {}


def result_here(result: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    """Return a worker's result with the paths that its checkpoints have here."""

    def moved(member: Mapping[str, Any]) -> dict[str, Any]:
        folder = member.get("adapter_dir")
        return {**member, "adapter_dir": None if folder is None else str(run_dir / Path(folder).name)}

    return {**result, "members": [moved(member) for member in result["members"]]}
