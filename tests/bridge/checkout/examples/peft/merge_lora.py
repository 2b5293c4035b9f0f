"""Merges a LoRA checkpoint into its base, with the arguments and the output of Megatron-Bridge 0.4.

A checkout of the bridge brings a script of this name; packages do not. This one calls the same
library functions on the same files.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

LORA_FIELDS = ("target_modules", "dim", "alpha", "dropout", "dropout_position")


def main() -> None:
    """Write the merged model to `<output>/iter_0000000`."""
    take = argparse.ArgumentParser()
    for name in ("--lora-checkpoint", "--hf-model-path", "--output"):
        take.add_argument(name, required=True)
    got = take.parse_args()
    from megatron.bridge.training.model_load_save import save_megatron_model

    merged = merge(load_adapted(got.hf_model_path, Path(got.lora_checkpoint)))
    Path(got.output).mkdir(parents=True)
    save_megatron_model([merged], got.output)


def load_adapted(hf_model: str, checkpoint: Path) -> Any:
    """Return the base model that the checkpoint's run_config.yaml names, with its adapter beside it."""
    from megatron.bridge import AutoBridge
    from megatron.bridge.peft.lora import LoRA
    from megatron.bridge.training.checkpointing import (
        _generate_model_state_dict,
        apply_peft_adapter_filter_to_state_dict,
    )
    from megatron.bridge.training.utils.checkpoint_utils import read_run_config
    from megatron.core import dist_checkpointing

    run_config = read_run_config(str(checkpoint / "run_config.yaml"))
    bridge = AutoBridge.from_hf_pretrained(hf_model)
    bridge.to_megatron_provider(load_weights=False).initialize_model_parallel(seed=0)
    base = bridge.load_megatron_model(run_config["checkpoint"]["pretrained_checkpoint"], wrap_with_ddp=False)
    lora = LoRA(**{name: run_config["peft"][name] for name in LORA_FIELDS})
    model = lora(base, training=False)
    wanted = apply_peft_adapter_filter_to_state_dict(_generate_model_state_dict(model, {}), lora)
    loaded = dist_checkpointing.load(wanted, str(checkpoint))["model"]
    adapters = {name for name in model[0].state_dict() if ".adapter." in name and "_extra_state" not in name}
    assert adapters, "no adapter was made"
    assert adapters <= loaded.keys(), adapters - loaded.keys()
    model[0].load_state_dict(loaded, strict=False)
    return model[0].eval()


def merge(model: Any) -> Any:
    """Return the model with its adapter added to its weights."""
    from megatron.bridge.peft.lora import LoRAMerge
    from megatron.bridge.peft.lora_layers import LoRALinear

    merged = LoRAMerge()(model, training=False)
    for name, module in list(merged.named_modules()):
        if isinstance(module, LoRALinear):
            parent, _, leaf = name.rpartition(".")
            setattr(merged.get_submodule(parent), leaf, module.to_wrap)
    return merged


if __name__ == "__main__":
    main()
