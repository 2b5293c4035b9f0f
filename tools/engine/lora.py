"""LoRA adapters that share one frozen base, each on its own part of a batch."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import nn

from tools.errors import ModelError, TrainError
from tools.recipe import TrainRecipe

__all__ = ["Adapter", "AdapterStack", "LoraPair", "LoraShape", "Span"]

_LAYER: Final = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class LoraShape:
    """What distinguishes one adapter's structure from another's."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    dropout: float = 0.0
    layers: tuple[int, ...] | None = None
    use_rslora: bool = False

    @classmethod
    def of(cls, recipe: TrainRecipe) -> LoraShape:
        """Return the shape that a recipe asks for.

        Raises:
            TrainError: the recipe asks for DoRA, which is never trained as plain LoRA instead.
        """
        if recipe.use_dora:
            raise TrainError("use_dora is true; this engine trains plain and rank-stabilised LoRA only")
        return cls(
            recipe.lora_rank,
            recipe.lora_alpha,
            recipe.lora_target_modules,
            recipe.lora_dropout,
            recipe.lora_layers,
            recipe.use_rslora,
        )

    @property
    def scale(self) -> float:
        """What the low-rank product is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


@dataclass(frozen=True)
class LoraPair:
    """The two factors on one linear layer: the layer gains scale * x A^T B^T."""

    a_R_I: torch.Tensor
    b_O_R: torch.Tensor


class Adapter:
    """One adapter's factors, cut out of one flat buffer.

    The optimizer, clipping and checkpoints see the flat buffer alone; the gradients of the
    factors accumulate in views of `flat.grad`.
    """

    def __init__(
        self,
        name: str,
        shape: LoraShape,
        layers: Mapping[str, nn.Linear],
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        trainable: bool = True,
    ) -> None:
        self.name = name
        self.shape = shape
        self.scale = shape.scale
        self.dropout = shape.dropout if trainable else 0.0
        self.generator = torch.Generator(device=device)
        sizes = {path: (layer.in_features, layer.out_features) for path, layer in layers.items()}
        total = sum(shape.rank * (n_in + n_out) for n_in, n_out in sizes.values())
        self.flat = nn.Parameter(torch.zeros(total, device=device, dtype=dtype), requires_grad=trainable)
        if trainable:
            self.flat.grad = torch.zeros_like(self.flat)
        self.pairs: dict[str, LoraPair] = {}
        offset = 0
        for path, (n_in, n_out) in sizes.items():
            a = self._view(offset, (shape.rank, n_in))
            b = self._view(offset + a.numel(), (n_out, shape.rank))
            self.pairs[path] = LoraPair(a, b)
            offset += a.numel() + b.numel()

    def _view(self, offset: int, size: tuple[int, int]) -> torch.Tensor:
        end = offset + size[0] * size[1]
        part = nn.Parameter(self.flat.data[offset:end].view(size), requires_grad=self.flat.requires_grad)
        if self.flat.grad is not None:
            part.grad = self.flat.grad[offset:end].view(size)
        return part

    def initialise(self, seed: int) -> None:
        """Draw A as peft does (Kaiming uniform), zero B, and seed the dropout.

        The numbers come from a private CPU generator: the same on every device and whatever
        else draws numbers in the process.
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for pair in self.pairs.values():
                draw = torch.empty(pair.a_R_I.shape)
                nn.init.kaiming_uniform_(draw, a=math.sqrt(5), generator=generator)
                pair.a_R_I.copy_(draw)
                pair.b_O_R.zero_()
        self.generator.manual_seed(seed)

    def for_inference(self, layers: Mapping[str, nn.Linear], dtype: torch.dtype) -> Adapter:
        """Return a copy in dtype, without gradients or dropout."""
        copy = Adapter(self.name, self.shape, layers, device=self.flat.device, dtype=dtype, trainable=False)
        copy.flat.data.copy_(self.flat.data)
        return copy


@dataclass(frozen=True)
class Span:
    """The part of a batch, along the placement's dimension, that belongs to an adapter."""

    adapter: Adapter
    start: int
    length: int


@dataclass(frozen=True)
class Placement:
    """Who owns which part of the batch in flight. One span stands for the whole batch."""

    dim: int
    spans: tuple[Span, ...]


