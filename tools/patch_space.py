"""The patch space: which recipe fields a patch may set, and to what."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, Literal

from tools.errors import PatchError

__all__ = ["DEFAULT_SPACE", "PROJECTIONS", "FieldRange", "PatchSpace"]

PROJECTIONS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear projections of a decoder layer, in the order in which a patch lists them."""

Kind = Literal["number", "whole", "flag", "choice", "subset", "layers"]
_MAX_LAYER: Final = 1023


@dataclass(frozen=True)
class FieldRange:
    """What one field may be set to.

    `number` and `whole` lie in [low, high]; `choices`, where given, narrows any kind to a
    list. `subset` is a non-empty part of `choices`, `layers` distinct layer numbers.
    """

    kind: Kind
    about: str
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] | None = None
    nullable: bool = False

    @property
    def allowed(self) -> str:
        """The rule in words, for messages and for planners."""
        words = self._allowed()
        return f"{words}, or null" if self.nullable else words

    def problem(self, value: Any) -> str | None:
        """Return why value is not allowed, or None. The value is as `canonical` returns it."""
        if value is None:
            fine = self.nullable
        elif self.kind in ("subset", "layers"):
            fine = self._is_list_of_members(value)
        else:
            fine = self._is_member(value)
        return None if fine else f"came {_short(value)}; allowed: {self.allowed}"

    def canonical(self, value: Any) -> Any:
        """Return value in the one form that equal settings share; what fits no form stays as it is.

        A string such as `1e-4`, which YAML 1.1 does not read as a number, becomes one.
        """
        if self.kind in ("number", "whole"):
            return _as_number(value, whole=self.kind == "whole")
        if self.kind in ("subset", "layers") and isinstance(value, list | tuple):
            return self._sorted(tuple(value))
        return value

    def narrowed(self, rule: Mapping[str, Any]) -> FieldRange:
        """Return the part of this range that rule leaves: `min` and `max`, or `choices`.

        Raises:
            ValueError: rule is malformed, leaves nothing or reaches outside this range.
        """
        unknown = sorted(str(key) for key in rule if key not in ("min", "max", "choices"))
        if unknown or not rule:
            raise ValueError(f"unknown key(s) {unknown}; a rule has 'min' and 'max', or 'choices'")
        if "choices" in rule:
            if len(rule) > 1:
                raise ValueError("give 'choices' alone, or 'min' and 'max'")
            return self._with_choices(rule["choices"])
        if self.kind not in ("number", "whole") or self.choices is not None:
            raise ValueError(f"'min' and 'max' fit numbers; this field takes {self.allowed}")
        low, high = (
            self._bound(rule.get(key, edge)) for key, edge in (("min", self.low), ("max", self.high))
        )
        if low > high:
            raise ValueError(f"min {low:g} is above max {high:g}")
        return replace(self, low=low, high=high)

    def _allowed(self) -> str:
        if self.kind == "flag" and self.choices is None:
            return "true or false"
        if self.kind == "layers":
            return f"distinct layer numbers in [0, {_MAX_LAYER}]"
        if self.kind == "subset":
            return f"a non-empty list out of {list(self.choices or ())}"
        if self.choices is not None:
            return f"one of {list(self.choices)}"
        noun = "a whole number" if self.kind == "whole" else "a number"
        return f"{noun} in [{self.low:g}, {self.high:g}]"

    def _is_member(self, value: Any) -> bool:
        if self.kind == "flag":
            return isinstance(value, bool) and (self.choices is None or value in self.choices)
        if self.kind == "choice":
            return isinstance(value, str) and value in (self.choices or ())
        if isinstance(value, bool) or not isinstance(value, int if self.kind == "whole" else int | float):
            return False
        if self.choices is not None:
            return value in self.choices
        # NaN fails both comparisons, and a whole number of any length compares without overflow.
        return self.low is not None and self.high is not None and self.low <= value <= self.high

    def _is_list_of_members(self, value: Any) -> bool:
        if not isinstance(value, tuple) or not value:
            return False
        if self.kind == "subset":
            known = all(isinstance(entry, str) and entry in (self.choices or ()) for entry in value)
        else:
            known = all(
                isinstance(entry, int) and not isinstance(entry, bool) and 0 <= entry <= _MAX_LAYER
                for entry in value
            )
        return known and len(set(value)) == len(value)

    def _sorted(self, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.problem(value) is not None:
            return value
        if self.kind == "layers":
            return tuple(sorted(value))
        order = self.choices or ()
        return tuple(sorted(value, key=order.index))

    def _with_choices(self, choices: Any) -> FieldRange:
        if self.kind == "layers":
            raise ValueError("layers cannot be narrowed; set the field to false to forbid it")
        if not isinstance(choices, list | tuple) or not choices:
            raise ValueError(f"'choices' must be a non-empty list; came {_short(choices)}")
        members = tuple(self.canonical(choice) for choice in choices)
        for member in members:
            fine = member in (self.choices or ()) if self.kind == "subset" else self._is_member(member)
            if not fine:
                raise ValueError(f"{_short(member)} is outside the allowed range: {self.allowed}")
        order = self.choices if self.kind in ("subset", "choice") and self.choices else None
        ordered = tuple(sorted(set(members), key=order.index if order else None))
        return replace(self, choices=ordered)

    def _bound(self, value: Any) -> float:
        number = self.canonical(value)
        if not self._is_member(number):
            raise ValueError(f"{_short(value)} is outside the allowed range: {self.allowed}")
        return float(number)


def _range(kind: Kind, low: float, high: float, about: str, *, nullable: bool = False) -> FieldRange:
    return FieldRange(kind, about, low=low, high=high, nullable=nullable)


_FIELDS: Final[dict[str, FieldRange]] = {
    "learning_rate": _range("number", 1e-6, 1e-2, "peak learning rate of the adapter"),
    "min_learning_rate": _range("number", 0, 1e-2, "where the schedule ends; at most learning_rate"),
    "lr_schedule": FieldRange("choice", "shape of the decay", choices=("cosine", "linear", "constant")),
    "lr_warmup_fraction": _range("number", 0, 0.5, "part of the run that warms up"),
    "lora_rank": _range("whole", 1, 256, "rank of the low-rank update"),
    "lora_alpha": _range("whole", 1, 512, "the update is scaled by alpha / rank"),
    "lora_dropout": _range("number", 0, 0.5, "dropout in front of the low-rank update"),
    "lora_target_modules": FieldRange("subset", "projections that get an adapter", choices=PROJECTIONS),
    "lora_layers": FieldRange("layers", "decoder layers that get an adapter; null is all", nullable=True),
    "use_rslora": FieldRange("flag", "scale by alpha / sqrt(rank) instead"),
    "epochs": _range("number", 0.25, 10, "passes over the rows; null lets max_steps decide", nullable=True),
    "max_steps": _range("whole", 1, 1_000_000, "optimizer steps where epochs is null"),
    "global_batch_size": _range("whole", 1, 256, "rows an optimizer step; a multiple of micro_batch_size"),
    "micro_batch_size": _range("whole", 1, 256, "rows laid side by side at once"),
    "weight_decay": _range("number", 0, 0.3, "decay of the adapter's weights"),
    "max_grad_norm": _range("number", 0, 10, "clip the gradient's norm to this; 0 is off"),
    "packing": FieldRange("flag", "lay rows end to end instead of padding them"),
}


@dataclass(frozen=True)
class PatchSpace:
    """The fields that a patch may set, each with its range. A workspace may narrow it, never widen it."""

    ranges: Mapping[str, FieldRange]

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranges", MappingProxyType(dict(self.ranges)))

    def __hash__(self) -> int:
        return hash(tuple(self.ranges.items()))

    def __contains__(self, field: object) -> bool:
        return field in self.ranges

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any] | None) -> PatchSpace:
        """Return the default space narrowed by untrusted data, as a workspace writes it.

        Each key is a field, each value `{min: ..., max: ...}`, `{choices: [...]}`, `false` to
        forbid the field or `true` to leave it as it is.

        Raises:
            PatchError: names every entry that is malformed or would widen the space.
        """
        if data is None:
            return DEFAULT_SPACE
        if not isinstance(data, Mapping):
            raise PatchError(f"patch_space came as {_short(data)}; it is a mapping of fields to rules")
        ranges, problems = dict(_FIELDS), []
        for field, rule in data.items():
            if field not in _FIELDS:
                problems.append(f"{_short(field)}: not a patchable field; allowed: {sorted(_FIELDS)}")
            elif rule is False:
                del ranges[field]
            elif isinstance(rule, Mapping):
                try:
                    ranges[field] = _FIELDS[field].narrowed(rule)
                except ValueError as err:
                    problems.append(f"{field}: {err}")
            elif rule is not True:
                problems.append(f"{field}: came {_short(rule)}; give min and max, choices, or false")
        if not ranges:
            problems.append("every field is forbidden; leave at least one")
        if problems:
            raise PatchError("patch_space: " + "; ".join(problems))
        return cls(ranges)

    def canonical(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return values in canonical form; unknown fields stay as they are."""
        return {
            field: self.ranges[field].canonical(value) if field in self.ranges else value
            for field, value in values.items()
        }

    def problems(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """Return one sentence per field of values (in canonical form) that this space refuses."""
        found = []
        for field, value in values.items():
            if field not in self.ranges:
                found.append(f"{_short(field)}: may not be patched; allowed fields: {sorted(self.ranges)}")
            elif (problem := self.ranges[field].problem(value)) is not None:
                found.append(f"{field}: {problem}")
        return tuple(found)

    def describe(self) -> str:
        """Return one line per field: its range and what it is, for planners and for the docs."""
        return "\n".join(f"{name}: {rule.allowed}; {rule.about}" for name, rule in self.ranges.items())


DEFAULT_SPACE: Final = PatchSpace(_FIELDS)


def _as_number(value: Any, *, whole: bool) -> Any:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    if whole and isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    if not whole and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        return float(value)
    return value


def _short(value: Any) -> str:
    """Return value's repr, cut: what came may be of any size."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return "a whole number of more than 128 bits"
    if isinstance(value, list | tuple) and len(value) > 16:
        value = [*value[:16], "..."]
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
