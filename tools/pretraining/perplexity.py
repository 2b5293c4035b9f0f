"""How well a model predicts token rows: `python -P -m tools.pretraining.perplexity SPEC.json`."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.child import Child, watch
from tools.errors import BakehouseError, TrainError
from tools.files import write_json_atomic
from tools.lanes.local import explain_end
from tools.token_rows import TokenRow, load_token_rows

if TYPE_CHECKING:
    from tools.engine.base import LoadedBase

__all__ = ["Perplexity", "measure_perplexity", "perplexity_of"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Perplexity:
    """The mean loss over tokens, and its exponential."""

    loss: float
    perplexity: float
    n_tokens: int


def perplexity_of(model: str, rows: Path, *, dtype: str, work: Path) -> Perplexity:
    """Measure a model in a process of its own, so that its memory is free again.

    Args:
        model: A folder, a .gguf file or a Hub id.
        rows: A file of token rows.
        work: A path whose neighbours take the spec, the result and the log.
    Raises:
        TrainError: the process failed; the message carries its last lines.
    """
    spec_path, result, log = (work.with_name(f"{work.name}.{end}") for end in ("spec.json", "json", "log"))
    result.unlink(missing_ok=True)
    write_json_atomic(spec_path, {"model": model, "rows": str(rows), "dtype": dtype, "result": str(result)})
    argv = (sys.executable, "-P", "-m", "tools.pretraining.perplexity", str(spec_path))
    with Child.start(argv, log_path=log) as child:
        explain_end(watch(child, interval_s=0), "measuring the perplexity", log)
    try:
        return Perplexity(**json.loads(result.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as err:
        raise TrainError(f"no perplexity at {result}: {err}") from err


def measure_perplexity(base: LoadedBase, rows: Sequence[TokenRow]) -> Perplexity:
    """Return how well a loaded model predicts rows, each row's first token aside.

    Raises:
        TrainError: the loss is not finite: the model's weights are broken.
    """
    from tools.engine.batches import EncodedRow
    from tools.engine.row_loss import row_losses

    encoded = [EncodedRow(row.id, row.input_ids, (False, *[True] * (len(row.input_ids) - 1))) for row in rows]
    losses = row_losses(base, encoded)
    total, n_tokens = sum(loss.total for loss in losses), sum(loss.n_tokens for loss in losses)
    mean = total / n_tokens
    if not math.isfinite(mean):
        raise TrainError(f"the loss of {base.name} on {n_tokens} tokens is {mean}; its weights are broken")
    return Perplexity(mean, math.exp(min(mean, 700.0)), n_tokens)


def main(argv: list[str]) -> int:
    """Carry out the spec in argv[0]; 0 when the result is written, 1 with the reason on stderr."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    spec: dict[str, Any] = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    try:
        from tools.engine.base import load_base

        base = load_base(spec["model"], spec["dtype"])
        rows = load_token_rows(spec["rows"], vocab_size=base.head_V_D.shape[0]).rows
        write_json_atomic(spec["result"], asdict(measure_perplexity(base, rows)))
    except (BakehouseError, OSError, ValueError) as err:
        _LOG.error("%s: %s", type(err).__name__, err)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
