"""What a recipe's values must be, each rule with a message that names the field."""

from __future__ import annotations

import functools
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from tools.errors import RecipeError

if TYPE_CHECKING:
    from tools.recipe import TrainRecipe

__all__ = [
    "as_number",
    "check_combinations",
    "check_paths",
    "check_ranges",
    "check_types",
    "field_kinds",
]

_MODULE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")


def as_number(value: Any, kind: Any) -> Any:
    """Turn a string such as `1e-4` into the number that its field wants; leave the rest."""
    wanted = _members(kind)
    if isinstance(value, str) and (float in wanted or int in wanted) and str not in wanted:
        try:
            number = float(value)
        except ValueError:
            return value
        return int(number) if float not in wanted and number.is_integer() else number
    if isinstance(value, float) and int in wanted and float not in wanted and value.is_integer():
        return int(value)
    return value


def _members(kind: Any) -> tuple[Any, ...]:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return tuple(member for part in typing.get_args(kind) for member in _members(part))
    if origin is Literal:
        return (str,)
    return (kind,)


@functools.cache
def field_kinds() -> dict[str, Any]:
    """Return the type of every field of a recipe; looking them up takes longer than all else here."""
    from tools.recipe import TrainRecipe

    return typing.get_type_hints(TrainRecipe)


def check_types(recipe: TrainRecipe) -> None:
    """Raise RecipeError at the first field whose value is not of the field's type."""
    kinds = field_kinds()
    for item in fields(recipe):
        value, kind = getattr(recipe, item.name), kinds[item.name]
        if not _is_a(value, kind):
            raise RecipeError(f"{item.name} is {value!r} ({type(value).__name__}); it must be {_say(kind)}")


def _is_a(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_is_a(value, part) for part in typing.get_args(kind))
    if origin is Literal:
        return isinstance(value, str) and value in typing.get_args(kind)
    if origin is tuple:
        (part, _) = typing.get_args(kind)
        return isinstance(value, tuple) and all(_is_a(entry, part) for entry in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            isinstance(key, str) and isinstance(entry, str) for key, entry in value.items()
        )
    return isinstance(value, kind)


def _say(kind: Any) -> str:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_say(part) for part in typing.get_args(kind))
    if origin is Literal:
        return f"one of {list(typing.get_args(kind))}"
    if origin is tuple:
        return f"a list of {_say(typing.get_args(kind)[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping of strings to strings"
    words = {int: "a whole number", float: "a finite number", str: "a string", bool: "true or false"}
    return words.get(kind, "null")


def check_ranges(recipe: TrainRecipe) -> None:
    """Raise RecipeError at the first value outside its field's range."""
    at_least_one = (
        "lora_rank",
        "lora_alpha",
        "seq_length",
        "micro_batch_size",
        "max_steps",
        "save_interval",
        "smoke_steps",
    )
    for name in at_least_one:
        _demand(recipe, name, getattr(recipe, name) >= 1, ">= 1")
    for name in ("eval_interval", "early_stop_patience"):
        value = getattr(recipe, name)
        _demand(recipe, name, value is None or value >= 1, ">= 1 or null")
    for name in ("base_model", "dataset_jsonl", "output_dir"):
        text = getattr(recipe, name)
        _demand(recipe, name, bool(text.strip()) and "\0" not in text, "a non-empty path or name")
    _demand(recipe, "lora_dropout", 0 <= recipe.lora_dropout < 1, "in [0, 1)")
    _demand(recipe, "learning_rate", recipe.learning_rate > 0, "> 0")
    _demand(recipe, "min_learning_rate", recipe.min_learning_rate >= 0, ">= 0")
    _demand(recipe, "lr_warmup_fraction", 0 <= recipe.lr_warmup_fraction <= 1, "in [0, 1]")
    _demand(recipe, "weight_decay", recipe.weight_decay >= 0, ">= 0")
    _demand(recipe, "max_grad_norm", recipe.max_grad_norm >= 0, ">= 0 (0 turns clipping off)")
    _demand(recipe, "epochs", recipe.epochs is None or recipe.epochs > 0, "> 0 or null")
    _demand(recipe, "seed", 0 <= recipe.seed < 2**63, "in [0, 2**63)")
    keep = recipe.most_recent_k
    _demand(recipe, "most_recent_k", keep == -1 or keep >= 1, "-1 (keep all) or >= 1")
    _check_names(recipe)


