"""The NeMo trainer: `torchrun -m tools.lanes.scripts.train_nemo SPEC.json`, in the container.

It renders the rows, converts the base model where that is not done yet, and trains a LoRA with
Megatron-Bridge. A run that was cut short goes on from its last checkpoint.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tools.convert import HFToMegatron
from tools.errors import BakehouseError, ConvertError, TrainError
from tools.files import locked, write_json_atomic
from tools.lanes.scripts.nemo_config import RunPaths, build_config, use_learning_rates
from tools.lanes.scripts.nemo_rows import write_rows
from tools.poll import TRACKER, read_tracker
from tools.recipe import TrainRecipe

__all__ = ["convert_base", "main"]

_LOG = logging.getLogger(__name__)
_RECORD: Final = "bakehouse-base.json"
# What torchrun tells its workers; a child that opens a process group of its own must not see it.
_WORKER_VARIABLES: Final = ("RANK", "WORLD_SIZE", "MASTER_", "LOCAL_", "GROUP_", "ROLE_", "TORCHELASTIC_")


def main(argv: list[str]) -> int:
    """Carry out the spec in argv[0]; 0 when the last checkpoint is saved."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    spec = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    try:
        if spec["action"] == "convert":
            HFToMegatron(spec["hf_model"], spec["megatron_path"], spec["torch_dtype"]).run()
        else:
            _train(TrainRecipe.from_dict(spec["recipe"]), spec)
    except BakehouseError as err:
        _LOG.error("%s: %s", type(err).__name__, err)
        return 1
    return 0


def _train(recipe: TrainRecipe, spec: Mapping[str, Any]) -> None:
    from transformers import AutoTokenizer

    run_dir, steps = Path(spec["run_dir"]), int(spec["steps"])
    if (read_tracker(run_dir / TRACKER) or 0) >= steps:
        _LOG.info("%s holds the last step already", run_dir)
        return
    tokenizer = AutoTokenizer.from_pretrained(recipe.base_model)
    rows = write_rows(recipe, tokenizer, Path(spec["dataset_root"]))
    base = Path(spec["megatron_base"])
    convert_base(recipe, base, scratch=run_dir)
    finetune = importlib.import_module("megatron.bridge.training.finetune").finetune
    forward_step = importlib.import_module("megatron.bridge.training.gpt_step").forward_step
    use_learning_rates(recipe, steps)
    finetune(build_config(recipe, RunPaths(run_dir, rows, base), steps), forward_step)
    reached = read_tracker(run_dir / TRACKER) or 0
    if reached < steps:
        raise TrainError(f"the trainer was asked to end after step {reached} of {steps}")


def convert_base(recipe: TrainRecipe, base: Path, *, scratch: Path) -> None:
    """Make base the recipe's base model as a Megatron checkpoint, unless it is that already.

    A checkpoint made by hand is used as it is. The conversion runs in a process of its own,
    for its process group and its memory to be gone before the training starts.

    Raises:
        ConvertError: the conversion failed, or base holds another model.
    """
    wanted = {"hf_model": recipe.base_model, "torch_dtype": recipe.torch_dtype}
    with locked(base.with_name(f".{base.name}.base-lock")):
        if read_tracker(base / TRACKER) is not None:
            _check_base(base, wanted)
            return
        _LOG.info("converting %s to %s", recipe.base_model, base)
        spec = {"action": "convert", **wanted, "megatron_path": str(base)}
        path = write_json_atomic(scratch / "convert-spec.json", spec)
        command = [sys.executable, "-P", "-m", "tools.lanes.scripts.train_nemo", str(path)]
        done = subprocess.run(command, env=_own_environment(), check=False)
        if done.returncode != 0:
            raise ConvertError(
                f"{recipe.base_model} could not be converted to Megatron (exit code {done.returncode}); "
                "the reason stands above in this log"
            )
        write_json_atomic(base / _RECORD, wanted)


def _check_base(base: Path, wanted: Mapping[str, str]) -> None:
    try:
        found = json.loads((base / _RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as err:
        raise ConvertError(f"{base / _RECORD} cannot be read: {err}; remove {base}, it is made anew") from err
    if found != wanted:
        raise ConvertError(
            f"{base} holds {found}, the recipe wants {dict(wanted)}; name another extra_env['MCORE_BASE'] "
            f"or remove {base}"
        )


def _own_environment() -> dict[str, str]:
    """Return the environment without torchrun's part, and with a port that is free."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_WORKER_VARIABLES)}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return {**kept, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
