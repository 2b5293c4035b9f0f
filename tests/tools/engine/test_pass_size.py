from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.tools.engine.test_trainer import assert_same_training
from tools.engine import pass_size
from tools.engine.base import LoadedBase
from tools.engine.pass_size import rows_per_pass
from tools.engine.spec import StackMember
from tools.engine.trainer import train_stack
from tools.recipe import TrainRecipe

RECIPE = TrainRecipe(base_model="m", dataset_jsonl="d", output_dir="o", micro_batch_size=2)


@pytest.mark.parametrize(
    ("longest", "seq_length", "n_rows"),
    [
        (60, 4096, 16),
        (100, 4096, 10),
        (100, 120, 2),
        (100, 240, 4),
        (1024, 4096, 2),
        (4096, 4096, 2),
        (1, 4096, 16),
    ],
)
def test_short_rows_share_a_pass_up_to_what_the_recipe_allows_for(
    monkeypatch: pytest.MonkeyPatch, longest: int, seq_length: int, n_rows: int
) -> None:
    monkeypatch.setattr(pass_size, "_BUSY_TOKENS", 1024)
    assert rows_per_pass(RECIPE.replace(seq_length=seq_length, global_batch_size=16), longest) == n_rows


def test_a_step_in_one_pass_trains_the_same_as_in_micro_batches(
    monkeypatch: pytest.MonkeyPatch, base: LoadedBase, member: Callable[..., StackMember]
) -> None:
    changes = {"global_batch_size": 6, "micro_batch_size": 1, "seq_length": 512}
    parts, whole = member("parts", **changes), member("whole", **changes)
    n_passes: list[int] = []
    hook = base.decoder.register_forward_hook(lambda *_: n_passes.append(1))
    (a,) = train_stack(base, [parts])
    in_parts = len(n_passes)
    monkeypatch.setattr(pass_size, "_BUSY_TOKENS", 1024)
    (b,) = train_stack(base, [whole])
    hook.remove()
    assert (in_parts, len(n_passes) - in_parts) == (33, 6)
    assert_same_training(parts, whole, a, b)
