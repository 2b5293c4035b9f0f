"""Measuring an export's parity in a process of its own: `python -P -m tools.parity_worker SPEC.json`."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tools.chat import Rendered, render
from tools.dataset import load_dataset
from tools.errors import BakehouseError, MergeExportError
from tools.files import write_json_atomic
from tools.merge_worker import as_folder, load_model

__all__ = ["main", "measure_parity"]

_LOG = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """Carry out the spec in argv[0]; 0 when the result is written, 1 with the reason on stderr."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    spec = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    try:
        write_json_atomic(spec["result"], measure_parity(spec))
    except (BakehouseError, OSError, ValueError) as err:
        _LOG.error("%s: %s", type(err).__name__, err)
        return 1
    return 0


def measure_parity(spec: Mapping[str, Any]) -> dict[str, float]:
    """Return the fields of `tools.parity.Parity`.

    Raises:
        MergeExportError: the export's tokenizer encodes a row otherwise than the base model's.
    """
    import torch
    from peft import PeftModel

    with tempfile.TemporaryDirectory(dir=Path(spec["export"]).parent, prefix=".base-") as scratch:
        model, tokenizer = load_model(as_folder(spec["base_model"], Path(scratch)))
        rendered = _render(spec, tokenizer)
        base = _logits(model, rendered)
        adapted_model = PeftModel.from_pretrained(model, spec["adapter"]).eval()
        adapted = _logits(adapted_model, rendered)
        merged_model = adapted_model.merge_and_unload(safe_merge=True)
        # Rounded as the export's are, then computed with in float32. Only the parameters: the
        # rope's frequencies are no part of an export and stay as they are.
        for parameter in merged_model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16).float()
        merged = _logits(merged_model, rendered)
    del model, adapted_model, merged_model
    exported_model, exported_tokenizer = load_model(spec["export"])
    for row, again in zip(rendered, _render(spec, exported_tokenizer), strict=True):
        if row.input_ids != again.input_ids:
            raise MergeExportError(
                f"the export's tokenizer is not the base model's: {row.text[:200]!r} has other tokens; "
                "restore the base model's tokenizer files there"
            )
    exported = _logits(exported_model, rendered)
    return {
        "n_rows": len(rendered),
        "n_tokens": len(adapted),
        "adapter_effect": _gap(base, adapted),
        "rounding": _gap(adapted, merged),
        "export": _gap(merged, exported),
        "same_choice": float((adapted.argmax(-1) == exported.argmax(-1)).double().mean()),
    }


def _render(spec: Mapping[str, Any], tokenizer: Any) -> list[Rendered]:
    prompt = spec["system_prompt_file"]
    system = None if prompt is None else Path(prompt).read_text(encoding="utf-8").strip() or None
    rows = islice(load_dataset(spec["rows"]).rows, int(spec["n_rows"]))
    return [render(tokenizer, row.messages, system_prompt=system) for row in rows]


def _logits(model: Any, rendered: Sequence[Rendered]) -> Any:
    """Return the logits that predict the learned tokens, one row a token."""
    import torch

    found: list[Any] = []
    model.eval()
    for row in rendered:
        places = [i - 1 for i, learned in enumerate(row.loss_mask) if learned and i > 0]
        with torch.no_grad():
            found.append(model(torch.tensor([row.input_ids])).logits[0, places].float())
    return torch.cat(found)


def _gap(one: Any, other: Any) -> float:
    return float((one - other).abs().max() / one.abs().max().clamp_min(1e-6))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
