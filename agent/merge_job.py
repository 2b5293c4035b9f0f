"""A merge in a process of its own: `python -P -m agent.merge_job --workspace FOLDER --recipe FILE`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from agent.launch import save_result
from tools.errors import BakehouseError
from tools.merge import merge_and_export
from tools.models import resolve_base_model
from tools.recipe import TrainRecipe

logger = logging.getLogger("agent.merge_job")


def main(argv: Sequence[str] | None = None) -> int:
    """Merge and export; return 1 where that failed, the reason on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--iter", type=int)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    try:
        recipe = TrainRecipe.from_yaml(options.recipe).resolve(options.workspace)
        recipe = recipe.replace(base_model=resolve_base_model(recipe.base_model))
        result = merge_and_export(recipe, iter=options.iter)
    except (BakehouseError, ImportError) as err:
        logger.error("%s: %s", type(err).__name__, err)
        return 1
    save_result(asdict(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
