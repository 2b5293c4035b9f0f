"""What a worker is asked to do, as frozen records and as JSON."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal

from tools.engine.halving import Halving
from tools.errors import TrainError
from tools.recipe import Mode, Quantization, TrainRecipe

__all__ = [
    "AdapterRef",
    "EvaluateSpec",
    "MidEval",
    "ScorerChoice",
    "StackMember",
    "TrainSpec",
    "read_spec",
    "spec_from_json",
]

KINDS: Final = ("train", "evaluate")
DTYPES: Final = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class ScorerChoice:
    """The registered scorer that judges an answer."""

    name: str
    ignore: tuple[str, ...] = ()
    scorer_file: str | None = None


@dataclass(frozen=True)
class MidEval:
    """What a mid-run evaluation looks at."""

    rows: str
    n_items: int
    scorer: ScorerChoice
    max_new_tokens: int = 128
    batch_size: int = 32
    """Rows decoded at once."""


@dataclass(frozen=True)
class StackMember:
    """One trial of a stack: its recipe, paths resolved, and the folder of its checkpoints."""

    trial_id: str
    recipe: TrainRecipe
    run_dir: str


@dataclass(frozen=True)
class TrainSpec:
    """Train members on one base."""

    base_model: str
    members: tuple[StackMember, ...]
    mode: Mode
    result_path: str
    mid_eval: MidEval | None = None
    threads: int | None = None
    stack_tokens: int | None = None
    """Most tokens laid side by side in one pass; None lets the device decide."""
    search: Halving | None = None
    """Stops the worst members on the way; None trains all to their end."""
    kind: Literal["train"] = "train"


@dataclass(frozen=True)
class AdapterRef:
    """An adapter to evaluate; a folder of None is the bare base."""

    trial_id: str
    seed: int
    adapter_dir: str | None


@dataclass(frozen=True)
class EvaluateSpec:
    """Answer and score every row of the splits with every adapter."""

    base_model: str
    torch_dtype: str
    adapters: tuple[AdapterRef, ...]
    splits: Mapping[str, str]
    scorer: ScorerChoice
    scores_dir: str
    result_path: str
    system_prompt: str | None = None
    max_new_tokens: int = 128
    batch_size: int = 32
    forbidden_outputs: tuple[str, ...] = ()
    sealed_splits: tuple[str, ...] = ("selection", "test")
    """Splits of which scores are written but no text."""
    quantization: Quantization = "none"
    threads: int | None = None
    kind: Literal["evaluate"] = "evaluate"


Spec = TrainSpec | EvaluateSpec


def read_spec(path: str | Path) -> Spec:
    """Read a spec from a JSON file.

    Raises:
        TrainError: the file is missing or no spec.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise TrainError(f"{path} cannot be read as a JSON spec: {err}") from err
    return spec_from_json(data)


def spec_from_json(data: Any) -> Spec:
    """Build a spec from plain values.

    Raises:
        TrainError: an unknown kind, an unknown or missing key, or a value of the wrong type.
        RecipeError: a member's recipe is malformed.
    """
    kind = data.get("kind") if isinstance(data, Mapping) else data
    if kind not in KINDS:
        raise TrainError(f"spec kind is {kind!r}; allowed: {list(KINDS)}")
    spec: Spec = _build(TrainSpec if kind == "train" else EvaluateSpec, data, "spec")
    _check(spec)
    return spec


def spec_to_json(spec: Spec) -> dict[str, Any]:
    """Return the plain values that spec_from_json reads."""
    plain = _plain(spec)
    assert isinstance(plain, dict)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, TrainRecipe):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return value


def _build(cls: Any, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise TrainError(f"{where} is {type(data).__name__}; it must be an object")
    if cls is TrainRecipe:
        return TrainRecipe.from_dict(data)
    kinds = typing.get_type_hints(cls)
    unknown = sorted(str(key) for key in data if key not in kinds)
    if unknown:
        raise TrainError(f"{where} holds unknown keys {unknown}; allowed: {sorted(kinds)}")
    missing = [
        item.name for item in fields(cls) if item.default is dataclasses.MISSING and item.name not in data
    ]
    if missing:
        raise TrainError(f"{where} lacks {missing}; allowed keys: {sorted(kinds)}")
    return cls(**{key: _read(value, kinds[key], f"{where}.{key}") for key, value in data.items()})


def _read(value: Any, kind: Any, where: str) -> Any:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if type(None) in parts:
        others = [part for part in parts if part is not type(None)]
        return None if value is None else _read(value, others[0], where)
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_read(entry, parts[0], f"{where}[{i}]") for i, entry in enumerate(value))
    if origin is not None and origin is not Literal and issubclass(origin, Mapping):
        if isinstance(value, Mapping) and all(isinstance(v, str) for v in value.values()):
            return dict(value)
    elif origin is Literal:
        if value in parts:
            return value
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif kind in (str, int) and isinstance(value, kind) and not isinstance(value, bool):
        return value
    raise TrainError(f"{where} is {value!r}; it must be {kind}")


def _check(spec: Spec) -> None:
    ids = [item.trial_id for item in (spec.members if spec.kind == "train" else spec.adapters)]
    bad = [name for name in ids if not name or "/" in name or name.startswith(".")]
    if not ids or bad or len(set(ids)) != len(ids):
        raise TrainError(f"trial ids {ids}; they must be distinct, plain names, and one at least")
    if spec.threads is not None and spec.threads < 1:
        raise TrainError(f"threads is {spec.threads}; it must be at least 1, or null")
    if spec.kind == "train":
        for member in spec.members:
            member.recipe.validate()
        held = {(member.recipe.torch_dtype, member.recipe.quantization) for member in spec.members}
        if len(held) > 1:
            raise TrainError(
                f"members want the base in several forms (torch_dtype, quantization): {sorted(held)}; "
                "one worker holds it in one"
            )
        if spec.search is not None:
            spec.search.check()
            if spec.mid_eval is None:
                raise TrainError("search needs mid_eval: without dev scores nobody can be told to leave")
        return
    if spec.torch_dtype not in DTYPES:
        raise TrainError(f"torch_dtype is {spec.torch_dtype!r}; allowed: {list(DTYPES)}")
    for name in spec.splits:
        if not name or "/" in name or name.startswith("."):
            raise TrainError(f"split name {name!r} must be a plain name")
