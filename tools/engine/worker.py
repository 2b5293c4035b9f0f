"""The worker process: one spec in, one result file out."""

from __future__ import annotations

import dataclasses
import logging
import signal
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tools.engine.spec import EvaluateSpec, TrainSpec, read_spec
from tools.errors import BakehouseError
from tools.files import write_json_atomic
from tools.recipe import Quantization

if TYPE_CHECKING:
    from tools.engine.base import LoadedBase

__all__ = ["EXIT_FAILED", "EXIT_STOPPED", "BaseSource", "StopFlag", "run_worker"]

logger = logging.getLogger(__name__)

EXIT_FAILED: Final = 1
EXIT_STOPPED: Final = 128 + signal.SIGTERM

BaseSource = Callable[[str, str, Quantization], "LoadedBase"]
"""Returns the base of a name in a precision and a quantization; its load_s is what the caller had to wait."""


class StopFlag:
    """Set by SIGTERM; the work looks at it between passes, where it can save and leave."""

    def __init__(self) -> None:
        self.is_set = False

    @classmethod
    def on_signal(cls) -> StopFlag:
        """Return a flag that SIGTERM sets from now on."""
        flag = cls()
        signal.signal(signal.SIGTERM, flag.set)
        return flag

    def __call__(self) -> bool:
        return self.is_set

    def set(self, _signal: int, _frame: types.FrameType | None) -> None:
        self.is_set = True
        logger.warning("asked to stop: saving")


def run_worker(
    spec_path: str | Path, *, stop: StopFlag | None = None, base_source: BaseSource | None = None
) -> int:
    """Do what a spec says and write its result, whole or not at all.

    Args:
        stop: Asked between passes; None listens for SIGTERM.
        base_source: Where the base comes from; None loads it.
    Returns:
        0 when every member or adapter has a result; EXIT_STOPPED after SIGTERM, with what was
        done in the result; EXIT_FAILED when nothing could be done, the reason on stderr.
    """
    stop, began = StopFlag.on_signal() if stop is None else stop, time.perf_counter()
    try:
        spec = read_spec(spec_path)
        source = base_source or _load
        result = _train(spec, stop, source) if isinstance(spec, TrainSpec) else _evaluate(spec, stop, source)
    except BakehouseError as err:
        logger.error("%s: %s", type(err).__name__, err)
        return EXIT_STOPPED if stop.is_set else EXIT_FAILED
    write_json_atomic(spec.result_path, dataclasses.asdict(_with_usage(result, began)))
    return EXIT_STOPPED if stop.is_set else 0


def _train(spec: TrainSpec, stop: StopFlag, base_source: BaseSource) -> Any:
    from tools.engine.memory import peak_memory_bytes
    from tools.engine.results import TrainOutcome
    from tools.engine.stack_room import device_hardware, stack_tokens_for
    from tools.engine.trainer import train_stack

    _use_threads(spec.threads)
    recipe = spec.members[0].recipe
    base = base_source(spec.base_model, recipe.torch_dtype, recipe.quantization)
    stack_tokens = spec.stack_tokens
    if stack_tokens is None:
        recipes = [member.recipe for member in spec.members]
        stack_tokens = stack_tokens_for(base, recipes, device_hardware(base.device))
    members = train_stack(
        base,
        spec.members,
        mode=spec.mode,
        mid_eval=spec.mid_eval,
        stack_tokens=stack_tokens,
        search=spec.search,
        should_stop=stop,
    )
    saved = sum(member.total_steps - member.steps for member in members if member.status == "halted")
    return TrainOutcome(members, base.load_s, peak_memory_bytes(base.device), saved)


def _evaluate(spec: EvaluateSpec, stop: StopFlag, base_source: BaseSource) -> Any:
    from tools.engine.evaluate import evaluate_adapters
    from tools.engine.memory import peak_memory_bytes
    from tools.engine.results import EvaluateOutcome

    _use_threads(spec.threads)
    base = base_source(spec.base_model, spec.torch_dtype, spec.quantization)
    adapters = evaluate_adapters(base, spec, should_stop=stop)
    return EvaluateOutcome(adapters, base.load_s, peak_memory_bytes(base.device))


def _with_usage(result: Any, began: float) -> Any:
    """Return the result with the time since began and the GPUs of this process."""
    from tools.engine.base import default_device
    from tools.engine.results import WorkerUsage

    usage = WorkerUsage(wall_s=time.perf_counter() - began, gpus=int(default_device().type != "cpu"))
    return dataclasses.replace(result, usage=usage)


def _use_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def _load(name: str, dtype: str, quantization: Quantization) -> LoadedBase:
    from tools.engine.base import load_base

    return load_base(name, dtype, quantization=quantization)
