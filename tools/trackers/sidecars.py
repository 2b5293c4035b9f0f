"""Sidecars beside a training: started with it, told how it ended, and never waited for long."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tools.child import Child
from tools.errors import RecipeError
from tools.recipe import TrainRecipe
from tools.trackers.choice import PACKAGES, chosen_trackers
from tools.trackers.tracked_run import ScoreFile, SidecarSpec, TrackedRun

__all__ = ["mirrored", "mirrored_recipe", "mirrored_spec"]

logger = logging.getLogger(__name__)

_LAST_WORDS_S: Final = 20.0
"""What all sidecars of a training get to tell the rest, once it has ended."""
_TOLD_SPLITS: Final = ("dev", "selection")


@contextlib.contextmanager
def mirrored(spec: SidecarSpec, where: Path) -> Iterator[None]:
    """Mirror the runs of a spec for the length of the block, where the environment asks for it.

    Args:
        where: Beside this path the sidecars' spec and logs are written.
    """
    chosen = [name for name in chosen_trackers(os.environ) if spec.runs and _is_installed(name)]
    if not chosen:
        yield
        return
    started = _start_all(chosen, spec, where)
    ending = b"failed"
    try:
        yield
        ending = b"finished"
    finally:
        _end_all(started, ending)


def mirrored_spec(spec: Mapping[str, Any], where: Path) -> contextlib.AbstractContextManager[None]:
    """Mirror what a worker's spec trains or scores; for scores, the splits that may be told."""
    if not chosen_trackers(os.environ):
        return contextlib.nullcontext()
    if spec.get("kind") == "train":
        return mirrored(SidecarSpec(tuple(_trained_runs(spec)), spec["result_path"]), where)
    return mirrored(SidecarSpec(tuple(_scored_runs(spec))), where)


def mirrored_recipe(
    recipe: TrainRecipe, mode: str, run_dir: Path, *, result_path: Path
) -> contextlib.AbstractContextManager[None]:
    """Mirror a run of `tools.train.run`, under the name of its output folder and mode."""
    name = f"{Path(recipe.output_dir).name}-{mode}"
    run = TrackedRun.of(recipe, name=name, run_dir=run_dir)
    return mirrored(SidecarSpec((run,), str(result_path)), run_dir / "run")


def _trained_runs(spec: Mapping[str, Any]) -> Iterator[TrackedRun]:
    for member in spec["members"]:
        try:
            recipe = TrainRecipe.from_dict(member["recipe"])
        except RecipeError:
            # The worker says what is wrong with it.
            continue
        name = member["trial_id"]
        yield TrackedRun.of(recipe, name=name, run_dir=member["run_dir"], member=name)


def _scored_runs(spec: Mapping[str, Any]) -> Iterator[TrackedRun]:
    for adapter in spec["adapters"]:
        if adapter["adapter_dir"] is None:
            continue
        run_dir = Path(adapter["adapter_dir"]).parent
        folder = Path(spec["scores_dir"]) / adapter["trial_id"]
        files = [ScoreFile.expected(split, folder / f"{split}.jsonl") for split in _TOLD_SPLITS]
        asked = tuple(file for file in files if file.split in spec["splits"])
        if asked:
            yield TrackedRun(adapter["trial_id"], str(run_dir), member=adapter["trial_id"], scores=asked)


def _is_installed(tracker: str) -> bool:
    if importlib.util.find_spec(PACKAGES[tracker]) is not None:
        return True
    logger.warning(
        "the environment asks for %s, which is not installed: pip install 'bakehouse[%s]'", tracker, tracker
    )
    return False


@dataclass(frozen=True)
class _Sidecar:
    tracker: str
    child: Child
    ear: int
    """Our end of its input."""


def _start_all(chosen: Sequence[str], spec: SidecarSpec, where: Path) -> list[_Sidecar]:
    started: list[_Sidecar] = []
    for tracker in chosen:
        try:
            started.append(_start(tracker, spec, where))
        except OSError as err:
            logger.warning("%s is not told of this training: %s", tracker, err)
    return started


def _start(tracker: str, spec: SidecarSpec, where: Path) -> _Sidecar:
    spec_path = spec.write(where.with_name(f"{where.name}.trackers.json"))
    log_path = where.with_name(f"{where.name}.{tracker}.log")
    argv = (sys.executable, "-P", "-m", "tools.trackers", tracker, str(spec_path))
    mouth, ear = os.pipe()
    try:
        return _Sidecar(tracker, Child.start(argv, log_path=log_path, stdin=mouth), ear)
    except BaseException:
        os.close(ear)
        raise
    finally:
        os.close(mouth)


def _end_all(sidecars: Sequence[_Sidecar], ending: bytes) -> None:
    for sidecar in sidecars:
        with contextlib.suppress(OSError):
            os.write(sidecar.ear, ending)
        os.close(sidecar.ear)
    deadline = time.monotonic() + _LAST_WORDS_S
    for sidecar in sidecars:
        code = sidecar.child.wait(max(0.0, deadline - time.monotonic()))
        with contextlib.ExitStack() as stack:
            stack.enter_context(sidecar.child)
            if code is None:
                sidecar.child.stop(1.0)
        if code != 0:
            logger.warning("%s was not told all of this; see %s", sidecar.tracker, sidecar.child.log_path)
