"""The local lane: the engine in a child process on this machine."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tools.child import Child, ChildEnd, tail, watch
from tools.errors import MergeExportError, ModelError, TrainError
from tools.extras import require_extra
from tools.files import write_json_atomic
from tools.lanes.lane import LaunchPlan, Outcome
from tools.recipe import Mode, TrainRecipe
from tools.run_folder import held
from tools.trackers.sidecars import mirrored_spec

__all__ = ["LocalLane", "run_engine"]

_LOG = logging.getLogger(__name__)
SPEC: Final = "engine-spec.json"
RESULT: Final = "engine-result.json"


class LocalLane:
    """Runs one recipe as a stack of one."""

    name = "local"

    def prepare(
        self, recipe: TrainRecipe, mode: Mode, run_dir: Path, *, mid_eval: Mapping[str, Any] | None = None
    ) -> LaunchPlan:
        """Write a train spec with one member into run_dir and return the worker's command.

        Raises:
            MissingExtraError: the extra `train` is not installed.
        """
        require_extra("train", purpose="the local lane")
        return LaunchPlan(argv=engine_argv(write_spec(recipe, mode, run_dir, mid_eval)))

    def outcome(self, run_dir: Path) -> Outcome | None:
        """Return what the worker wrote about its one member, None when it wrote nothing."""
        if not (run_dir / RESULT).exists():
            return None
        members = _read_result(run_dir / RESULT).get("members")
        if not isinstance(members, list) or len(members) != 1 or not isinstance(members[0], dict):
            raise TrainError(f"{run_dir / RESULT} does not hold the one member of this run; see its log")
        member = members[0]
        status, error = member.get("status"), member.get("error")
        if status not in ("done", "stopped_early"):
            error = str(error or f"the engine ended the run with status {status!r}")
        final = member.get("final_iter")
        return Outcome(
            final_iter=final if isinstance(final, int) else 0,
            stopped_early=status == "stopped_early",
            error=str(error) if error else None,
        )


def write_spec(
    recipe: TrainRecipe, mode: Mode, run_dir: Path, mid_eval: Mapping[str, Any] | None = None
) -> Path:
    """Write the worker's spec of one recipe into its run folder, where no result is left from before."""
    if recipe.eval_interval is not None and mid_eval is None:
        _LOG.warning("eval_interval is set, but no mid_eval says on what rows: nothing is evaluated")
    result_path = run_dir / RESULT
    result_path.unlink(missing_ok=True)
    member = {"trial_id": "run", "recipe": recipe.to_dict(), "run_dir": str(run_dir)}
    spec = {
        "kind": "train",
        "base_model": recipe.base_model,
        "mode": mode,
        "members": [member],
        "mid_eval": None if mid_eval is None else dict(mid_eval),
        "result_path": str(result_path),
        "threads": None,
    }
    return write_json_atomic(run_dir / SPEC, spec)


def merge_plan(recipe: TrainRecipe, checkpoint: Path, merged_hf: Path) -> LaunchPlan:
    """Write a merge spec beside merged_hf and return the command that carries it out."""
    spec = {"action": "merge", "base_model": _base(recipe), "adapter": str(checkpoint), "out": str(merged_hf)}
    return _merge_step(merged_hf, spec)


def prove_plan(recipe: TrainRecipe, merged_hf: Path) -> LaunchPlan:
    """Return the command that proves merged_hf's tokenizer against the base model's."""
    return _merge_step(merged_hf, {"action": "prove", "base_model": _base(recipe), "out": str(merged_hf)})


def _base(recipe: TrainRecipe) -> str:
    from tools.models import resolve_base_model

    try:
        return resolve_base_model(recipe.base_model)
    except ModelError as err:
        raise MergeExportError(f"merge: {err}") from err


