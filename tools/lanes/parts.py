"""A worker's spec divided over several workers, and their results made one again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tools.errors import TrainError
from tools.lanes.lane import count_rows
from tools.recipe import TrainRecipe

__all__ = ["divide", "join", "part_path"]

logger = logging.getLogger(__name__)

_ITEMS: Final = {"train": "members", "evaluate": "adapters"}


def divide(spec: Mapping[str, Any], n: int) -> tuple[dict[str, Any], ...]:
    """Return specs for at most n workers, the longest work first to whoever has the least.

    Members that compete for room, in a search that stops the worst of them, stay together.
    """
    key = _ITEMS[spec["kind"]]
    items = list(spec[key])
    if n < 2 or len(items) < 2 or spec.get("search") is not None:
        return (dict(spec),)
    costs = [_cost(spec, item) for item in items]
    shares: list[list[int]] = [[] for _ in range(min(n, len(items)))]
    for index in sorted(range(len(items)), key=lambda i: (-costs[i], i)):
        min(shares, key=lambda share: (sum(costs[i] for i in share), len(share))).append(index)
    filled = [[items[i] for i in sorted(share)] for share in shares if share]
    return tuple(
        {**spec, key: part, "result_path": str(part_path(spec["result_path"], number))}
        for number, part in enumerate(filled)
    )


def join(
    spec: Mapping[str, Any],
    parts: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any] | TrainError],
) -> dict[str, Any]:
    """Return one result of a spec, its items in the spec's order.

    Of a worker that died only its own items fail, with its last words as their reason.

    Raises:
        TrainError: all workers died.
    """
    failures = [result for result in results if isinstance(result, TrainError)]
    told = [result for result in results if not isinstance(result, TrainError)]
    if not told:
        raise failures[0]
    key = _ITEMS[spec["kind"]]
    found: dict[str, Any] = {}
    for part, result in zip(parts, results, strict=True):
        if isinstance(result, TrainError):
            logger.warning("a worker died, and what it had in hand failed with it: %s", result)
            found |= {item["trial_id"]: _failed(spec["kind"], item, result) for item in part[key]}
        else:
            found |= {item["trial_id"]: item for item in result[key]}
    joined = {
        **told[0],
        key: [found[item["trial_id"]] for item in spec[key]],
        "base_load_s": max(result["base_load_s"] for result in told),
        "peak_memory_bytes": max(result["peak_memory_bytes"] for result in told),
    }
    if "saved_steps" in told[0]:
        joined["saved_steps"] = sum(result["saved_steps"] for result in told)
    joined["usage"] = _usage(told, len(results))
    return joined


def _usage(told: Sequence[Mapping[str, Any]], n_workers: int) -> dict[str, Any] | None:
    """Return the longest worker's time, and the devices of all: whoever died had one as well."""
    known = [result["usage"] for result in told if result.get("usage")]
    if not known:
        return None
    on_gpu = any(usage["gpus"] for usage in known)
    return {**known[0], "wall_s": max(usage["wall_s"] for usage in known), "gpus": n_workers if on_gpu else 0}


def _cost(spec: Mapping[str, Any], item: Mapping[str, Any]) -> float:
    """Return about how much text a member reads; adapters that answer the same rows cost the same."""
    if spec["kind"] != "train":
        return 1.0
    try:
        recipe = TrainRecipe.from_dict(item["recipe"])
        n_rows = count_rows(recipe)
        steps = recipe.total_steps(n_rows, spec["mode"])
        size = Path(recipe.dataset_jsonl).stat().st_size
    except (OSError, ValueError):
        # Whoever gets it says what is wrong with it.
        return 0.0
    return steps * recipe.global_batch_size * size / max(1, n_rows)


def part_path(whole: str | Path, number: int) -> Path:
    """Return the file of one part beside the file of the whole."""
    path = Path(whole)
    return path.with_name(f"{path.stem}.part{number}{path.suffix}")


def _failed(kind: str, item: Mapping[str, Any], err: TrainError) -> dict[str, Any]:
    # The engine's own records, built here so that its package is not loaded for them.
    if kind == "evaluate":
        return {
            "trial_id": item["trial_id"],
            "seed": item["seed"],
            "splits": {},
            "eval_s": 0.0,
            "error": f"the worker died: {err}",
        }
    return {
        "trial_id": item["trial_id"],
        "status": "failed",
        "steps": 0,
        "total_steps": 0,
        "final_iter": None,
        "best_iter": None,
        "best_score": None,
        "adapter_dir": None,
        "tokens": 0,
        "train_s": 0.0,
        "final_loss": None,
        "error": f"the worker died: {err}",
        "prefix_tokens_saved": 0,
    }
