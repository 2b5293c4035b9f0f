"""Converts a model to Megatron and back and prints, as JSON, what came of its logits."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any


def main(hf_model: str, work: str) -> None:
    """Print the summary and the gaps to the original's logits."""
    import torch
    from transformers import AutoModelForCausalLM

    from tools.convert import HFToMegatron, build_provider, load_bridge

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(probe.getsockname()[1])
    summary = HFToMegatron(hf_model, Path(work, "mcore"), torch_dtype="float32").run()
    ids = torch.arange(240).reshape(2, 120) % 300
    wanted = _logits(AutoModelForCausalLM.from_pretrained(hf_model, dtype=torch.float32), ids)
    bridge = load_bridge(hf_model, "float32")
    provider, _ = build_provider(bridge, load_weights=True)
    fresh = provider.provide_distributed_model(wrap_with_ddp=False, use_cpu_initialization=True)
    gaps = {"megatron": _gap(wanted, _megatron_logits(fresh[0], ids))}
    if summary["position_embedding_type"] != "yarn":
        # What this bridge writes down about a model leaves the YARN fields out.
        fresh = bridge.load_megatron_model(str(Path(work, "mcore")), wrap_with_ddp=False)
        gaps["from_disk"] = _gap(wanted, _megatron_logits(fresh[0], ids))
    bridge.save_hf_pretrained(fresh, str(Path(work, "back")), show_progress=False)
    back = AutoModelForCausalLM.from_pretrained(Path(work, "back"), dtype=torch.float32)
    gaps["back"] = _gap(wanted, _logits(back, ids))
    sys.stdout.write("\n" + json.dumps({**summary, **gaps, "size": float(wanted.abs().max())}) + "\n")


def _logits(model: Any, ids: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(ids).logits


def _megatron_logits(model: Any, ids: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(ids, torch.arange(ids.shape[1]).expand(ids.shape[0], -1), None)


def _gap(one: Any, other: Any) -> float:
    return float((one - other).abs().max())


if __name__ == "__main__":
    main(*sys.argv[1:])
