"""LoRA adapters that share one frozen base, each on its own part of a batch."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from tools.engine.grouped import grouped_linear, is_grouped
from tools.engine.low_rank import LowRankProduct, add_low_rank, stacked_linear
from tools.errors import ModelError, TrainError
from tools.recipe import TrainRecipe

__all__ = ["Adapter", "AdapterStack", "DropWindow", "LoraPair", "LoraShape", "Span"]

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


@dataclass(frozen=True)
class DropWindow:
    """A part of a pass: dropout is drawn for all of its n_drawn tokens, and used from start on.

    So that a pass that is cut in two for want of memory strikes the same places as the whole one.
    """

    n_drawn: int
    start: int


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
        self.window: DropWindow | None = None
        """Where the tokens in flight lie, while they are a part of the pass that dropout is drawn for."""
        self.lowest_layer = min(map(_layer_number, layers), default=0)
        self.prefix_tokens_saved = 0
        """Tokens that were spared the layers below the lowest, which were computed before."""
        sizes = {path: (layer.in_features, layer.out_features) for path, layer in layers.items()}
        total = sum(shape.rank * (n_in + n_out) for n_in, n_out in sizes.values())
        self.flat = nn.Parameter(torch.zeros(total, device=device, dtype=dtype), requires_grad=trainable)
        if trainable:
            self.flat.grad = torch.zeros_like(self.flat)
        self._sizes = sizes
        self.pairs: Mapping[str, LoraPair] = {
            path: LoraPair(self._trained(pair.a_R_I), self._trained(pair.b_O_R))
            for path, pair in self.factors_of(self.flat.data).items()
        }
        if self.flat.grad is not None:
            for path, pair in self.factors_of(self.flat.grad).items():
                self.pairs[path].a_R_I.grad, self.pairs[path].b_O_R.grad = pair.a_R_I, pair.b_O_R

    def factors_of(self, flat: torch.Tensor) -> dict[str, LoraPair]:
        """Return views of a buffer that is laid out as `flat` is."""
        rank = self.shape.rank
        lengths = [rank * n for size in self._sizes.values() for n in size]
        parts = iter(torch.split(flat, lengths))
        return {
            path: LoraPair(next(parts).view(rank, n_in), next(parts).view(n_out, rank))
            for path, (n_in, n_out) in self._sizes.items()
        }

    def product(self, path: str, pair: LoraPair, start: int, length: int) -> LowRankProduct:
        """Return what this adapter adds to the layer at path; pair is its factors in the pass's precision."""
        own = self.pairs[path]
        drops = self.dropout and torch.is_grad_enabled()
        return LowRankProduct(
            (own.a_R_I, own.b_O_R),
            pair.a_R_I,
            pair.b_O_R,
            self.scale,
            start,
            length,
            self._draw_mask if drops else None,
        )

    def _draw_mask(self, x_T_I: torch.Tensor) -> torch.Tensor:
        """Return what dropout multiplies x by; what is filled up behind a pass is not drawn for."""
        keep = 1 - self.dropout
        window = DropWindow(len(x_T_I), 0) if self.window is None else self.window
        drawn = torch.empty((window.n_drawn, x_T_I.shape[1]), dtype=x_T_I.dtype, device=x_T_I.device)
        drawn.bernoulli_(keep, generator=self.generator).div_(keep)
        own = drawn[window.start : window.start + len(x_T_I)]
        if len(own) == len(drawn) == len(x_T_I):
            return drawn
        # A tensor of its own, so that the rest of what was drawn is not kept for the backward pass.
        return torch.cat([own, torch.ones_like(x_T_I[len(own) :])])

    def _trained(self, part: torch.Tensor) -> nn.Parameter:
        return nn.Parameter(part, requires_grad=self.flat.requires_grad)

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
    """The part of a batch, along the placement's dimension, of an adapter or of the bare base."""

    adapter: Adapter | None
    start: int
    length: int


class Placement:
    """Who owns which part of the batch in flight. One span stands for the whole batch."""

    def __init__(self, dim: int, spans: tuple[Span, ...]) -> None:
        self.dim = dim
        self.spans = spans
        self._cast: dict[tuple[int, torch.dtype], Mapping[str, LoraPair]] = {}

    def products(self, path: str, x: torch.Tensor) -> list[LowRankProduct]:
        """Return what the adapters add to the layer at path, given its input."""
        # Tokens of one step along dim, once all leading dimensions are one.
        tokens = x.shape[1] if self.dim == 0 and x.dim() > 2 else 1
        alone = len(self.spans) == 1
        return [
            span.adapter.product(
                path,
                self._factors(span.adapter, x.dtype)[path],
                0 if alone else span.start * tokens,
                x.numel() // x.shape[-1] if alone else span.length * tokens,
            )
            for span in self.spans
            if span.adapter is not None and path in span.adapter.pairs
        ]

    def _factors(self, adapter: Adapter, dtype: torch.dtype) -> Mapping[str, LoraPair]:
        """Return an adapter's factors in dtype, cast once for the whole pass."""
        if adapter.flat.dtype == dtype:
            return adapter.pairs
        key = (id(adapter), dtype)
        if key not in self._cast:
            self._cast[key] = adapter.factors_of(adapter.flat.detach().to(dtype))
        return self._cast[key]


class StackedLinear(nn.Module):
    """A frozen linear layer, plus each adapter's low-rank product on that adapter's span."""

    def __init__(self, base: nn.Linear, path: str, stack: AdapterStack) -> None:
        super().__init__()
        self.base = base
        self.path = path
        self._stack = stack
        # Subclasses hold their weight in a form of their own.
        self._is_plain = type(base) is nn.Linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        placement = self._stack.placement
        products = [] if placement is None else placement.products(self.path, x)
        if not products:
            y: torch.Tensor = self.base(x)
            return y
        if self._is_plain and is_grouped(x, self.base.weight, products):
            return grouped_linear(x, self.base.weight, self.base.bias, products)
        if self._is_plain:
            return stacked_linear(x, self.base.weight, self.base.bias, products)
        return add_low_rank(x, self.base(x), products)


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
