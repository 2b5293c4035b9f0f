"""The recipe: all that defines one LoRA fine-tuning run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

from tools.errors import RecipeError
from tools.files import digest_json, write_text_atomic
from tools.recipe_checks import (
    as_number,
    check_combinations,
    check_paths,
    check_ranges,
    check_types,
    field_kinds,
)
from tools.yaml_text import dump_yaml, parse_yaml

MODE_SMOKE: Final = "smoke"
MODE_FULL: Final = "full"
Mode = Literal["smoke", "full"]
Quantization = Literal["none", "nf4"]


_CONTAINERS: Final = {"nemo": "nemo-train", "unsloth": "ps-train"}
# Megatron fuses q, k and v into one projection, and gate with up.
_NEMO_TARGETS: Final = {
    "q_proj": "linear_qkv",
    "k_proj": "linear_qkv",
    "v_proj": "linear_qkv",
    "o_proj": "linear_proj",
    "gate_proj": "linear_fc1",
    "up_proj": "linear_fc1",
    "down_proj": "linear_fc2",
}


class _FrozenDict(dict[str, str]):
    """A dict of strings that hashes and refuses change, so that a recipe can be a key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self.items())))

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a recipe is frozen; build a new one with dataclasses.replace")

    __setitem__ = __delitem__ = clear = pop = popitem = setdefault = update = _refuse
    __ior__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return (_FrozenDict, (dict(self),))


