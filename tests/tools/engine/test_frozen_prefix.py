from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import tiny_model, tiny_tokenizer
from tests.tools.engine.conftest import adapter_tensors, metrics_of, write_rows
from tests.tools.engine.test_trainer import assert_same_training
from tools.engine import frozen_prefix
from tools.engine.base import LoadedBase, wrap_base
from tools.engine.batches import RowEncoder, StreamPart, lay_out
from tools.engine.frozen_prefix import FrozenPrefix
from tools.engine.results import MemberResult
from tools.engine.spec import StackMember
from tools.engine.trainer import train_stack

Make = Callable[..., StackMember]
UPPER = {
    "lora_layers": (2, 3),
    "lora_target_modules": ("q_proj", "down_proj"),
    "epochs": 3.0,
}


def deep_base(**options: Any) -> LoadedBase:
    return wrap_base(tiny_model(num_hidden_layers=4, **options), tiny_tokenizer(), name="tiny-llama")


def forgetful(base: LoadedBase) -> LoadedBase:
    return dataclasses.replace(base, prefix=FrozenPrefix(limit_bytes=0))


class TokensThrough:
    """Counts the tokens that go through a layer."""

    def __init__(self, base: LoadedBase, layer: int) -> None:
        self.n = 0
        base.decoder.layers[layer].register_forward_pre_hook(self._look)

    def _look(self, _module: Any, args: Any) -> None:
        self.n += args[0].shape[1]


def train(base: LoadedBase, *members: StackMember, **options: Any) -> tuple[MemberResult, ...]:
    results = train_stack(base, members, **options)
    assert [result.error for result in results] == [None] * len(members)
    return results


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_prefix, "_GROUP_TOKENS", 100)


@pytest.mark.parametrize("changes", [{}, {"lora_dropout": 0.2}, {"gradient_checkpointing": True}])
def test_a_run_with_a_kept_prefix_equals_one_that_computes_all(member: Make, changes: dict[str, Any]) -> None:
    base = deep_base()
    lower, upper = TokensThrough(base, 0), TokensThrough(base, 3)
    kept, plain = member("kept", **UPPER, **changes), member("plain", **UPPER, **changes)
    (a,) = train(base, kept)
    after = lower.n
    (b,) = train(forgetful(base), plain)
    assert_same_training(kept, plain, a, b)
    rows = RowEncoder(base.tokenizer).encode(kept.recipe.dataset_jsonl, None).rows
    # Once through the lower layers for three epochs, what all rows begin with once a group.
    assert after < sum(row.n_read for row in rows) + 30
    assert upper.n > after
    assert a.prefix_tokens_saved > a.tokens / 3
    assert b.prefix_tokens_saved == 0


def test_another_recipe_on_the_same_rows_computes_no_prefix_at_all(member: Make) -> None:
    base = deep_base()
    train(base, member("first", **UPPER))
    lower = TokensThrough(base, 1)
    (result,) = train(base, member("second", **UPPER, seed=7, learning_rate=1e-3))
    assert lower.n == 0
    assert result.prefix_tokens_saved > 0


def test_members_of_a_stack_share_the_prefix_below_the_lowest_of_them(member: Make, tmp_path: Path) -> None:
    base = deep_base()
    other = str(write_rows(tmp_path / "other.jsonl", 7, seed=3))

    def members(run: str) -> list[StackMember]:
        return [
            member("top", run=run, **{**UPPER, "lora_layers": (3,)}),
            member("two", run=run, **UPPER, dataset_jsonl=other),
            member("short", run=run, **{**UPPER, "lora_layers": (1, 3), "epochs": 1.0}),
        ]

    together = train(base, *members("stacked"), stack_tokens=10**6)
    assert sum(result.prefix_tokens_saved for result in together) > 0
    for one, other_one, result in zip(members("stacked"), members("alone"), together, strict=True):
        (single,) = train(forgetful(base), other_one)
        assert_same_training(one, other_one, result, single)


