"""Reference snapshots and weight deltas, on real peft models and on the engine's adapters."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import tiny_model, tiny_tokenizer
from tools.adapter_keys import belongs_to_another, file_keys
from tools.engine.adapter_files import write_adapter
from tools.engine.base import wrap_base
from tools.engine.lora import Adapter, LoraShape, Span
from tools.errors import AdapterFileError, WeightsError
from tools.weights import LoraReferenceSnapshot, WeightDeltaTracker

pytestmark = [
    # peft asks transformers for a property by its old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
    # The tiny head is tied where a test says so, which peft warns of when it adapts it.
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]

TOKENS = torch.arange(12).reshape(2, 6)
WEIGHTS = "adapter_model.safetensors"
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ["q_proj", "v_proj"]},
    "dora": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "lm_head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "norms": {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "rslora": {"target_modules": ["q_proj"], "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"v_proj": 2},
        "alpha_pattern": {"v_proj": 3},
    },
    "layers": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def peft_model(kind: str = "lora", *, adapter: str = "default", **overrides: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, **KINDS[kind])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(tiny_model(**overrides), config, adapter_name=adapter)


def move(model: Any, seed: int = 1) -> None:
    """Add noise to all trainable parameters, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def trainable(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# From disk: every form of key that peft writes.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapter", ["default", "policy"])
def test_a_reference_from_disk_gives_the_logits_of_the_saved_adapter(
    kind: str, adapter: str, tmp_path: Path
) -> None:
    model = peft_model(kind, adapter=adapter)
    move(model)
    model.save_pretrained(tmp_path)
    folder = tmp_path if adapter == "default" else tmp_path / adapter
    saved, saved_logits = trainable(model), logits(model)

    move(model, seed=2)
    live, live_logits = trainable(model), logits(model)
    assert not torch.equal(live_logits, saved_logits)
    reference = LoraReferenceSnapshot.from_disk(model, folder, adapter_name=adapter)
    assert len(reference) == len(saved)
    assert (reference.skipped, reference.missing) == ((), ())
    with reference:
        assert same(trainable(model), saved)
        assert torch.equal(model(input_ids=TOKENS).logits, saved_logits)
    assert same(trainable(model), live)
    assert torch.equal(logits(model), live_logits)


def test_tied_tensors_match_under_any_of_their_names(tmp_path: Path) -> None:
    model = peft_model("lm_head", tie_word_embeddings=True)
    move(model)
    model.save_pretrained(tmp_path)
    saved = trainable(model)
    move(model, seed=2)
    with LoraReferenceSnapshot.from_disk(model, tmp_path):
        assert same(trainable(model), saved)


def test_a_compiled_model_reads_the_same_file(tmp_path: Path) -> None:
    model = peft_model()
    model.save_pretrained(tmp_path)
    compiled = torch.compile(model, backend="eager")
    assert all(name.startswith("_orig_mod.") for name, _ in compiled.named_parameters())
    assert len(LoraReferenceSnapshot.from_disk(compiled, tmp_path)) == 8


def test_a_second_adapter_in_the_model_is_left_alone(tmp_path: Path) -> None:
    model = peft_model()
    move(model)
    model.save_pretrained(tmp_path)
    model.add_adapter("critic", model.peft_config["default"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    reference = LoraReferenceSnapshot.from_disk(model, tmp_path)
    assert len(reference) == 8
    with reference:
        pass


def test_a_tensor_of_the_file_that_fits_nothing_is_an_error_unless_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = peft_model()
    model.save_pretrained(tmp_path)
    path = tmp_path / WEIGHTS
    save_file(load_file(path) | {"base_model.model.lm_head.lora_A.weight": torch.ones(4, 32)}, path)
    with pytest.raises(WeightsError, match=r"1 tensors \(base_model\.model\.lm_head.*allow_unmatched"):
        LoraReferenceSnapshot.from_disk(model, tmp_path)
    with caplog.at_level(logging.WARNING):
        reference = LoraReferenceSnapshot.from_disk(model, tmp_path, allow_unmatched=True)
    assert reference.skipped == ("base_model.model.lm_head.lora_A.weight",)
    assert len(reference) == 8
    assert "1 tensors" in caplog.text


def test_a_trainable_parameter_that_the_file_lacks_is_an_error_unless_allowed(tmp_path: Path) -> None:
    peft_model("layers").save_pretrained(tmp_path)
    model = peft_model("lora")
    with pytest.raises(WeightsError, match=r"6 tensors .* are trainable and have no tensor"):
        LoraReferenceSnapshot.from_disk(model, tmp_path)
    reference = LoraReferenceSnapshot.from_disk(model, tmp_path, allow_unmatched=True)
    assert (len(reference), len(reference.missing), reference.skipped) == (2, 6, ())


def test_a_copy_of_the_base_in_the_file_must_be_this_base(tmp_path: Path) -> None:
    model = peft_model("embedding")
    model.save_pretrained(tmp_path)
    path = tmp_path / WEIGHTS
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    tensors = load_file(path)
    assert key in tensors
    save_file(tensors | {key: tensors[key].to(torch.bfloat16)}, path)
    LoraReferenceSnapshot.from_disk(model, tmp_path)
    save_file(tensors | {key: tensors[key] + 1}, path)
    with pytest.raises(WeightsError, match="embed_tokens"):
        LoraReferenceSnapshot.from_disk(model, tmp_path)


def test_another_rank_is_an_error_even_when_unmatched_keys_are_allowed(tmp_path: Path) -> None:
    peft_model("patterns").save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"is \(2, 32\); the model needs \(4, 32\)"):
        LoraReferenceSnapshot.from_disk(peft_model("lora"), tmp_path, allow_unmatched=True)


def test_a_wrong_adapter_name_is_an_error(tmp_path: Path) -> None:
    model = peft_model()
    model.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="adapter 'reference'"):
        LoraReferenceSnapshot.from_disk(model, tmp_path, adapter_name="reference")


def test_missing_and_torn_files_are_errors(tmp_path: Path) -> None:
    model = peft_model()
    with pytest.raises(AdapterFileError, match=WEIGHTS) as missing:
        LoraReferenceSnapshot.from_disk(model, tmp_path)
    assert isinstance(missing.value, FileNotFoundError)
    model.save_pretrained(tmp_path)
    path = tmp_path / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="cannot be read"):
        LoraReferenceSnapshot.from_disk(model, tmp_path)


