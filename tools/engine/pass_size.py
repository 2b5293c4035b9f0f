"""How much goes through the model at once: rows of a step, and adapters that answer."""

from __future__ import annotations

from typing import Final

from tools.recipe import TrainRecipe

__all__ = ["ADAPTERS_ABREAST", "rows_per_pass"]

ADAPTERS_ABREAST: Final = 8
"""Adapters that are loaded to answer together: enough to fill a batch, few enough for any memory."""

# A pass of this many tokens keeps a processor busy; a wider one costs memory and gains nothing.
_BUSY_TOKENS: Final = 1024


def rows_per_pass(recipe: TrainRecipe, longest_row: int) -> int:
    """Return the rows of a pass: a micro-batch, or more of them while the rows are short.

    Rows are not padded, so that what a recipe allows for, micro_batch_size rows of seq_length
    tokens, often holds a whole step. The result depends on the recipe and the rows alone: a run
    that is resumed elsewhere takes the same passes.

    Args:
        longest_row: Tokens of the longest row.
    """
    room = min(recipe.micro_batch_size * recipe.seq_length, _BUSY_TOKENS)
    micro_batches = room // max(1, recipe.micro_batch_size * longest_row)
    return min(recipe.global_batch_size, recipe.micro_batch_size * max(1, micro_batches))
