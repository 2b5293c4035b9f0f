"""Prints how far an export is from its base, and from base and adapter side by side in Megatron."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "checkout" / "examples" / "peft"))


def main(base: str, checkpoint: str, export: str) -> None:
    """Print the gaps as one line of JSON."""
    import torch
    from merge_lora import load_adapted
    from transformers import AutoModelForCausalLM

    ids = torch.arange(120).reshape(2, 60) % 300
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32)(ids).logits
        positions = torch.arange(ids.shape[1]).expand(ids.shape[0], -1)
        adapted = load_adapted(base, Path(checkpoint))(ids, positions, None)
    gaps = {
        "adapter_vs_merged": float((adapted - merged).abs().max()),
        "base_vs_merged": float((plain - merged).abs().max()),
    }
    sys.stdout.write(json.dumps(gaps) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