@pytest.mark.parametrize(
    ("live", "adapter", "key"),
    [
        ("m.q.lora_A.default.weight", "default", "m.q.lora_A.weight"),
        ("m.q.lora_B.default.bias", "default", "m.q.lora_B.bias"),
        ("m.q.lora_magnitude_vector.default.weight", "default", "m.q.lora_magnitude_vector"),
        ("m.e.lora_embedding_A.default", "default", "m.e.lora_embedding_A"),
        (
            "m.e.token_adapter.trainable_tokens_delta.default",
            "default",
            "m.e.token_adapter.trainable_tokens_delta",
        ),
        ("m.lm_head.modules_to_save.default.weight", "default", "m.lm_head.weight"),
        ("m.lm_head.modules_to_save.a.dense.bias", "a", "m.lm_head.dense.bias"),
        ("m.q.lora_A.v1.2.weight", "v1.2", "m.q.lora_A.weight"),
        ("_orig_mod.m.q.lora_A.default.weight", "default", "m.q.lora_A.weight"),
        ("m.norm.bias", "default", "m.norm.bias"),
    ],
)
def test_file_keys(live: str, adapter: str, key: str) -> None:
    assert file_keys(live, adapter)[0] == key
    assert not belongs_to_another(live, adapter)


def test_another_adapters_name_may_begin_with_ours() -> None:
    name = "m.q.lora_A.default2.weight"
    assert file_keys(name, "default") == (name,)
    assert belongs_to_another(name, "default")
    assert not belongs_to_another("m.norm.weight", "default")


