"""The footprint: what the engine holds in memory while it trains and answers, part by part.

The sizes follow the engine's own code, and a test weighs what autograd really holds on to. What
is measured instead says so: the libraries themselves, and the holes that an allocator leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from tools.engine.pass_size import rows_per_pass
from tools.hardware.shape import ModelShape
from tools.recipe import TrainRecipe

__all__ = ["Answering", "Footprint", "Kind"]

Kind = Literal["cpu", "cuda", "mps"]

_MIB: Final = 2**20
_DTYPE_BYTES: Final = {"bfloat16": 2, "float16": 2, "float32": 4}
# Measured: a worker with torch and transformers, or with a device's context, before the model.
_RUNTIME_BYTES: Final = {"cpu": 400 * _MIB, "cuda": 920 * _MIB, "mps": 920 * _MIB}
# Measured: what stays free in the C library's heap between tensors that are kept, as a part of
# those. Allocators of devices are asked for bytes alone here, and what they round up is in the reserve.
_HEAP_HOLES: Final = {"cpu": 0.4, "cuda": 0.0, "mps": 0.0}
# bitsandbytes: 4 bits a weight and a doubly quantised scale for each 64 of them.
_NF4_BITS: Final = 4.127
# As in tools.engine.loss: logits of one chunk in float32, their softmax, and half of it in half precision.
_LOGITS_CHUNK_BYTES: Final = {"cpu": 24 * _MIB, "cuda": 256 * _MIB, "mps": 128 * _MIB}
_LOGITS_COPIES: Final = 2.5
# As in tools.engine.attention: the widest rows whose attention weights are kept, by bytes a number.
_DIRECT_WIDTH: Final = {2: 512, 4: 128}
# As in tools.engine.generation: prompt tokens that are read in one pass.
_FILL_TOKENS: Final = 8192


@dataclass(frozen=True)
class Answering:
    """An evaluation: rows that are answered at once, by one adapter or several."""

    rows: int
    prompt_tokens: int
    """Of the longest prompt."""
    new_tokens: int
    shared_tokens: int = 0
    """What all prompts begin with is held once an adapter."""
    adapters: int = 1


@dataclass(frozen=True)
class Footprint:
    """One recipe's sizes on one kind of device."""

    recipe: TrainRecipe
    shape: ModelShape
    kind: Kind
    row_tokens: int
    """Tokens of the longest row."""

    @property
    def width(self) -> int:
        """Bytes of a number in the precision of the base."""
        return _DTYPE_BYTES[self.recipe.torch_dtype]

    @property
    def runtime_bytes(self) -> int:
        """What a process holds before the model is there."""
        return _RUNTIME_BYTES[self.kind]

    @property
    def weights_bytes(self) -> int:
        """The frozen base; where it is held in 4 bits, with the one layer that is unpacked."""
        shape = self.shape
        if self.recipe.quantization == "none":
            return shape.n_params * self.width
        # Linear layers alone are packed; experts that share one tensor are not.
        sizes = {
            name: n_in * n_out
            for name, (n_in, n_out) in shape.projections.items()
            if shape.n_experts == 1 or name not in ("gate_proj", "up_proj", "down_proj")
        }
        packed = shape.n_layers * sum(sizes.values())
        held = round(packed * _NF4_BITS / 8) + (shape.n_params - packed) * self.width
        return held + max(sizes.values()) * self.width

    @property
    def adapter_params(self) -> int:
        layers = self.recipe.lora_layers
        n_layers = self.shape.n_layers if layers is None else len(layers)
        targets = self._targets().values()
        return n_layers * sum(self.recipe.lora_rank * (n_in + n_out) for n_in, n_out in targets)

    @property
    def adapter_bytes(self) -> int:
        """float32 weights and gradients, and a copy of the weights in the base's precision."""
        return self.adapter_params * (4 + 4 + self.width)

    @property
    def optimizer_bytes(self) -> int:
        return self.adapter_params * 8

    @property
    def pass_tokens(self) -> int:
        """Most tokens that one adapter brings to a pass."""
        return rows_per_pass(self.recipe, self.row_tokens) * self.row_tokens

    @property
    def saved_bytes_a_token(self) -> int:
        """What one token leaves behind for the backward pass."""
        # Nothing below the lowest adapter is looked at again.
        lowest = min(self.recipe.lora_layers or (0,))
        n_layers = self.shape.n_layers - lowest
        # The last norm's input, and its output.
        last = 2 * self.width * self.shape.hidden
        if self.recipe.gradient_checkpointing:
            return n_layers * self.width * self.shape.hidden + self.layer_bytes_a_token + last
        return n_layers * self.layer_bytes_a_token + last

    @property
    def passing_bytes_a_token(self) -> int:
        """What one layer makes on the way and drops again: gradients, and attention in float32."""
        attention = self.shape.heads * self.shape.head_dim
        passing = self.width * (4 * self.shape.intermediate + 6 * attention) + 4 * 2 * self.shape.hidden
        if self._attends_directly:
            passing += (4 + 2 * self.width) * self.shape.heads * self.row_tokens
        return passing

    def activation_bytes(self, members: int) -> int:
        """Return what a pass of so many adapters keeps, with the holes between."""
        a_token = self.saved_bytes_a_token + self.passing_bytes_a_token
        return round(members * self.pass_tokens * a_token * (1 + _HEAP_HOLES[self.kind]))

    def logits_bytes(self, members: int) -> int:
        """Return the logits of one chunk, and the hidden states that they come from."""
        tokens = members * self.pass_tokens
        chunk = min(tokens * self.shape.vocab * 4, _LOGITS_CHUNK_BYTES[self.kind])
        return round(_LOGITS_COPIES * chunk) + tokens * self.shape.hidden * 2 * self.width

    def answering_bytes(self, asked: Answering) -> int:
        """Return keys and values of all rows, the widest pass over prompts, and the adapters' copies."""
        shape = self.shape
        own = asked.prompt_tokens - asked.shared_tokens
        held = asked.adapters * asked.shared_tokens + asked.rows * (own + asked.new_tokens)
        cache = 2 * held * shape.n_layers * shape.kv_width * self.width
        filled = max(own, min(asked.rows * own, _FILL_TOKENS))
        # Nothing is kept: the widest point is the middle of one layer.
        passing = filled * (self.width * (3 * shape.hidden + 3 * shape.intermediate) + 8 * shape.hidden)
        logits = asked.rows * shape.vocab * self.width
        return cache + passing + logits + asked.adapters * self.adapter_params * self.width

    @property
    def layer_bytes_a_token(self) -> int:
        """What one token leaves behind in one layer."""
        shape, width, targets = self.shape, self.width, self._targets()
        attention = shape.heads * shape.head_dim
        # Norms keep their input and one number; those of queries and keys do too, for each head.
        layer = 2 * (width * shape.hidden + 4)
        if shape.has_qk_norm:
            layer += width * (attention + shape.kv_width) + 4 * (shape.heads + shape.kv_heads)
        # Queries, keys and values; in rows that are attended with plain products their weights,
        # else what comes out.
        layer += width * (attention + 2 * shape.kv_width)
        if self._attends_directly:
            layer += width * shape.heads * self.row_tokens
        else:
            layer += width * attention + 4 * shape.heads
        # The gate, its activation, and what they are multiplied with.
        layer += width * 3 * shape.intermediate
        if self.recipe.lora_dropout:
            # A mask for each adapted projection, and what it leaves of the input.
            layer += width * 2 * sum(n_in for n_in, _ in targets.values())
        else:
            # Inputs are kept for adapters alone; those of several projections are the same tensor.
            layer += width * shape.hidden * bool(targets.keys() & {"q_proj", "k_proj", "v_proj"})
            layer += width * shape.hidden * bool(targets.keys() & {"gate_proj", "up_proj"})
            layer += width * attention * ("o_proj" in targets)
            layer += width * shape.intermediate * ("down_proj" in targets)
        layer += width * self.recipe.lora_rank * len(targets)
        return layer

    @property
    def _attends_directly(self) -> bool:
        return self.kind == "cpu" and self.row_tokens <= _DIRECT_WIDTH[self.width]

    def _targets(self) -> dict[str, tuple[int, int]]:
        # A target that is no projection of ours counts as the widest one: too much rather than too little.
        widest = max(self.shape.projections.values(), key=sum)
        return {name: self.shape.projections.get(name, widest) for name in self.recipe.lora_target_modules}
