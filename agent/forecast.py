"""The forecast: what a recipe will take of this machine, before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass

from tools.engine.pass_size import ADAPTERS_ABREAST
from tools.errors import ModelError
from tools.hardware import Answering, Fit, Hardware, detect, estimate, read_shape
from tools.hardware.fit import longest_row, mean_row
from tools.hardware.pace import last_tokens_per_s, measure_flops, train_s
from tools.recipe import TrainRecipe
from tools.task import Task
from tools.workspace import Workspace

__all__ = ["Forecast", "make_forecast"]


@dataclass(frozen=True)
class Forecast:
    """Memory and time of one trial."""

    fit: Fit
    steps: int
    train_s: float | None
    """None where nothing says how fast this machine is."""
    measured_by: str
    """What the time rests on."""

    def describe(self) -> list[str]:
        """Return lines for a person."""
        gib = self.fit.available_bytes / 2**30
        lines = [f"memory: {self.fit.describe()} of {gib:.1f} GiB that a run may use"]
        if self.train_s is not None:
            lines.append(f"time: about {_spoken(self.train_s)} to train a trial, by {self.measured_by}")
        return lines

    def facts(self) -> dict[str, float | str | None]:
        """Return plain values for a program."""
        return {
            "memory_bytes": self.fit.total_bytes,
            "available_bytes": self.fit.available_bytes,
            "train_s": self.train_s,
            "measured_by": self.measured_by,
        }


def make_forecast(
    workspace: Workspace, task: Task, recipe: TrainRecipe, n_rows: int, *, hardware: Hardware | None = None
) -> Forecast | None:
    """Foretell memory and time; None where the base model is not on this disk yet.

    Args:
        recipe: With its paths resolved.
        hardware: None looks at this machine.
    """
    try:
        shape = read_shape(recipe.base_model)
    except ModelError:
        return None
    machine = detect() if hardware is None else hardware
    longest = longest_row(recipe)
    # What all prompts share is held once, so that this is the most that answers can take.
    answering = Answering(task.eval_batch_size, longest, task.max_new_tokens, adapters=ADAPTERS_ABREAST)
    fit = estimate(recipe, shape, machine, row_tokens=longest, answering=answering)
    steps = recipe.total_steps(n_rows)
    own = mean_row(recipe)
    if own is None:
        return Forecast(fit, steps, None, "")
    n_tokens = round(steps * recipe.global_batch_size * own)
    speed = last_tokens_per_s(workspace.runs_dir)
    if speed is not None:
        return Forecast(fit, steps, n_tokens / speed, f"the last run's {speed:.0f} tokens a second")
    try:
        flops = measure_flops(shape, recipe.torch_dtype)
    except ImportError:
        return Forecast(fit, steps, None, "")
    wall_s = train_s(recipe, shape, n_tokens, flops_per_s=flops)
    return Forecast(fit, steps, wall_s, f"this machine's {flops / 1e12:.2f} TFLOP/s")


def _spoken(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
