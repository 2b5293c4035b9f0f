"""Run one recipe on its lane, watched from its start to a checked end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tools.child import Child, tail, termination_as_exit, watch
from tools.errors import LockHeldError, RecipeError, TrainError
from tools.heartbeat import Heartbeat, progress_dir
from tools.lanes import Lane, LaunchPlan, get_lane
from tools.lanes.lane import count_rows
from tools.lanes.local import RESULT, explain_end
from tools.poll import TRACKER, poll_run_progress, read_tracker
from tools.recipe import MODE_FULL, MODE_SMOKE, Mode, TrainRecipe
from tools.run_folder import claim_run_dir, held, mark_finished, marks
from tools.trackers.sidecars import mirrored_recipe

__all__ = ["TrainResult", "run", "sft_progress_dir"]

Runner = Callable[[list[str]], int]
OnProgress = Callable[[int, list[int]], None]

_LOG = logging.getLogger(__name__)
QUIET_POLLS: Final = 480
"""Polls without anything new after which a launched trainer counts as dead: 4 h at 30 s."""


@dataclass(frozen=True)
class TrainResult:
    """What a run left. Hashable.

    Source: fieldkit.training.TrainResult; `stopped_early` is this project's.
    """

    backend: str
    mode: str
    run_dir: str
    final_iter: int
    wall_seconds: float
    container: str | None
    log_path: str | None = None
    iter_dirs: tuple[int, ...] = field(default_factory=tuple)
    stopped_early: bool = False


def sft_progress_dir(recipe: TrainRecipe) -> Path:
    """Return where the recipe's heartbeats land: $FK_SFT_PROGRESS_DIR, else `<output_dir>/progress`."""
    return progress_dir(recipe.output_dir)