class StackedLinear(nn.Module):
    """A frozen linear layer, plus each adapter's low-rank product on that adapter's span."""

    def __init__(self, base: nn.Linear, path: str, stack: AdapterStack) -> None:
        super().__init__()
        self.base = base
        self.path = path
        self._stack = stack

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.base(x)
        placement = self._stack.placement
        if placement is None:
            return y
        if len(placement.spans) == 1:
            return self._add(placement.spans[0].adapter, x, y)
        if not any(self.path in span.adapter.pairs for span in placement.spans):
            return y
        parts = [
            self._add(
                span.adapter,
                x.narrow(placement.dim, span.start, span.length),
                y.narrow(placement.dim, span.start, span.length),
            )
            for span in placement.spans
        ]
        return torch.cat(parts, dim=placement.dim)

    def _add(self, adapter: Adapter, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        pair = adapter.pairs.get(self.path)
        if pair is None:
            return y
        x = _drop(x, adapter)
        low_T_R = F.linear(x, pair.a_R_I.to(x.dtype)).flatten(0, -2)
        b_O_R = pair.b_O_R.to(x.dtype)
        # One fused product and sum; separate ones cost a pass over y more.
        return torch.addmm(y.flatten(0, -2), low_T_R, b_O_R.t(), alpha=adapter.scale).view(y.shape)


def _drop(x: torch.Tensor, adapter: Adapter) -> torch.Tensor:
    if not adapter.dropout or not torch.is_grad_enabled():
        return x
    keep = 1 - adapter.dropout
    mask = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return x * mask.bernoulli_(keep, generator=adapter.generator).div_(keep)


class AdapterStack:
    """The adapters' seats on one model: puts them in, and says who owns which part of a batch."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._linears = dict(_decoder_linears(model))
        self.placement: Placement | None = None
        for parameter in model.parameters():
            parameter.requires_grad_(False)

    def layers_for(self, shape: LoraShape) -> dict[str, nn.Linear]:
        """Return the linear layers that shape adapts, by path, in the model's order.

        A target matches a path that equals it or ends with it after a dot, as in peft.

        Raises:
            ModelError: a target or a layer number names nothing that can be adapted.
        """
        found: dict[str, nn.Linear] = {}
        hit: set[str] = set()
        for path, linear in self._linears.items():
            names = [name for name in shape.targets if path == name or path.endswith(f".{name}")]
            number = _layer_number(path)
            if names and (shape.layers is None or number in shape.layers):
                found[path] = linear
                hit.update(names)
        missing = [name for name in shape.targets if name not in hit]
        depth = 1 + max(_layer_number(path) for path in self._linears)
        if shape.layers is not None and not all(0 <= number < depth for number in shape.layers):
            raise ModelError(f"lora_layers is {list(shape.layers)}; this base has layers 0 to {depth - 1}")
        if missing:
            allowed = sorted({path.rpartition(".")[2] for path in self._linears})
            raise ModelError(f"lora_target_modules {missing} match no linear layer; allowed here: {allowed}")
        return found

    def new_adapter(
        self,
        name: str,
        shape: LoraShape,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        trainable: bool = True,
    ) -> Adapter:
        """Make an adapter, all zeros, and take its seats in the model."""
        layers = self.layers_for(shape)
        for path, linear in layers.items():
            self._seat(path, linear)
        return Adapter(name, shape, layers, device=device, dtype=dtype, trainable=trainable)

    def inference_copy(self, adapter: Adapter, dtype: torch.dtype) -> Adapter:
        """Return a copy of adapter in dtype, without gradients or dropout."""
        return adapter.for_inference(self.layers_for(adapter.shape), dtype)

    def vacate(self) -> None:
        """Take every seat out again: the model is as it was loaded."""
        for path, linear in self._linears.items():
            if isinstance(self._model.get_submodule(path), StackedLinear):
                self._put(path, linear)

    def _seat(self, path: str, linear: nn.Linear) -> None:
        if not isinstance(self._model.get_submodule(path), StackedLinear):
            self._put(path, StackedLinear(linear, path, self))

    def _put(self, path: str, module: nn.Module) -> None:
        parent_path, _, name = path.rpartition(".")
        setattr(self._model.get_submodule(parent_path), name, module)

    @contextlib.contextmanager
    def placed(self, spans: Sequence[Span], *, dim: int) -> Iterator[None]:
        """Give each span of the batches of this block to its adapter; no span is the bare base."""
        if self.placement is not None:
            raise TrainError("another batch is in flight on this base; one pass at a time")
        self.placement = Placement(dim, tuple(spans)) if spans else None
        try:
            yield
        finally:
            self.placement = None


def _decoder_linears(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the linear layers inside numbered decoder layers; never the vocabulary head."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and _LAYER.search(path):
            yield path, module


def _layer_number(path: str) -> int:
    match = _LAYER.search(path)
    assert match is not None
    return int(match[1])