# The swap.


def test_an_online_reference_is_the_policy_of_then(tmp_path: Path) -> None:
    model = peft_model()
    move(model)
    before = logits(model)
    reference = LoraReferenceSnapshot(model)
    assert len(reference) == 8
    move(model, seed=2)
    after = logits(model)
    with reference as entered:
        assert entered is reference
        frozen = model(input_ids=TOKENS).logits
        assert torch.equal(frozen, before)
        assert not frozen.requires_grad
    assert torch.is_grad_enabled()
    assert torch.equal(logits(model), after)


def test_a_graph_built_before_the_swap_gives_the_same_gradients_after_it() -> None:
    model = peft_model()
    move(model)
    reference = LoraReferenceSnapshot(model)
    move(model, seed=2)

    def gradients(*, swap: bool) -> list[torch.Tensor]:
        model.zero_grad()
        loss = model(input_ids=TOKENS).logits.square().mean()
        if swap:
            with reference:
                model(input_ids=TOKENS)
        loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    plain, swapped = gradients(swap=False), gradients(swap=True)
    assert all(torch.equal(one, other) for one, other in zip(plain, swapped, strict=True))


def test_nested_swaps_are_refused_of_one_snapshot_and_of_two() -> None:
    model = peft_model()
    first, second = LoraReferenceSnapshot(model), LoraReferenceSnapshot(model)
    move(model)
    live = trainable(model)
    with first:
        for inner in (first, second):
            with pytest.raises(RuntimeError, match="nested"), inner:
                pass
        assert not same(trainable(model), live)
    assert same(trainable(model), live)
    with second:
        pass
    assert same(trainable(model), live)


def test_an_error_inside_the_block_restores_the_weights() -> None:
    model = peft_model()
    reference = LoraReferenceSnapshot(model)
    move(model)
    live = trainable(model)
    with pytest.raises(ZeroDivisionError), reference:
        raise ZeroDivisionError
    assert same(trainable(model), live)
    assert torch.is_grad_enabled()


class Unwritable(torch.nn.Parameter):
    """A parameter whose memory refuses writes, as that of a lost device."""

    @property
    def data(self) -> torch.Tensor:
        raise RuntimeError("device lost")


def test_a_swap_that_fails_half_way_restores_every_tensor() -> None:
    model = peft_model()
    reference = LoraReferenceSnapshot(model)
    move(model)
    live = trainable(model)
    last = list(live)[-1]
    parameter = model.get_parameter(last)
    parameter.__class__ = Unwritable
    with pytest.raises(RuntimeError, match="device lost"), reference:
        pytest.fail("the block must not run")
    parameter.__class__ = torch.nn.Parameter
    assert same(trainable(model), live)
    assert torch.is_grad_enabled()
    with reference:
        pass
    assert same(trainable(model), live)


def test_a_parameter_that_changed_its_shape_is_refused_before_anything_is_written() -> None:
    model = peft_model()
    reference = LoraReferenceSnapshot(model)
    move(model)
    live = trainable(model)
    last = list(live)[-1]
    parameter = model.get_parameter(last)
    whole = parameter.data
    parameter.data = whole[:1]
    with pytest.raises(WeightsError, match="the model needs"), reference:
        pytest.fail("the block must not run")
    parameter.data = whole
    assert same(trainable(model), live)


def test_an_offloaded_parameter_is_refused() -> None:
    layer = torch.nn.Linear(2, 2, bias=False, device="meta")
    reference = LoraReferenceSnapshot(layer, snapshot={"weight": torch.ones(2, 2)})
    with pytest.raises(WeightsError, match="offloaded"), reference:
        pass