def run(
    recipe: TrainRecipe,
    *,
    mode: str = MODE_FULL,
    poll_interval: float = 30.0,
    on_progress: OnProgress | None = None,
    runner: Runner | None = None,
    sleep: Callable[[float], None] | None = None,
    timeout_s: float | None = None,
    should_stop: Callable[[], bool] | None = None,
    mid_eval: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train recipe on its lane and return what it left, once that is proved to be whole.

    The trainer is started, polled on disk while it runs and ended when time is up, when
    should_stop says so, on Ctrl-C and on SIGTERM. Its heartbeat is truthful in every case.
    Checkpoints that lay in the run folder before are not this run's: a finished or a
    different run is moved aside, and one of the same recipe and rows that was cut short is
    continued where the lane can.

    Args:
        recipe: What to train.
        mode: `full`, or `smoke` for `recipe.smoke_steps` steps.
        poll_interval: Seconds between looks at the disk; 0 looks only at the end.
        on_progress: Called after each look with what `poll_run_progress` returns.
        runner: Takes the command and returns its exit code, in place of starting it here. One
            that returns 0 before there is a checkpoint counts as a launcher, unless
            poll_interval is 0: the disk is then polled until the last step is there.
        sleep: Takes the place of waiting between looks.
        timeout_s: Wall clock limit of a trainer started here.
        should_stop: True ends a trainer started here.
        mid_eval: The local lane's settings for mid-run evaluations, as the engine reads them.
    Raises:
        TrainError: bad arguments or recipe; the trainer failed, was ended, left no new
            checkpoint, or stopped short of its last step without an early stop.

    Source: fieldkit.training.run.
    """
    checked, steps = _check(recipe, mode, poll_interval)
    lane = get_lane(checked.backend)
    where = checked.run_dir(checked_mode := _mode(mode))
    try:
        with termination_as_exit(), held(_lock_path(where), what=f"the run folder {where}") as lock:
            run_dir, plan = _prepare(checked, checked_mode, lane, mid_eval)
            watched = _Watched(checked, checked_mode, run_dir, steps, on_progress)
            if runner is not None:
                watched.call(runner, plan, poll_interval, sleep or time.sleep)
            else:
                watched.start(plan, lock, poll_interval, sleep, timeout_s, should_stop)
            return watched.finish(lane)
    except LockHeldError as err:
        raise TrainError(str(err)) from err


class _Watched:
    """One run between its start and its end, with its heartbeat."""

    def __init__(
        self, recipe: TrainRecipe, mode: Mode, run_dir: Path, steps: int, on_progress: OnProgress | None
    ) -> None:
        self._recipe, self._mode, self._run_dir, self._steps = recipe, mode, run_dir, steps
        self._on_progress = on_progress
        self._log_path: Path | None = None
        self._before = marks(run_dir)
        self._began = time.monotonic()
        self._beat = Heartbeat(
            sft_progress_dir(recipe), backend=recipe.backend, mode=mode, run_dir=run_dir, max_iters=steps
        )

    def call(
        self, runner: Runner, plan: LaunchPlan, interval_s: float, sleep: Callable[[float], None]
    ) -> None:
        """Hand the command to a caller's runner."""
        with _Truthful(self):
            code = runner(list(plan.argv))
            if code != 0:
                raise TrainError(
                    f"trainer returned non-zero exit code {code}; see its own output for the cause"
                )
            if interval_s > 0 and not self._new():
                self._await_launched(interval_s, sleep)

    def _await_launched(self, interval_s: float, sleep: Callable[[float], None]) -> None:
        quiet = 0
        while self._reached() < self._steps and quiet < QUIET_POLLS:
            known = self._new()
            sleep(interval_s)
            self.look()
            quiet = 0 if self._new() != known else quiet + 1

    def start(
        self,
        plan: LaunchPlan,
        lock: int,
        interval_s: float,
        sleep: Callable[[float], None] | None,
        timeout_s: float | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        """Start the command here and watch it to its end."""
        self._log_path = self._run_dir / "train.log"
        with (
            _Truthful(self),
            mirrored_recipe(self._recipe, self._mode, self._run_dir, result_path=self._run_dir / RESULT),
            Child.start(
                plan.argv,
                log_path=self._log_path,
                env=plan.env,
                keep_fds=(lock,),
                heartbeat=self._beat.path,
                stop_argv=plan.stop_argv,
            ) as child,
        ):
            self.look(tell=False)
            end = watch(
                child,
                interval_s=interval_s,
                on_poll=lambda _: self.look(),
                should_stop=should_stop,
                timeout_s=timeout_s,
                sleep=sleep,
            )
            explain_end(end, f"the {self._recipe.backend} trainer", self._log_path, timeout_s)

    def look(self, *, tell: bool = True) -> None:
        """Look at the disk once, stamp the heartbeat and tell the caller."""
        latest, iters = poll_run_progress(self._run_dir)
        self._beat.running(latest, iters)
        if tell and self._on_progress is not None:
            self._on_progress(latest, iters)

    def finish(self, lane: Lane) -> TrainResult:
        """Check that the run is whole, give the heartbeat its last word and return the result."""
        with _Truthful(self):
            self.look()
            outcome = lane.outcome(self._run_dir)
            if outcome is not None and outcome.error:
                raise TrainError(f"the {lane.name} trainer failed: {outcome.error}")
            stopped_early = outcome is not None and outcome.stopped_early
            final = outcome.final_iter if outcome is not None else self._reached()
            self._refuse_short(final, stopped_early, said=outcome is not None)
            self._mark_finished()
        wall_s = time.monotonic() - self._began
        _, iters = poll_run_progress(self._run_dir)
        self._beat.done(final, iters, wall_s=wall_s, stopped_early=stopped_early)
        in_container = self._recipe.backend in ("nemo", "unsloth")
        return TrainResult(
            backend=self._recipe.backend,
            mode=self._mode,
            run_dir=str(self._run_dir),
            final_iter=final,
            wall_seconds=wall_s,
            container=self._recipe.resolved_container() if in_container else None,
            log_path=None if self._log_path is None else str(self._log_path),
            iter_dirs=tuple(iters),
            stopped_early=stopped_early,
        )

    def _mark_finished(self) -> None:
        try:
            mark_finished(self._recipe, self._mode)
        except OSError as err:
            # The run itself is whole; all that is lost is that the next one starts anew.
            _LOG.warning("the end of the run in %s cannot be recorded: %s", self._run_dir, err)

    def _refuse_short(self, final: int, stopped_early: bool, *, said: bool) -> None:
        if not said and not self._new():
            text = "" if self._log_path is None else f"\n{tail(self._log_path)}"
            raise TrainError(
                f"the trainer ended well but left no new checkpoint in {self._run_dir}; "
                f"it should have saved iteration {self._steps}{text}"
            )
        if final < self._steps and not stopped_early:
            raise TrainError(
                f"the trainer stopped at iteration {final} of {self._steps}; its checkpoints stay in "
                f"{self._run_dir}, and running the same recipe again continues where the lane can"
            )

    def _new(self) -> dict[int, tuple[int, int]]:
        return {
            number: mark for number, mark in marks(self._run_dir).items() if self._before.get(number) != mark
        }

    def _reached(self) -> int:
        """Return the last new checkpoint that the tracker vouches for."""
        new = self._new()
        latest = read_tracker(self._run_dir / TRACKER)
        if latest is None and (self._run_dir / TRACKER).exists():
            return 0
        return max((number for number in new if latest is None or number <= latest), default=0)

    def close(self, error: BaseException) -> None:
        """Give the heartbeat its last word for a run that did not make it."""
        latest, iters = poll_run_progress(self._run_dir)
        text = str(error) or f"ended by {type(error).__name__}"
        if isinstance(error, SystemExit):
            text = f"the watching process was told to exit ({error.code})"
        self._beat.failed(latest, iters, wall_s=time.monotonic() - self._began, error=text)


class _Truthful:
    """Closes the heartbeat as failed when the block does not end well, whatever ends it."""

    def __init__(self, watched: _Watched) -> None:
        self._watched = watched

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._watched.close(error)


def _prepare(
    recipe: TrainRecipe, mode: Mode, lane: Lane, mid_eval: Mapping[str, Any] | None
) -> tuple[Path, LaunchPlan]:
    try:
        run_dir = claim_run_dir(recipe, mode, now=datetime.now(UTC))
        return run_dir, lane.prepare(recipe, mode, run_dir, mid_eval=mid_eval)
    except OSError as err:
        raise TrainError(f"the run folder {recipe.run_dir(mode)} cannot be made ready: {err}") from err


def _check(recipe: TrainRecipe, mode: str, poll_interval: float) -> tuple[TrainRecipe, int]:
    try:
        recipe.preflight()
    except RecipeError as err:
        raise TrainError(f"recipe failed preflight: {err}") from err
    if not poll_interval >= 0:
        raise TrainError(f"poll_interval is {poll_interval}; it must be >= 0 (0 polls only at the end)")
    resolved = recipe.resolve(Path.cwd())
    return resolved, resolved.total_steps(count_rows(resolved), _mode(mode))


def _mode(mode: str) -> Mode:
    if mode == MODE_FULL:
        return MODE_FULL
    if mode == MODE_SMOKE:
        return MODE_SMOKE
    raise TrainError(f"mode is {mode!r}; allowed: 'smoke', 'full'")


def _lock_path(run_dir: Path) -> Path:
    return run_dir.with_name(f".{run_dir.name}.lock")
