"""The frozen base model that all adapters share."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from tools.engine.attention import PACKED_ATTENTION, pack_documents, register_packed_attention
from tools.engine.frozen_prefix import FrozenPrefix
from tools.engine.lora import AdapterStack
from tools.engine.norms import fuse_norms
from tools.engine.quantization import keep_differentiable, loading_options
from tools.engine.spec import DTYPES
from tools.errors import ModelError
from tools.recipe import Quantization

__all__ = ["LoadedBase", "default_device", "load_base", "save_as_folder", "wrap_base"]

logger = logging.getLogger(__name__)

# Config fields that mean attention other than plain causal over all that came before.
_SPECIAL_FIELDS: Final = ("attn_logit_softcapping", "attention_chunk_size", "alibi", "attention_sink")
_TOLERANCE: Final = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}


@dataclass(frozen=True)
class LoadedBase:
    """A base in memory on one device, with the seats of its adapters."""

    model: Any
    tokenizer: Any
    name: str
    device: torch.device
    dtype: torch.dtype
    load_s: float
    stack: AdapterStack = field(repr=False)
    prefix: FrozenPrefix = field(default_factory=FrozenPrefix, repr=False)

    @property
    def decoder(self) -> Any:
        """The model without its vocabulary head."""
        return self.model.get_decoder()

    @property
    def head_V_D(self) -> torch.Tensor:
        """The vocabulary projection."""
        weight = self.model.get_output_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        return weight

    @contextlib.contextmanager
    def packed(self) -> Iterator[None]:
        """Attend inside each document of a packed stream for the length of the block."""
        config = self.model.config
        before = config._attn_implementation
        config._attn_implementation = PACKED_ATTENTION
        try:
            yield
        finally:
            config._attn_implementation = before


def default_device() -> torch.device:
    """Return the one device to use: CUDA where there is one, then MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def load_base(
    name: str,
    dtype: str = "bfloat16",
    *,
    quantization: Quantization = "none",
    device: torch.device | None = None,
) -> LoadedBase:
    """Load a base: a folder in Hugging Face layout, a .gguf file or a Hub id.

    Raises:
        MissingExtraError: the quantization needs a package that is not installed.
        ModelError: it cannot be found or read, or its architecture is one that packed training
            would get wrong.
    """
    if dtype not in DTYPES:
        raise ModelError(f"torch_dtype is {dtype!r}; allowed: {list(DTYPES)}")
    started = time.perf_counter()
    where = device or default_device()
    torch_dtype: torch.dtype = getattr(torch, dtype)
    with _quiet_transformers():
        more = loading_options(quantization, name, torch_dtype, where)
        model, tokenizer = _from_pretrained(name, torch_dtype, **more)
        if not more:
            model = model.to(where)
    base = wrap_base(model, tokenizer, name=name, load_s=time.perf_counter() - started)
    held = dtype if quantization == "none" else f"{quantization}, {dtype}"
    logger.info("loaded %s on %s in %s, %.1f s", name, where, held, base.load_s)
    return base


def save_as_folder(source: str | Path, folder: str | Path, *, dtype: str = "bfloat16") -> None:
    """Save a base, such as a .gguf file, as a plain Hugging Face folder with its tokenizer.

    Raises:
        ModelError: it cannot be read.
    """
    with _quiet_transformers():
        model, tokenizer = _from_pretrained(str(source), getattr(torch, dtype))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers from drawing its own progress bars: the caller reports progress."""
    from transformers.utils import logging as transformers_logging

    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


def wrap_base(model: Any, tokenizer: Any, *, name: str, load_s: float = 0.0) -> LoadedBase:
    """Freeze a model that is in memory already and check that packed training is right for it.

    Raises:
        ModelError: the architecture is unsuitable; the message says what is special about it.
    """
    _check_config(model, name)
    register_packed_attention()
    model.eval()
    keep_differentiable(model)
    parameter = next(model.parameters())
    base = LoadedBase(model, tokenizer, name, parameter.device, parameter.dtype, load_s, AdapterStack(model))
    fuse_norms(model)
    _check_packing(base)
    return base


def _from_pretrained(name: str, dtype: torch.dtype, **more: Any) -> tuple[Any, Any]:
    import transformers

    where, options = name, {"dtype": dtype, "attn_implementation": "sdpa", **more}
    tokenizer_options = {}
    path = Path(name).expanduser()
    if name.endswith(".gguf"):
        where = str(path.parent)
        tokenizer_options["gguf_file"] = options["gguf_file"] = path.name
        # Newer releases keep the packed weights, which cannot be trained on, unless told.
        if hasattr(transformers, "GgufConfig"):
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    elif path.exists():
        where = str(path)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **tokenizer_options)
        model = transformers.AutoModelForCausalLM.from_pretrained(where, **options)
    except (OSError, ValueError, ImportError, KeyError) as err:
        raise ModelError(
            f"base model {name!r} cannot be loaded: {err}. Give a Hub id, a folder in Hugging Face "
            "layout or a .gguf file; offline, a Hub id must be in the cache already"
        ) from err
    return model, tokenizer


def _check_config(model: Any, name: str) -> None:
    config = model.config
    special = [item for item in _SPECIAL_FIELDS if getattr(config, item, None)]
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        special.append(f"layer_types {sorted(kinds)}")
    # Qwen configs carry a window that use_sliding_window turns off.
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        special.append(f"sliding_window {config.sliding_window}")
    head = model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        special.append("a vocabulary head with a bias, or none")
    if not getattr(model, "_supports_attention_backend", False):
        special.append("attention that transformers cannot exchange")
    if special:
        raise ModelError(
            f"{name} ({config.model_type}) has {', '.join(special)}; the engine trains decoders with "
            "plain causal attention, such as Llama, Qwen2, Qwen3 or Mistral without a window"
        )


@torch.no_grad()
def _check_packing(base: LoadedBase) -> None:
    """Compare two documents packed and apart: what an unknown architecture adds shows here."""
    vocabulary = base.head_V_D.shape[0]
    rows = [[(7 * i + 3) % vocabulary for i in range(5)], [(11 * i + 2) % vocabulary for i in range(9)]]
    apart = [base.model(torch.tensor([row], device=base.device)).logits[0].float() for row in rows]
    lengths = [len(row) for row in rows]
    ids = torch.tensor([[token for row in rows for token in row]], device=base.device)
    positions = torch.tensor([[i for n in lengths for i in range(n)]], device=base.device)
    with base.packed():
        hidden = base.decoder(
            input_ids=ids,
            position_ids=positions,
            use_cache=False,
            documents=pack_documents(lengths, base.device),
        ).last_hidden_state[0]
    together = (hidden @ base.head_V_D.t()).float()
    expected = torch.cat(apart)
    gap = (together - expected).abs().max() / expected.abs().max().clamp_min(1e-6)
    if not gap <= _TOLERANCE[base.dtype]:
        raise ModelError(
            f"{base.name} ({base.model.config.model_type}) gives other logits for packed rows than for "
            f"single ones (off by {float(gap):.2g}); this architecture cannot be trained packed"
        )