def test_one_snapshot_serves_many_models_and_its_keys_must_fit() -> None:
    first, second = peft_model(), peft_model()
    move(first)
    saved = trainable(first)
    with LoraReferenceSnapshot(second, snapshot=saved):
        assert torch.equal(second(input_ids=TOKENS).logits, logits(first))
    with pytest.raises(WeightsError, match="fit no parameter"):
        LoraReferenceSnapshot(second, snapshot=saved | {"other.weight": torch.ones(1)})
    tolerant = LoraReferenceSnapshot(
        second, snapshot=saved | {"other.weight": torch.ones(1)}, allow_unmatched=True
    )
    assert (tolerant.skipped, len(tolerant)) == (("other.weight",), 8)


def test_a_snapshot_in_float32_serves_a_model_in_bfloat16() -> None:
    model = peft_model()
    move(model)
    wide = trainable(model)
    narrow = peft_model().to(torch.bfloat16)
    with LoraReferenceSnapshot(narrow, snapshot=wide):
        assert same(trainable(narrow), {name: value.bfloat16() for name, value in wide.items()})


# The tracker.


def test_a_delta_is_that_of_the_change() -> None:
    model = peft_model()
    tracker = WeightDeltaTracker(model)
    assert len(tracker) == 8
    assert tracker.delta() == (0.0, 0.0)
    with torch.no_grad():
        first, second = [p for p in model.parameters() if p.requires_grad][:2]
        first[0, 0] += 3.0
        second[1, 1] -= 4.0
    l2, largest = tracker.delta()
    assert l2 == pytest.approx(5.0, rel=1e-6)
    assert largest == pytest.approx(4.0, rel=1e-6)


