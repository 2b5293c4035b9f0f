"""Merging an adapter in a process of its own: `python -P -m tools.merge_worker SPEC.json`.

A spec says `merge`: write base and adapter as one bfloat16 model; or `prove`: encode and
decode with the export's tokenizer, which has to agree with the base model's.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from tools.errors import BakehouseError, MergeExportError

__all__ = ["as_folder", "load_model", "main", "merge_adapter", "prove_tokenizer"]

_LOG = logging.getLogger(__name__)

PROBES: Final = (
    "two  spaces, a tab\tand a line\nbreak\n\n",
    " leading and trailing ",
    "0123456789 3.14 -42 1e-4 2026-11-20",
    "fly to 日本語, Ελλάδα, हिन्दी, العربية, Привет",
    "naïve café ü ß é 🙂",
    '{"cmd": "takeoff", "alt": 10}',
)


def main(argv: list[str]) -> int:
    """Carry out the spec in argv[0]; 0 when done, 1 with the reason on stderr."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    spec = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    try:
        if spec["action"] == "merge":
            merge_adapter(spec["base_model"], Path(spec["adapter"]), Path(spec["out"]))
        else:
            prove_tokenizer(spec["base_model"], Path(spec["out"]))
    except (BakehouseError, OSError, ValueError) as err:
        _LOG.error("%s: %s", type(err).__name__, err)
        return 1
    return 0


def merge_adapter(base_model: str, adapter: Path, out: Path) -> None:
    """Write base_model with adapter merged into it to out, in bfloat16, with the tokenizer.

    The sum is made in float32 and rounded once.
    """
    import torch
    from peft import PeftModel

    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".base-") as scratch:
        folder = as_folder(base_model, Path(scratch))
        model, tokenizer = load_model(folder)
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
        merged.to(torch.bfloat16).save_pretrained(out)
        tokenizer.save_pretrained(out)
    _LOG.info("merged %s into %s: %s", adapter, base_model, out)


def prove_tokenizer(base_model: str, out: Path) -> None:
    """Check that out's tokenizer gives the ids and the text of the base model's own.

    Raises:
        MergeExportError: they differ; the message names the text.
    """
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".base-") as scratch:
        source = AutoTokenizer.from_pretrained(as_folder(base_model, Path(scratch)))
        export = AutoTokenizer.from_pretrained(out)
    for text in PROBES:
        wanted, got = source(text)["input_ids"], export(text)["input_ids"]
        if wanted != got or source.decode(wanted) != export.decode(got):
            raise MergeExportError(
                f"export: the tokenizer of {out} is not that of {base_model}: {text!r} becomes "
                f"{export.decode(got)!r}; restore the base model's tokenizer files there"
            )


def load_model(folder: str) -> tuple[Any, Any]:
    """Return a folder's model, in float32, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def as_folder(base_model: str, scratch: Path) -> str:
    """Return what transformers loads base_model from; a .gguf file is unpacked into scratch."""
    if not base_model.endswith(".gguf"):
        return base_model
    from tools.engine.base import save_as_folder

    save_as_folder(base_model, scratch, dtype="float32")
    return str(scratch)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