def _merge_step(merged_hf: Path, spec: Mapping[str, str]) -> LaunchPlan:
    spec_path = write_json_atomic(merged_hf.with_name(f".{merged_hf.name}.spec.json"), dict(spec))
    return LaunchPlan(argv=(sys.executable, "-P", "-m", "tools.merge_worker", str(spec_path)))


def engine_argv(spec_path: Path) -> tuple[str, ...]:
    """Return the command that runs the engine's worker on a spec."""
    return (sys.executable, "-P", "-m", "tools.engine", str(spec_path))


def run_engine(
    spec: Mapping[str, Any],
    *,
    spec_path: Path,
    log_path: Path,
    timeout_s: float | None = None,
    on_poll: Callable[[float], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    poll_s: float = 1.0,
    grace_s: float = 30.0,
) -> dict[str, Any]:
    """Run the engine's worker on spec and return the result that it wrote.

    The worker is a process group of its own. It is asked to end, and after grace_s killed,
    when time is up, when should_stop says so, when this call is interrupted, and also when
    this very process dies.

    Args:
        spec: As `tools.engine` reads it; `result_path` says where the result goes.
        spec_path: Where the spec is written. One worker at a time runs on a spec_path.
        log_path: The worker's output is appended here.
        timeout_s: Wall clock limit.
        on_poll: Called every poll_s with the seconds since the start.
        should_stop: Asked about twice a second.
        poll_s: Seconds between calls of on_poll.
        grace_s: Seconds between the request to end and the kill.
    Raises:
        TrainError: the worker was ended, failed, or wrote no result. The message carries the
            last lines of its log.
        MissingExtraError: the extra `train` is not installed.
        LockHeldError: another process runs a worker on this spec_path.
    """

    def run(path: Path, lock: int) -> ChildEnd:
        with Child.start(engine_argv(path), log_path=log_path, keep_fds=(lock,), grace_s=grace_s) as child:
            return watch(
                child,
                interval_s=poll_s,
                on_poll=on_poll,
                should_stop=should_stop,
                timeout_s=timeout_s,
                grace_s=grace_s,
            )

    return run_spec(spec, run, spec_path=spec_path, log_path=log_path, timeout_s=timeout_s)


def run_spec(
    spec: Mapping[str, Any],
    run: Callable[[Path, int], ChildEnd],
    *,
    spec_path: Path,
    log_path: Path,
    timeout_s: float | None,
) -> dict[str, Any]:
    """Write a spec, have it run under its lock and return the result that the worker wrote.

    Args:
        run: Given the spec's file and the descriptor of its lock, which the worker holds on to.
    Raises:
        TrainError, MissingExtraError, LockHeldError: as `run_engine`.
    """
    require_extra("train", purpose="the engine")
    result_path = Path(spec["result_path"])
    with held(spec_path.with_name(f".{spec_path.name}.lock"), what=f"the engine spec {spec_path}") as lock:
        result_path.unlink(missing_ok=True)
        with mirrored_spec(spec, spec_path):
            end = run(write_json_atomic(spec_path, dict(spec)).absolute(), lock)
            explain_end(end, "the engine", log_path, timeout_s)
        return _read_result(result_path)


def explain_end(end: ChildEnd, who: str, log_path: Path, timeout_s: float | None = None) -> None:
    """Raise TrainError unless the child ended by itself with exit code 0."""
    if end.reason == "exited" and end.exit_code == 0:
        return
    what = {
        "exited": f"{who} ended with exit code {end.exit_code}",
        "stopped": f"{who} was stopped on request after {end.wall_s:.0f} s",
        "timed out": f"{who} was stopped: over its limit of {timeout_s or 0:.0f} s",
    }[end.reason]
    text = tail(log_path)
    raise TrainError(f"{what}; log: {log_path}" + (f"\n{text}" if text else ""))


def _read_result(path: Path) -> dict[str, Any]:
    data: object = None
    with contextlib.suppress(OSError, ValueError):
        data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise TrainError(f"the engine left no readable result at {path}, though it ended well")
    return data