def test_beside_a_member_that_adapts_the_first_layer_nothing_is_kept(member: Make) -> None:
    base = deep_base()
    upper, whole = member("upper", **UPPER), member("whole", epochs=3.0)
    results = train(base, upper, whole, stack_tokens=10**6)
    assert [result.prefix_tokens_saved for result in results] == [0, 0]


def test_a_run_that_is_resumed_with_nothing_kept_yet_goes_on_bit_for_bit(member: Make) -> None:
    whole, parts = (member("t", run=run, **UPPER, lora_dropout=0.1) for run in ("whole", "parts"))
    (expected,) = train(deep_base(), whole)
    looks = iter([False] * 5 + [True])
    train_stack(deep_base(), [parts], should_stop=lambda: next(looks))
    (result,) = train(deep_base(), parts)
    twins = adapter_tensors(str(result.adapter_dir))
    for key, tensor in adapter_tensors(str(expected.adapter_dir)).items():
        assert torch.equal(tensor, twins[key])
    assert [line["loss"] for line in metrics_of(whole)] == [line["loss"] for line in metrics_of(parts)]


def test_rows_that_were_used_longest_ago_make_room(member: Make, tmp_path: Path) -> None:
    other = str(write_rows(tmp_path / "other.jsonl", 11, seed=3))
    bytes_of_all = 800 * deep_base().head_V_D.shape[1] * 4
    base = dataclasses.replace(deep_base(), prefix=FrozenPrefix(limit_bytes=bytes_of_all))
    lower = TokensThrough(base, 0)
    computed = []
    for trial, rows in enumerate([None, other, other, None]):
        before = lower.n
        changes = {} if rows is None else {"dataset_jsonl": rows}
        (result,) = train(base, member(f"t{trial}", **UPPER, **changes))
        computed.append(lower.n - before)
        assert result.prefix_tokens_saved > 0
    assert computed[2] == 0
    assert computed[1] > 0
    assert computed[3] > 0


def test_a_run_too_short_to_see_half_of_its_rows_computes_all_of_each_pass(member: Make) -> None:
    (result,) = train(deep_base(), member("t", **{**UPPER, "epochs": None, "max_steps": 1, "smoke_steps": 1}))
    assert result.prefix_tokens_saved == 0


def test_a_decoder_that_treats_embeddings_it_is_given_differently_is_never_entered(member: Make) -> None:
    base = deep_base()
    forward = base.decoder.forward

    def scaled(*args: Any, inputs_embeds: torch.Tensor | None = None, **kwargs: Any) -> Any:
        return forward(*args, inputs_embeds=None if inputs_embeds is None else 2 * inputs_embeds, **kwargs)

    base.decoder.forward = scaled
    odd, plain = member("odd", **UPPER), member("plain", **UPPER)
    (a,) = train(base, odd)
    (b,) = train(forgetful(deep_base()), plain)
    assert a.prefix_tokens_saved == 0
    assert_same_training(odd, plain, a, b)


@pytest.mark.parametrize("shares_prefix", [True, False])
def test_what_is_kept_is_what_the_layers_give(tmp_path: Path, shares_prefix: bool) -> None:
    base = deep_base()
    epoch = RowEncoder(base.tokenizer).encode(str(write_rows(tmp_path / "rows.jsonl")), "Answer in JSON.")
    rows = frozen_prefix.EpochRows(epoch.rows)
    parts = [StreamPart(epoch.rows[i : i + 4], 1.0, shares_prefix, rows) for i in (0, 5)]
    kept = base.prefix.states(base, parts, 2)
    assert kept is not None
    stream = lay_out(parts, base.device)
    expected = frozen_prefix._entering(base, stream, 2)
    real = torch.ones(len(expected), dtype=torch.bool)
    for part, place in zip(parts, stream.places, strict=True):
        real[place.start + place.length - part.n_filler : place.start + place.length] = False
    assert 0 < int((~real).sum()) < len(expected) / 16
    torch.testing.assert_close(kept.hidden_1_N_D[0][real], expected[real])
    assert base.prefix.states(base, parts, 0) is None
