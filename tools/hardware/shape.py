"""The shape of a base model: the sizes that its memory follows from."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from tools.errors import ModelError

__all__ = ["ModelShape", "read_shape", "shape_of_config"]

_GGUF_MAGIC: Final = b"GGUF"
_GGUF_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_GGUF_INTEGERS: Final = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 10: "<Q", 11: "<q"}
_GGUF_STRING: Final = 8
_GGUF_ARRAY: Final = 9
_QK_NORMED: Final = ("qwen3", "olmo2")
# A real header names some dozens of keys; a hostile one could name 2**64.
_MOST_KEYS: Final = 4096
_LONGEST_KEY: Final = 4096
_CONFIG_LIMIT_BYTES: Final = 16 * 2**20


@dataclass(frozen=True)
class ModelShape:
    """A decoder's sizes."""

    n_layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    """The vocabulary projection is the embedding."""
    n_experts: int = 1
    has_qk_norm: bool = False
    """Queries and keys are normalised before they meet."""

    @property
    def kv_width(self) -> int:
        """Width of a layer's keys, and of its values."""
        return self.kv_heads * self.head_dim

    @property
    def projections(self) -> Mapping[str, tuple[int, int]]:
        """Width in and out of each linear projection of a layer."""
        width = self.heads * self.head_dim
        return {
            "q_proj": (self.hidden, width),
            "k_proj": (self.hidden, self.kv_width),
            "v_proj": (self.hidden, self.kv_width),
            "o_proj": (width, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def n_params(self) -> int:
        """Weights of the whole model; biases and norms, a thousandth of it, are left out."""
        sizes = {name: n_in * n_out for name, (n_in, n_out) in self.projections.items()}
        experts = self.n_experts * sum(sizes[name] for name in ("gate_proj", "up_proj", "down_proj"))
        attention = sum(sizes[name] for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.n_layers * (attention + experts) + embeddings


def read_shape(path: str | Path) -> ModelShape:
    """Read the shape from a Hugging Face folder's config.json or a GGUF file's header.

    Raises:
        ModelError: neither is there, or what is there does not say the sizes.
    """
    target = Path(path).expanduser()
    if target.is_dir():
        return _from_config(target / "config.json")
    if target.is_file():
        return _from_gguf(target)
    raise ModelError(f"no model at {target}; give a folder with a config.json or a .gguf file")


def _from_config(path: Path) -> ModelShape:
    try:
        if path.stat().st_size > _CONFIG_LIMIT_BYTES:
            raise ModelError(f"{path} is over {_CONFIG_LIMIT_BYTES} bytes; that is no config.json")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise ModelError(f"{path} cannot be read as JSON: {err}") from err
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds a {type(config).__name__}; a config is an object")
    return shape_of_config(config, path)


def shape_of_config(config: Mapping[str, Any], source: str | Path = "the config") -> ModelShape:
    """Return the shape that a Hugging Face config says.

    Args:
        config: As in config.json.
        source: Names it in errors.
    Raises:
        ModelError: a size is missing or is none.
    """
    # Multimodal configs keep the decoder's sizes one level down.
    text = config.get("text_config")
    merged = {**config, **text} if isinstance(text, dict) else config
    heads = _size(merged, source, "num_attention_heads", "n_head")
    hidden = _size(merged, source, "hidden_size", "n_embd")
    return ModelShape(
        n_layers=_size(merged, source, "num_hidden_layers", "n_layer"),
        hidden=hidden,
        intermediate=_size(
            merged, source, "moe_intermediate_size", "intermediate_size", "n_inner", default=4 * hidden
        ),
        heads=heads,
        kv_heads=_size(merged, source, "num_key_value_heads", default=heads),
        head_dim=_size(merged, source, "head_dim", default=max(1, hidden // heads)),
        vocab=_size(merged, source, "vocab_size"),
        tied=bool(merged.get("tie_word_embeddings", False)),
        n_experts=_size(merged, source, "num_local_experts", "num_experts", "n_routed_experts", default=1),
        has_qk_norm=str(merged.get("model_type", "")).startswith(_QK_NORMED),
    )


def _from_gguf(path: Path) -> ModelShape:
    try:
        with path.open("rb") as file:
            header = _GgufHeader(file, path.stat().st_size).read()
    except (OSError, struct.error, ValueError) as err:
        raise ModelError(f"{path} is no readable GGUF file: {err}") from err
    arch = header.get("general.architecture")

    def size(key: str, default: int | None = None) -> int:
        return _size(header, path, f"{arch}.{key}", default=default)

    heads, hidden = size("attention.head_count"), size("embedding_length")
    tokens = header.get("tokenizer.ggml.tokens")
    return ModelShape(
        n_layers=size("block_count"),
        hidden=hidden,
        intermediate=_size(header, path, f"{arch}.expert_feed_forward_length", f"{arch}.feed_forward_length"),
        heads=heads,
        kv_heads=size("attention.head_count_kv", heads),
        head_dim=size("attention.key_length", max(1, hidden // heads)),
        vocab=size("vocab_size", tokens.length if isinstance(tokens, _Array) else None),
        tied="output.weight" not in header["tensors"],
        n_experts=size("expert_count", 1),
        has_qk_norm=str(arch).startswith(_QK_NORMED),
    )


@dataclass(frozen=True)
class _Array:
    """An array of the header, of which only the length is kept."""

    length: int


class _GgufHeader:
    """Reads what a GGUF file says in front of its tensors."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def read(self) -> dict[str, Any]:
        if self._file.read(4) != _GGUF_MAGIC:
            raise ValueError("it does not begin with GGUF")
        (version,) = self._unpack("<I")
        if version not in (2, 3):
            raise ValueError(f"version {version}; versions 2 and 3 are read")
        n_tensors, n_keys = self._unpack("<QQ")
        if n_keys > _MOST_KEYS or n_tensors > _MOST_KEYS * 16:
            raise ValueError(f"it claims {n_keys} keys and {n_tensors} tensors")
        header: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self._string()
            (kind,) = self._unpack("<I")
            header[key] = self._value(kind)
        header["tensors"] = frozenset(self._tensor_name() for _ in range(n_tensors))
        return header

    def _value(self, kind: int) -> Any:
        if kind == _GGUF_STRING:
            return self._string()
        if kind == _GGUF_ARRAY:
            return self._skip_array()
        if kind in _GGUF_INTEGERS:
            return self._unpack(_GGUF_INTEGERS[kind])[0]
        self._skip(self._width(kind))
        return None

    def _skip_array(self) -> _Array:
        kind, length = self._unpack("<IQ")
        if kind == _GGUF_STRING:
            for _ in range(length):
                self._skip(self._unpack("<Q")[0])
        else:
            self._skip(self._width(kind) * length)
        return _Array(int(length))

    def _tensor_name(self) -> str:
        name = self._string()
        (n_dims,) = self._unpack("<I")
        if n_dims > 8:
            raise ValueError(f"tensor {name[:80]!r} claims {n_dims} dimensions")
        self._skip(8 * n_dims + 4 + 8)
        return name

    def _string(self) -> str:
        (length,) = self._unpack("<Q")
        if length > _LONGEST_KEY and self._file.tell() + length > self._size:
            raise ValueError("a string runs past the end of the file")
        return self._file.read(length).decode("utf-8", errors="replace")

    def _width(self, kind: int) -> int:
        if kind not in _GGUF_SIZES:
            raise ValueError(f"value type {kind} is unknown")
        return _GGUF_SIZES[kind]

    def _unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self._file.read(struct.calcsize(form)))

    def _skip(self, n_bytes: int) -> None:
        if self._file.tell() + n_bytes > self._size:
            raise ValueError("a value runs past the end of the file")
        self._file.seek(n_bytes, 1)


def _size(data: Mapping[str, Any], path: str | Path, *names: str, default: int | None = None) -> int:
    value = next((data[name] for name in names if data.get(name) not in (None, 0)), default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**40:
        raise ModelError(f"{path}: {names[0]} is {value!r}; it must be a whole number above 0")
    return value
