"""Commands in a running container, and how to end there what the client's death leaves running."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tools.errors import TrainError
from tools.lanes.lane import LaunchPlan, count_rows
from tools.recipe import MODE_FULL, MODE_SMOKE, Mode, TrainRecipe
from tools.secret_text import is_secret_name

__all__ = ["docker_exec", "exec_plan", "exec_trainer", "trainer_environment"]

PID_FILE: Final = "trainer.pid"

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_STOP_GRACE_S: Final = 30
# The process is ours only if it carries this run's folder in its environment: a number in an
# old pid file may belong to anybody by now.
_STOP: Final = """\
pid=$(cat {pid_file} 2>/dev/null) || exit 0
tr '\\0' '\\n' < "/proc/$pid/environ" 2>/dev/null | grep -qxF {mark} || exit 0
family="$pid $(ps -o pid= --ppid "$pid" 2>/dev/null)"
kill -TERM "$pid"
for _ in $(seq {tenths}); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
kill -KILL $family 2>/dev/null
exit 0
"""


def docker_exec(container: str, inner: str, *, forward: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the argv that runs inner, a line for bash, in a running container.

    Args:
        container: Its name.
        inner: Quoted already.
        forward: Names of variables whose values docker takes from its own environment, so
            that they appear in no argv.
    """
    names = [part for name in forward for part in ("-e", name)]
    return ("docker", "exec", "-w", "/tmp", *names, container, "bash", "-lc", inner)


def exec_plan(
    recipe: TrainRecipe, command: Sequence[str], *, env: Mapping[str, str], pid_file: Path, mark: str
) -> LaunchPlan:
    """Return the plan that runs command in the recipe's container, and ends it there.

    Args:
        recipe: Its extra_env is added to env. An extra variable whose name says that it is
            a secret travels outside the command line.
        command: What to execute.
        env: Variables of the command.
        pid_file: Written by the command's shell; seen under this path on both sides.
        mark: Name in env whose value tells this process from any other.
    """
    hidden = {name: value for name, value in recipe.extra_env.items() if is_secret_name(name)}
    shown = {**env, **{name: value for name, value in recipe.extra_env.items() if name not in hidden}}
    words = ["env", *(f"{name}={value}" for name, value in shown.items()), *command]
    quoted = shlex.quote(str(pid_file))
    inner = f"echo $$ > {quoted}; exec {shlex.join(words)}"
    container = recipe.resolved_container()
    stop = _STOP.format(pid_file=quoted, mark=shlex.quote(f"{mark}={env[mark]}"), tenths=10 * _STOP_GRACE_S)
    return LaunchPlan(
        argv=docker_exec(container, inner, forward=tuple(hidden)),
        env=hidden,
        stop_argv=docker_exec(container, stop),
    )


def exec_trainer(
    recipe: TrainRecipe, command: Sequence[str], *, env: Mapping[str, str], run_dir: Path
) -> LaunchPlan:
    """Return the plan that runs a trainer, every recipe field in its environment."""
    return exec_plan(recipe, command, env=env, pid_file=run_dir / PID_FILE, mark="RUN_DIR")


def trainer_environment(recipe: TrainRecipe, mode: Mode, run_dir: Path) -> dict[str, str]:
    """Return every field of the recipe as the variables that a launch script reads.

    `MAX_STEPS` is the number of optimizer steps of a full run, `epochs` already counted in.
    A field that is null is an empty text.

    Raises:
        TrainError: a name in extra_env is no variable name, or takes one of these names.
    """
    n_rows = count_rows(recipe)
    values: dict[str, object] = {
        "BASE_MODEL": recipe.base_model,
        "DATASET_JSONL": recipe.dataset_jsonl,
        "RUN_DIR": str(run_dir),
        "MODE": mode,
        "MAX_STEPS": recipe.total_steps(n_rows, MODE_FULL),
        "SMOKE_STEPS": recipe.total_steps(n_rows, MODE_SMOKE),
        "LORA_TARGET_MODULES": ",".join(recipe.lora_target_modules_for_backend()),
        "LORA_LAYERS": "" if recipe.lora_layers is None else json.dumps(list(recipe.lora_layers)),
    }
    left_out = {"output_dir", "backend", "container", "extra_env", "notes", "epochs"}
    for name, value in recipe.to_dict().items():
        if name not in left_out:
            values.setdefault(name.upper(), value)
    found = {name: _text(value) for name, value in values.items()}
    _check_extra(recipe, found)
    return found


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _check_extra(recipe: TrainRecipe, taken: Mapping[str, str]) -> None:
    for name in recipe.extra_env:
        if not _VARIABLE.match(name):
            raise TrainError(f"extra_env {name!r} is no variable name; letters, digits and '_' are allowed")
        if name in taken:
            raise TrainError(f"extra_env {name} would hide the recipe's own value; change the field instead")
