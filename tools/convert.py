"""A Hugging Face model as a Megatron-Core checkpoint, with the rope settings that the bridge leaves out."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from tools.errors import ConvertError
from tools.files import locked
from tools.folder_swap import replacing

__all__ = ["YARN_DEFAULTS", "HFToMegatron", "build_provider", "patch_yarn_defaults"]

_LOG = logging.getLogger(__name__)
_DTYPES: Final = ("bfloat16", "float16", "float32")

YARN_DEFAULTS: Final[Mapping[str, float | bool]] = MappingProxyType(
    {
        "yarn_beta_fast": 32.0,
        "yarn_beta_slow": 1.0,
        "yarn_mscale": 1.0,
        "yarn_mscale_all_dim": 0.0,
        "yarn_correction_range_round_to_int": True,
    }
)
"""What Megatron-Core's own YARN embedding takes by default.

Megatron-Bridge 0.4 leaves these None where the model's config does not name them. The first
four then fail as None in the middle of the rope; the last one silently gives other frequencies.
"""


def patch_yarn_defaults(provider: Any) -> list[str]:
    """Set the YARN fields that the bridge left None, and return their names.

    To be called on every provider built from a Hugging Face config, before a model is made
    of it. A second call, and a provider without YARN, change nothing and return `[]`.

    Source: fieldkit.training.patch_yarn_defaults.
    """
    if getattr(provider, "position_embedding_type", None) != "yarn":
        return []
    patched = [name for name in YARN_DEFAULTS if getattr(provider, name, None) is None]
    for name in patched:
        setattr(provider, name, YARN_DEFAULTS[name])
    return patched


@dataclass(frozen=True)
class HFToMegatron:
    """The conversion of a Hugging Face model to a Megatron-Core checkpoint.

    It runs in the NeMo container, where torch and megatron-bridge are.

    Source: fieldkit.training.HFToMegatron.
    """

    hf_model: str | Path
    """A folder in Hugging Face layout or a Hub id; the tokenizer comes from it too."""
    megatron_path: str | Path
    """Folder of the checkpoint. What was there before is replaced by a whole new one, or stays."""
    torch_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    def run(self) -> dict[str, Any]:
        """Convert, and return what was done.

        Returns:
            hf_model, megatron_path, torch_dtype, yarn_patched_fields (a list, empty for a
            model without YARN) and position_embedding_type.
        Raises:
            ConvertError: torch or megatron-bridge is missing, or torch_dtype is none of the
                three. What the bridge itself raises passes through.
        """
        if self.torch_dtype not in _DTYPES:
            raise ConvertError(f"torch_dtype is {self.torch_dtype!r}; allowed: {list(_DTYPES)}")
        bridge = load_bridge(str(self.hf_model), self.torch_dtype)
        provider, patched = build_provider(bridge, load_weights=True)
        target = Path(self.megatron_path).expanduser().absolute()
        with locked(target.with_name(f".{target.name}.lock")), replacing(target):
            self._save(bridge, provider, target)
        return {
            "hf_model": str(self.hf_model),
            "megatron_path": str(self.megatron_path),
            "torch_dtype": self.torch_dtype,
            "yarn_patched_fields": patched,
            "position_embedding_type": getattr(provider, "position_embedding_type", None),
        }

    def _save(self, bridge: Any, provider: Any, target: Path) -> None:
        model = provider.provide_distributed_model(wrap_with_ddp=False, use_cpu_initialization=True)
        target.mkdir(parents=True)
        options: dict[str, Any] = getattr(bridge._model_bridge, "get_hf_tokenizer_kwargs", dict)()
        bridge.save_megatron_model(
            model,
            str(target),
            hf_tokenizer_path=str(self.hf_model),
            hf_tokenizer_kwargs=options,
            low_memory_save=True,
        )


def load_bridge(hf_model: str, torch_dtype: str) -> Any:
    """Return the bridge for a Hugging Face model.

    Raises:
        ConvertError: torch or megatron-bridge is missing.
    """
    try:
        import torch

        bridges = importlib.import_module("megatron.bridge")
    except ImportError as err:
        raise ConvertError(
            f"converting to Megatron needs torch and megatron-bridge ({err}); run it inside the NeMo "
            "container: nvcr.io/nvidia/nemo:26.04, `docker exec nemo-train ...`"
        ) from err
    return bridges.AutoBridge.from_hf_pretrained(hf_model, torch_dtype=getattr(torch, torch_dtype))


def build_provider(bridge: Any, *, load_weights: bool) -> tuple[Any, list[str]]:
    """Return the bridge's provider, its rope as the model's config has it, and the fields patched.

    Megatron-Bridge 0.3 reads a YARN config and then sets the rope back to a plain one.
    """
    provider = bridge.to_megatron_provider(load_weights=load_weights)
    if getattr(provider, "yarn_rotary_scaling_factor", None) is not None:
        if provider.position_embedding_type != "yarn":
            _LOG.warning("the bridge had dropped the model's YARN scaling; it is set again")
        provider.position_embedding_type = "yarn"
    patched = patch_yarn_defaults(provider)
    if hasattr(provider, "finalize"):
        provider.finalize()
    return provider, patched