def _check_names(recipe: TrainRecipe) -> None:
    targets = recipe.lora_target_modules
    _demand(recipe, "lora_target_modules", bool(targets), "non-empty")
    well_formed = all(_MODULE_NAME.match(name) for name in targets)
    _demand(recipe, "lora_target_modules", well_formed, "module names such as 'q_proj'")
    _demand(recipe, "lora_target_modules", len(set(targets)) == len(targets), "without repeats")
    layers: Sequence[int] | None = recipe.lora_layers
    fine = layers is None or (len(layers) > 0 and len(set(layers)) == len(layers) and min(layers) >= 0)
    _demand(recipe, "lora_layers", fine, "null or distinct layer numbers from 0")


def check_combinations(recipe: TrainRecipe) -> None:
    """Raise RecipeError at the first pair of fields that contradict each other."""

    def refuse(text: str) -> None:
        raise RecipeError(text)

    micro, whole = recipe.micro_batch_size, recipe.global_batch_size
    if whole < micro or whole % micro:
        refuse(f"global_batch_size ({whole}) must be a multiple of micro_batch_size ({micro})")
    if recipe.min_learning_rate > recipe.learning_rate:
        refuse(
            f"min_learning_rate ({recipe.min_learning_rate}) must be <= "
            f"learning_rate ({recipe.learning_rate})"
        )
    if recipe.epochs is None and recipe.smoke_steps > recipe.max_steps:
        refuse(f"smoke_steps ({recipe.smoke_steps}) must be <= max_steps ({recipe.max_steps})")
    if recipe.backend == "nemo" and recipe.seq_length % 64:
        refuse(f"seq_length is {recipe.seq_length}; backend nemo needs a multiple of 64")
    if recipe.early_stop_patience is not None and recipe.eval_interval is None:
        refuse("early_stop_patience needs eval_interval: without mid-run scores nothing can stop early")
    if recipe.backend in ("local", "ray"):
        if recipe.use_dora:
            refuse(f"use_dora: the {recipe.backend} lane trains no DoRA yet; set it to false or use unsloth")
        if recipe.extra_env:
            refuse(f"extra_env {sorted(recipe.extra_env)}: only the nemo and unsloth lanes take it")
        if recipe.container:
            refuse(f"container is {recipe.container!r}: the {recipe.backend} lane runs in none; set null")
        if recipe.quantization != "none" and recipe.base_model.endswith(".gguf"):
            refuse(
                f"quantization is {recipe.quantization!r}, but base_model is a .gguf file, which is unpacked "
                "when it is loaded; give a folder or a Hub id, or set quantization to none"
            )
    elif recipe.quantization != "none":
        refuse(f"quantization is {recipe.quantization!r}: only the local lane takes it; set it to none")
    elif recipe.gradient_checkpointing:
        refuse(f"gradient_checkpointing: the {recipe.backend} trainer decides this itself; set it to false")
    recipe.lora_target_modules_for_backend()


def _demand(recipe: TrainRecipe, name: str, holds: bool, allowed: str) -> None:
    if not holds:
        raise RecipeError(f"{name} is {getattr(recipe, name)!r}; it must be {allowed}")


def check_paths(recipe: TrainRecipe) -> None:
    """Raise RecipeError at the first path that is missing or of the wrong kind."""
    base = Path(recipe.base_model).expanduser()
    looks_like_path = recipe.base_model.startswith((".", "/", "~")) or recipe.base_model.endswith(".gguf")
    if looks_like_path and not base.exists():
        raise RecipeError(f"base_model path does not exist: {recipe.base_model!r}")
    for name in ("dataset_jsonl", "system_prompt_file"):
        value = getattr(recipe, name)
        if value is not None and not Path(value).expanduser().is_file():
            raise RecipeError(f"{name} is no file: {value!r}; paths count from the working folder")
    parent = Path(recipe.output_dir).expanduser().resolve().parent
    if not parent.is_dir():
        raise RecipeError(f"output_dir's parent does not exist: {parent}; make it first")
