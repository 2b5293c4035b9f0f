"""Parity of an export: adapter, merged model and standardized export answer real rows alike."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.child import Child, termination_as_exit, watch
from tools.errors import MergeExportError, TrainError
from tools.extras import require_extra
from tools.files import write_json_atomic
from tools.lanes.local import explain_end

__all__ = ["Parity", "check_parity"]


@dataclass(frozen=True)
class Parity:
    """How far logits lie apart, as shares of the largest logit, at the learned tokens of real rows."""

    n_rows: int
    n_tokens: int
    adapter_effect: float
    """Base against base with adapter: what the training changed."""
    rounding: float
    """Base with adapter, in float32, against the merged weights rounded to bfloat16."""
    export: float
    """Merged weights in memory against the export on disk: nothing but noise may be here."""
    same_choice: float
    """Share of tokens for which adapter and export prefer the same next token."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, a sentence each; empty where the export is right."""
        found: list[str] = []
        if not self.export <= EXPORT_LIMIT:
            found.append(
                f"the export's logits are off by {self.export:.2g} of the largest from those of the merged "
                f"weights; at most {EXPORT_LIMIT:g} is noise. Its files or its config were changed on the way"
            )
        if not self.rounding <= ROUNDING_LIMIT:
            found.append(
                f"merging moved the logits by {self.rounding:.2g} of the largest; bfloat16 explains "
                f"{ROUNDING_LIMIT:g}. The adapter may not be what was merged"
            )
        if not self.same_choice >= CHOICE_LIMIT:
            found.append(
                f"adapter and export prefer the same token in {self.same_choice:.1%} of the places only; "
                f"at least {CHOICE_LIMIT:.0%} is wanted"
            )
        return tuple(found)


EXPORT_LIMIT = 1e-4
ROUNDING_LIMIT = 0.05
CHOICE_LIMIT = 0.9


def check_parity(
    base_model: str,
    adapter: str | Path,
    export: str | Path,
    rows: str | Path,
    *,
    n_rows: int = 8,
    system_prompt_file: str | None = None,
    timeout_s: float | None = None,
) -> Parity:
    """Compare the three on the first rows of a dataset, in a process of its own.

    Args:
        base_model: A folder in Hugging Face layout, a .gguf file or a Hub id.
        adapter: A peft adapter's folder.
        export: The merged and standardized model.
        rows: JSONL with `messages`.
        n_rows: How many rows to compare on.
        system_prompt_file: As in the recipe.
        timeout_s: Wall clock limit.
    Raises:
        MergeExportError: the comparison could not be made, the tokenizers encode a row
            differently, or the adapter is no peft adapter.
    """
    require_extra("train", purpose="the parity check")
    if not (Path(adapter) / "adapter_config.json").is_file():
        raise MergeExportError(
            f"parity: {adapter} is no peft adapter; checkpoints of the nemo lane cannot be compared here"
        )
    if n_rows < 1:
        raise MergeExportError(f"parity: n_rows is {n_rows}; at least one row is needed")
    where = Path(export).absolute()
    spec_path, log_path = (where.with_name(f".{where.name}.parity.{end}") for end in ("json", "log"))
    result_path = where.with_name(f".{where.name}.parity-result.json")
    result_path.unlink(missing_ok=True)
    spec = {
        "base_model": base_model,
        "adapter": str(adapter),
        "export": str(where),
        "rows": str(rows),
        "n_rows": n_rows,
        "system_prompt_file": system_prompt_file,
        "result": str(result_path),
    }
    write_json_atomic(spec_path, spec)
    log_path.unlink(missing_ok=True)
    argv = (sys.executable, "-P", "-m", "tools.parity_worker", str(spec_path))
    try:
        with termination_as_exit(), Child.start(argv, log_path=log_path) as child:
            end = watch(child, interval_s=0, timeout_s=timeout_s)
        explain_end(end, "the parity check", log_path, timeout_s)
        found: dict[str, Any] = json.loads(result_path.read_text(encoding="utf-8"))
        parity = Parity(**found)
    except (TrainError, OSError, ValueError, TypeError) as err:
        raise MergeExportError(f"parity: {err}") from err
    for path in (spec_path, result_path, log_path):
        path.unlink(missing_ok=True)
    return parity
