"""The worker process: one spec in, one result file out."""

from __future__ import annotations

import dataclasses
import logging
import signal
import types
from pathlib import Path
from typing import Any, Final

from tools.engine.spec import EvaluateSpec, TrainSpec, read_spec
from tools.errors import BakehouseError
from tools.files import write_json_atomic

__all__ = ["EXIT_FAILED", "EXIT_STOPPED", "run_worker"]

logger = logging.getLogger(__name__)

EXIT_FAILED: Final = 1
EXIT_STOPPED: Final = 128 + signal.SIGTERM


class _StopFlag:
    """Set by SIGTERM; the work looks at it between passes, where it can save and leave."""

    def __init__(self) -> None:
        self.is_set = False

    def __call__(self) -> bool:
        return self.is_set

    def set(self, _signal: int, _frame: types.FrameType | None) -> None:
        logger.warning("asked to stop: saving")
        self.is_set = True


def run_worker(spec_path: str | Path) -> int:
    """Do what a spec says and write its result, whole or not at all.

    Returns:
        0 when every member or adapter has a result; EXIT_STOPPED after SIGTERM, with what was
        done in the result; EXIT_FAILED when nothing could be done, the reason on stderr.
    """
    stop = _StopFlag()
    signal.signal(signal.SIGTERM, stop.set)
    try:
        spec = read_spec(spec_path)
        result = _train(spec, stop) if isinstance(spec, TrainSpec) else _evaluate(spec, stop)
    except BakehouseError as err:
        logger.error("%s: %s", type(err).__name__, err)
        return EXIT_STOPPED if stop.is_set else EXIT_FAILED
    write_json_atomic(spec.result_path, dataclasses.asdict(result))
    return EXIT_STOPPED if stop.is_set else 0


def _train(spec: TrainSpec, stop: _StopFlag) -> Any:
    from tools.engine.memory import peak_memory_bytes
    from tools.engine.results import TrainOutcome
    from tools.engine.trainer import train_stack

    base = _load(spec.base_model, spec.members[0].recipe.torch_dtype, spec.threads)
    members = train_stack(
        base,
        spec.members,
        mode=spec.mode,
        mid_eval=spec.mid_eval,
        stack_tokens=spec.stack_tokens,
        should_stop=stop,
    )
    return TrainOutcome(members, base.load_s, peak_memory_bytes(base.device))


def _evaluate(spec: EvaluateSpec, stop: _StopFlag) -> Any:
    from tools.engine.evaluate import evaluate_adapters
    from tools.engine.memory import peak_memory_bytes
    from tools.engine.results import EvaluateOutcome

    base = _load(spec.base_model, spec.torch_dtype, spec.threads)
    adapters = evaluate_adapters(base, spec, should_stop=stop)
    return EvaluateOutcome(adapters, base.load_s, peak_memory_bytes(base.device))


def _load(name: str, dtype: str, threads: int | None) -> Any:
    import torch

    from tools.engine.base import load_base

    if threads is not None:
        torch.set_num_threads(threads)
    return load_base(name, dtype)