def test_a_real_step_moves_weights() -> None:
    model = peft_model()
    tracker = WeightDeltaTracker(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    expected = math.sqrt(
        sum(0.01 * p.grad.square().sum().item() for p in model.parameters() if p.grad is not None)
    )
    optimizer.step()
    l2, largest = tracker.delta()
    assert l2 == pytest.approx(expected, rel=1e-3)
    assert 0 < largest < l2


def test_a_model_without_trainable_parameters_has_no_delta() -> None:
    model = peft_model().requires_grad_(False)
    tracker = WeightDeltaTracker(model)
    model.requires_grad_(True)
    move(model)
    assert (len(tracker), tracker.delta()) == (0, (0.0, 0.0))


def test_a_parameter_that_was_frozen_since_still_counts() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    tracker = WeightDeltaTracker(layer)
    layer.requires_grad_(False)
    layer.weight.add_(2.0)
    assert tracker.delta()[1] == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize("where", [0, 1])
def test_nan_is_reported_wherever_it_is(where: int) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
    tracker = WeightDeltaTracker(model)
    with torch.no_grad():
        model[where].weight[0, 0] = math.nan
        model[1 - where].weight[0, 0] += 1.0
    assert all(map(math.isnan, tracker.delta()))


def test_infinity_is_reported() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    tracker = WeightDeltaTracker(layer)
    with torch.no_grad():
        layer.weight.fill_(math.inf)
    assert tracker.delta() == (math.inf, math.inf)


def test_differences_of_narrow_weights_are_taken_in_float32() -> None:
    layer = torch.nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.fill_(256.0)
    tracker = WeightDeltaTracker(layer)
    with torch.no_grad():
        layer.weight.fill_(-1.0)
    # 257 is no bfloat16: a difference in that type would be 256.
    assert tracker.delta() == (257.0, 257.0)


def test_changes_whose_squares_vanish_in_float32_are_seen() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
    tracker = WeightDeltaTracker(layer)
    with torch.no_grad():
        layer.weight.fill_(1e-30)
    l2, largest = tracker.delta()
    assert l2 == pytest.approx(1e-30, rel=1e-6)
    assert largest == pytest.approx(1e-30, rel=1e-6)


def test_a_parameter_that_is_gone_is_an_error() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    tracker = WeightDeltaTracker(model)
    model[0] = torch.nn.Linear(3, 3)
    with pytest.raises(WeightsError, match=r"0\.weight is of shape \(3, 3\)"):
        tracker.delta()
    model[0] = torch.nn.Identity()
    with pytest.raises(WeightsError, match="is gone"):
        tracker.delta()


# The engine's stacks.


def stacked(n: int = 2) -> tuple[Any, list[Adapter]]:
    base = wrap_base(tiny_model(), tiny_tokenizer(), name="tiny")
    shape = LoraShape(rank=4, alpha=8.0, targets=("q_proj", "v_proj"))
    adapters = [base.stack.new_adapter(f"t{i}", shape, device=base.device) for i in range(n)]
    for i, adapter in enumerate(adapters):
        adapter.initialise(seed=i)
        with torch.no_grad():
            adapter.flat.add_(
                torch.randn(adapter.flat.shape, generator=torch.Generator().manual_seed(i)) * 0.1
            )
    return base, adapters


def stack_logits(base: Any, adapters: list[Adapter]) -> torch.Tensor:
    with torch.no_grad(), base.stack.placed([Span(a, i, 1) for i, a in enumerate(adapters)], dim=0):
        return base.model(input_ids=TOKENS[:1].repeat(len(adapters), 1)).logits


def test_a_stack_swaps_all_its_adapters_and_gets_them_back() -> None:
    base, adapters = stacked()
    before = stack_logits(base, adapters)
    reference, tracker = LoraReferenceSnapshot(adapters), WeightDeltaTracker(adapters)
    assert len(reference) == len(tracker) == 16
    with torch.no_grad():
        adapters[0].flat += 0.25
        adapters[1].flat[0] -= 2.0
    after = stack_logits(base, adapters)
    l2, largest = tracker.delta()
    assert l2 == pytest.approx(math.sqrt(adapters[0].flat.numel() / 16 + 4.0), rel=1e-5)
    assert largest == pytest.approx(2.0, rel=1e-5)
    with reference:
        assert torch.equal(stack_logits(base, adapters), before)
    assert torch.equal(stack_logits(base, adapters), after)


def test_one_adapter_of_a_stack_reads_its_reference_from_disk(tmp_path: Path) -> None:
    base, adapters = stacked()
    write_adapter(tmp_path, adapters[1], "tiny")
    before = stack_logits(base, adapters)
    with torch.no_grad():
        adapters[0].flat += 0.25
        adapters[1].flat += 0.25
    reference = LoraReferenceSnapshot.from_disk(adapters[1], tmp_path, adapter_name="t1")
    changed = stack_logits(base, adapters)
    with reference:
        swapped = stack_logits(base, adapters)
    assert torch.equal(swapped[1], before[1])
    assert torch.equal(swapped[0], changed[0])


def test_peft_and_the_engine_share_a_reference_on_disk(tmp_path: Path) -> None:
    model = peft_model()
    move(model)
    model.save_pretrained(tmp_path)
    _, (adapter, _) = stacked()
    with LoraReferenceSnapshot.from_disk(adapter, tmp_path, adapter_name="t0"):
        path, pair = next(iter(adapter.pairs.items()))
        live = model.get_parameter(f"base_model.model.{path}.lora_A.default.weight")
        assert torch.equal(pair.a_R_I, live)


# Without torch.


def test_the_module_loads_without_torch_and_says_what_to_install(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["torch"] = None
import json
from tools.weights import LoraReferenceSnapshot, WeightDeltaTracker
said = []
for make in (lambda: WeightDeltaTracker(None), lambda: LoraReferenceSnapshot(None),
             lambda: LoraReferenceSnapshot.from_disk(None, "x")):
    try:
        make()
    except ImportError as err:
        said.append(str(err))
print(json.dumps(said))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    said = json.loads(done.stdout)
    assert len(said) == 3
    assert all("needs torch" in text and "pip install" in text for text in said)


def test_without_safetensors_reading_from_disk_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"needs safetensors.*pip install"):
        LoraReferenceSnapshot.from_disk(peft_model(), tmp_path)
