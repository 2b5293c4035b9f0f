"""The patch: a typed change to a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_serializer, model_validator

from tools.errors import PatchError, RecipeError
from tools.patch_space import DEFAULT_SPACE, PatchSpace
from tools.recipe import TrainRecipe

__all__ = [
    "Change",
    "RecipePatch",
    "apply_patch",
    "diff_recipes",
    "format_changes",
    "format_diff",
    "format_values",
    "patch_between",
    "patch_from_mapping",
    "schema",
]

# Neither changes a weight, and both differ between trials of one recipe.
_NOT_COMPARED = ("notes", "output_dir")


class RecipePatch(BaseModel):
    """The fields of a recipe to set; those not named stay as they are.

    Only what is named counts: `lora_layers: null` sets it to null, leaving it out does not.
    The ranges are those of `tools.patch_space.DEFAULT_SPACE`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float | None = None
    min_learning_rate: float | None = None
    lr_schedule: Literal["cosine", "linear", "constant"] | None = None
    lr_warmup_fraction: float | None = None
    lora_rank: int | None = None
    lora_alpha: int | None = None
    lora_dropout: float | None = None
    lora_target_modules: tuple[str, ...] | None = None
    lora_layers: tuple[int, ...] | None = None
    use_rslora: bool | None = None
    epochs: float | None = None
    max_steps: int | None = None
    global_batch_size: int | None = None
    micro_batch_size: int | None = None
    weight_decay: float | None = None
    max_grad_norm: float | None = None
    packing: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _keep_to_the_ranges(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            raise ValueError(f"came a {type(data).__name__}; a patch is a mapping of fields to values")
        values = DEFAULT_SPACE.canonical(data)
        problems = DEFAULT_SPACE.problems(values)
        if not values:
            problems = ("it names no field; name at least one",)
        if problems:
            raise ValueError("; ".join(problems))
        return values

    @model_serializer
    def _only_what_is_set(self) -> dict[str, Any]:
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in self.values().items()
        }

    def values(self) -> dict[str, Any]:
        """Return the fields that the patch sets, in the order of the declaration."""
        return {
            name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set
        }

    def __hash__(self) -> int:
        return hash(tuple(self.values().items()))

    def __str__(self) -> str:
        return format_values(self.values())


@dataclass(frozen=True)
class Change:
    """One field that differs between two recipes."""

    field: str
    before: Any
    after: Any

    def __str__(self) -> str:
        if isinstance(self.before, tuple) and isinstance(self.after, tuple):
            return f"{self.field} {_format_members(self.before, self.after)}"
        return f"{self.field} {_format_value(self.before)} -> {_format_value(self.after)}"


def patch_from_mapping(data: Any, *, space: PatchSpace = DEFAULT_SPACE) -> RecipePatch:
    """Return the patch that untrusted data (YAML, a planner's reply) describes.

    Raises:
        PatchError: names every field that is wrong, what came and what is allowed.
    """
    if isinstance(data, Mapping):
        _refuse_outside(space, data)
    try:
        return RecipePatch.model_validate(data)
    except ValidationError as err:
        raise PatchError("patch refused: " + "; ".join(_say(error) for error in err.errors())) from err


def apply_patch(recipe: TrainRecipe, patch: RecipePatch, *, space: PatchSpace = DEFAULT_SPACE) -> TrainRecipe:
    """Return recipe with patch applied, validated.

    Raises:
        PatchError: the patch leaves space, changes nothing, sets what another field overrides,
            or gives a recipe that contradicts itself.
    """
    _refuse_outside(space, patch.values())
    changes = {
        name: value for name, value in patch.values().items() if not _same(value, getattr(recipe, name))
    }
    if not changes:
        raise PatchError(f"the patch {format_values(patch.values())} changes nothing in the recipe")
    patched = recipe.replace(**changes)
    if "max_steps" in changes and patched.epochs is not None:
        raise PatchError(
            f"max_steps {patched.max_steps} has no effect while epochs is {patched.epochs:g}; "
            "set epochs, or set it to null in the same patch"
        )
    try:
        patched.validate()
    except RecipeError as err:
        raise PatchError(f"the patch {format_values(changes)} makes an impossible recipe: {err}") from err
    return patched


def diff_recipes(before: TrainRecipe, after: TrainRecipe) -> tuple[Change, ...]:
    """Return what differs, in the order of the recipe's fields; `notes` and `output_dir` are left out."""
    names = (item.name for item in fields(TrainRecipe) if item.name not in _NOT_COMPARED)
    pairs = ((name, getattr(before, name), getattr(after, name)) for name in names)
    return tuple(Change(name, old, new) for name, old, new in pairs if not _same(old, new))


def patch_between(before: TrainRecipe, after: TrainRecipe) -> RecipePatch:
    """Return the patch that turns before into after.

    Raises:
        PatchError: they are equal, or differ in a field that no patch may set.
    """
    return patch_from_mapping({change.field: change.after for change in diff_recipes(before, after)})


def format_changes(changes: tuple[Change, ...]) -> str:
    """Return changes on one line, such as `learning_rate 0.0001 -> 0.001, lora_rank 8 -> 16`."""
    return ", ".join(str(change) for change in changes) or "no change"


def format_diff(before: TrainRecipe, after: TrainRecipe) -> str:
    """Return what differs between two recipes on one line."""
    return format_changes(diff_recipes(before, after))


def format_values(values: Mapping[str, Any]) -> str:
    """Return field values on one line, such as `learning_rate 0.001, lora_rank 16`."""
    return ", ".join(f"{name} {_format_value(value)}" for name, value in values.items())


def schema(space: PatchSpace = DEFAULT_SPACE) -> dict[str, dict[str, Any]]:
    """Return the fields that a patch may set as plain values, for planners and for the docs."""
    return {
        name: {
            "kind": rule.kind,
            "allowed": rule.allowed,
            "about": rule.about,
            "min": rule.low,
            "max": rule.high,
            "choices": None if rule.choices is None else list(rule.choices),
            "nullable": rule.nullable,
        }
        for name, rule in space.ranges.items()
    }


def _refuse_outside(space: PatchSpace, values: Mapping[str, Any]) -> None:
    problems = space.problems(space.canonical(values))
    if problems:
        raise PatchError("patch refused: " + "; ".join(problems))


def _same(left: Any, right: Any) -> bool:
    # The order of targets and layers changes nothing that is trained.
    if isinstance(left, tuple) and isinstance(right, tuple):
        return set(left) == set(right)
    return bool(left == right)


def _say(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    text = str(error["msg"]).removeprefix("Value error, ")
    return f"{where}: {text}" if where else text


def _format_members(before: tuple[Any, ...], after: tuple[Any, ...]) -> str:
    gone = [f"-{entry}" for entry in before if entry not in after]
    come = [f"+{entry}" for entry in after if entry not in before]
    return " ".join(gone + come)


def _format_value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, tuple | list):
        return "+".join(str(entry) for entry in value)
    return str(value)
