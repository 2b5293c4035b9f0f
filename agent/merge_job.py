"""A merge in a process of its own: `python -P -m agent.merge_job --workspace FOLDER --recipe FILE`.

The export is compared with the adapter on dev rows, which only the lanes that save peft adapters allow.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from agent.exporting import check_export, checkpoint_of, parity_in_words
from agent.launch import save_result
from tools.errors import BakehouseError, MergeExportError
from tools.merge import merge_and_export
from tools.models import resolve_base_model
from tools.recipe import TrainRecipe
from tools.workspace import Workspace

logger = logging.getLogger("agent.merge_job")


def main(argv: Sequence[str] | None = None) -> int:
    """Merge and export; return 1 where that failed, the reason on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--iter", type=int)
    parser.add_argument("--rows", type=int, default=8, help="dev rows to compare on")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    try:
        _merge(Workspace(options.workspace), options.recipe, options.iter, options.rows)
    except (BakehouseError, ImportError) as err:
        logger.error("%s: %s", type(err).__name__, err)
        return 1
    return 0


def _merge(workspace: Workspace, recipe_file: Path, iteration: int | None, rows: int) -> None:
    """Merge, keep what was done, compare, and keep that too.

    Raises:
        MergeExportError: the merge failed, or the export does not answer as the adapter does.
    """
    recipe = TrainRecipe.from_yaml(recipe_file).resolve(workspace.root)
    recipe = recipe.replace(base_model=resolve_base_model(recipe.base_model))
    result = merge_and_export(recipe, iter=iteration)
    save_result(asdict(result))
    if not (checkpoint_of(recipe, result) / "adapter_config.json").is_file():
        return
    parity = check_export(workspace, recipe, result, rows)
    words = "; ".join((parity_in_words(parity), *parity.problems))
    save_result({**asdict(result), "parity": asdict(parity), "parity_in_words": words})
    if parity.problems:
        raise MergeExportError("parity: " + "; ".join(parity.problems))


if __name__ == "__main__":
    sys.exit(main())