@dataclass(frozen=True)
class TrainRecipe:
    """A LoRA supervised fine-tuning run, the same record for every lane.

    Immutable and hashable. `to_yaml` and `from_yaml` round-trip it; `validate` looks at the
    values alone; `preflight` also looks at the disk. Paths may be relative: `resolve` fixes
    them to a workspace.

    Source: fieldkit.training.TrainRecipe; the fields from `epochs` on are this project's.
    """

    base_model: str
    """A Hub id, a folder in Hugging Face layout, a .gguf file, or a model known to `tools.models`."""
    dataset_jsonl: str
    """Training rows, one JSON object with `messages` a line."""
    output_dir: str
    """Root of the run folders `runs-smoke/` and `runs-full/` and of what is merged from them."""
    backend: Literal["local", "nemo", "unsloth", "ray"] = "local"
    """The lane that runs it."""

    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    lora_target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Names as in Hugging Face models; `lora_target_modules_for_backend` translates."""

    seq_length: int = 4096
    """Longest row in tokens; a longer one is an error, never cut."""
    micro_batch_size: int = 2
    global_batch_size: int = 16
    """Rows an optimizer step, over gradient accumulation."""

    learning_rate: float = 1e-4
    min_learning_rate: float = 0.0
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    lr_warmup_fraction: float = 0.05

    max_steps: int = 625
    """Optimizer steps of a full run, unless `epochs` is given."""
    save_interval: int = 50
    """Steps between checkpoints."""
    most_recent_k: int = 3
    """Checkpoints kept besides the best; -1 keeps all."""
    smoke_steps: int = 10

    container: str | None = None
    torch_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Precision of the frozen base; adapters are always trained in float32."""
    seed: int = 42
    extra_env: Mapping[str, str] = field(default_factory=dict)
    """Environment of the container lanes' trainer; the local lane refuses it."""
    notes: str | None = None

    epochs: float | None = None
    """Passes over the data; takes the place of `max_steps` when given."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """Clip the norm of an adapter's whole gradient to this; 0 turns clipping off."""
    packing: bool = True
    """Lay rows end to end with attention inside each row alone. The local lane always does: both
    settings give the same numbers there; the container lanes pad where this is False."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank (arXiv:2312.03732)."""
    use_dora: bool = False
    lora_layers: tuple[int, ...] | None = None
    """Decoder layers that get an adapter, counted from 0; None is all of them."""
    system_prompt_file: str | None = None
    """Text put before every conversation that has no system turn, in training and when served."""
    eval_interval: int | None = None
    """Steps between mid-run evaluations; None runs none."""
    early_stop_patience: int | None = None
    """Stop after this many mid-run evaluations without a better score; None never stops early."""
    gradient_checkpointing: bool = False
    """Local lane: compute each layer a second time in the backward pass instead of keeping what it
    left behind. The numbers are the same; a step takes about a third longer and far less memory."""
    quantization: Quantization = "none"
    """Local lane: how the frozen base is held while adapters are trained and scored. `nf4` is 4 bits
    a weight (QLoRA, arXiv:2305.14314; the extra `quant`); what is merged is the base as published."""

    def __post_init__(self) -> None:
        # Lists become tuples and mappings freeze, so that equal recipes are equal keys.
        for name in ("lora_target_modules", "lora_layers"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        if isinstance(self.extra_env, Mapping) and not isinstance(self.extra_env, _FrozenDict):
            object.__setattr__(self, "extra_env", _FrozenDict(self.extra_env))

    def validate(self) -> None:
        """Check every value and combination without touching the disk.

        Raises:
            RecipeError: names the first field that is wrong, what came and what is allowed.
        """
        check_types(self)
        check_ranges(self)
        check_combinations(self)

    def preflight(self) -> None:
        """Validate, then check the paths: the rows exist, the output's parent exists and is writable.

        Raises:
            RecipeError: a path is missing or of the wrong kind.
        """
        self.validate()
        check_paths(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values (tuples as lists) in the order of the fields."""
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        plain["lora_target_modules"] = list(self.lora_target_modules)
        plain["lora_layers"] = None if self.lora_layers is None else list(self.lora_layers)
        plain["extra_env"] = dict(self.extra_env)
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainRecipe:
        """Build a recipe from plain values.

        A number written as `1e-4`, which YAML 1.1 reads as a string, counts as a number.

        Raises:
            RecipeError: an unknown or missing key, or a value of the wrong type.
        """
        names = [item.name for item in fields(cls)]
        unknown = sorted(str(key) for key in data if key not in names)
        if unknown:
            raise RecipeError(f"unknown recipe field(s): {unknown}; valid fields: {sorted(names)}")
        missing = [name for name in ("base_model", "dataset_jsonl", "output_dir") if name not in data]
        if missing:
            raise RecipeError(f"missing recipe field(s): {missing}; every recipe needs them")
        kinds = field_kinds()
        recipe = cls(**{key: as_number(value, kinds[key]) for key, value in data.items()})
        check_types(recipe)
        return recipe

    def to_yaml(self, path: str | Path) -> Path:
        """Write the recipe to path, whole or not at all, and return the resolved path."""
        return write_text_atomic(Path(path).resolve(), dump_yaml(self.to_dict()))

    @classmethod
    def from_yaml(cls, path: str | Path) -> TrainRecipe:
        """Read a recipe from a YAML or JSON file.

        Raises:
            RecipeError: the file is missing, is no YAML, holds a duplicate key or is no mapping.
        """
        try:
            data = parse_yaml(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as err:
            raise RecipeError(f"no recipe at {path}; write one or name another file") from err
        except (OSError, ValueError) as err:
            raise RecipeError(f"{path} cannot be read as YAML: {err}") from err
        if not isinstance(data, dict):
            raise RecipeError(f"{path} holds a {type(data).__name__}; a recipe is a mapping of fields")
        return cls.from_dict(data)

    def replace(self, **changes: Any) -> TrainRecipe:
        """Return a recipe with these fields changed."""
        return dataclasses.replace(self, **changes)

    def resolve(self, root: str | Path) -> TrainRecipe:
        """Return the recipe with its relative paths fixed to root (base_model only if it exists there)."""
        base = Path(root).resolve()
        changes: dict[str, Any] = {
            "dataset_jsonl": str(base / Path(self.dataset_jsonl).expanduser()),
            "output_dir": str(base / Path(self.output_dir).expanduser()),
        }
        if self.system_prompt_file is not None:
            changes["system_prompt_file"] = str(base / Path(self.system_prompt_file).expanduser())
        local_base = base / Path(self.base_model).expanduser()
        if local_base.exists():
            changes["base_model"] = str(local_base)
        return self.replace(**changes)

    @property
    def digest(self) -> str:
        """SHA-256 over all fields but those which change no weight."""
        plain = self.to_dict()
        for name in ("notes", "output_dir", "gradient_checkpointing"):
            del plain[name]
        # `epochs: 2` and `epochs: 2.0` are equal recipes, but not equal JSON.
        # A field that came later: recipes that leave it alone keep the digest they had.
        if self.quantization == "none":
            del plain["quantization"]
        whole = {name: int(value) for name, value in plain.items() if _is_whole_float(value)}
        return digest_json({**plain, **whole})

    def resolved_container(self) -> str:
        """Return the container's name: the field, else the lane's default.

        Raises:
            RecipeError: the lane runs in no container.
        """
        if self.container:
            return self.container
        if self.backend not in _CONTAINERS:
            raise RecipeError(f"backend {self.backend!r} runs in no container; {sorted(_CONTAINERS)} do")
        return _CONTAINERS[self.backend]

    def lora_target_modules_for_backend(self) -> tuple[str, ...]:
        """Return the target names in the lane's own vocabulary, in a fixed order.

        Raises:
            RecipeError: backend is nemo and no target has a Megatron counterpart.
        """
        if self.backend != "nemo":
            return self.lora_target_modules
        wanted = {_NEMO_TARGETS[name] for name in self.lora_target_modules if name in _NEMO_TARGETS}
        if not wanted:
            raise RecipeError(
                f"lora_target_modules {self.lora_target_modules} has no Megatron counterpart; "
                f"allowed on nemo: {sorted(_NEMO_TARGETS)}"
            )
        return tuple(dict.fromkeys(name for name in _NEMO_TARGETS.values() if name in wanted))

    def run_dir(self, mode: Mode = MODE_FULL) -> Path:
        """Return the folder of this recipe's runs in a mode: `<output_dir>/runs-<mode>`."""
        if mode not in (MODE_SMOKE, MODE_FULL):
            raise RecipeError(f"mode is {mode!r}; allowed: 'smoke', 'full'")
        return Path(self.output_dir).resolve() / f"runs-{mode}"

    def lora_scale(self) -> float:
        """Return what the low-rank product is multiplied by."""
        return self.lora_alpha / (math.sqrt(self.lora_rank) if self.use_rslora else self.lora_rank)

    def total_steps(self, n_rows: int, mode: Mode = MODE_FULL) -> int:
        """Return the optimizer steps of a run over n_rows training rows."""
        steps = self.max_steps
        if self.epochs is not None:
            steps = max(1, round(self.epochs * math.ceil(n_rows / self.global_batch_size)))
        return min(self.smoke_steps, steps) if mode == MODE_SMOKE else steps


def _is_whole_float(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()
