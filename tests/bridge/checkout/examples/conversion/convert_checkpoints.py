"""Exports a Megatron checkpoint to Hugging Face layout, with Megatron-Bridge 0.4's arguments."""

from __future__ import annotations

import argparse


def main() -> None:
    """Write the export that the arguments name."""
    take = argparse.ArgumentParser()
    take.add_argument("action", choices=["export"])
    for name in ("--hf-model", "--megatron-path", "--hf-path"):
        take.add_argument(name, required=True)
    got = take.parse_args()
    from megatron.bridge import AutoBridge

    AutoBridge.from_hf_pretrained(got.hf_model).export_ckpt(
        got.megatron_path, got.hf_path, show_progress=False, strict=True
    )


if __name__ == "__main__":
    main()
