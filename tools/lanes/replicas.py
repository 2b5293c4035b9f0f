"""Resident engines side by side, one on each device, that share the work of a spec."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Final

from tools.child import GRACE_S
from tools.errors import TrainError
from tools.files import write_json_atomic
from tools.lanes.devices import WorkerPlace, worker_places
from tools.lanes.parts import divide, join, part_path
from tools.lanes.resident import ResidentEngine, WarmEngine

__all__ = ["ReplicatedEngine"]

_SLICE_S: Final = 0.5


class ReplicatedEngine(WarmEngine):
    """Runs specs like `ResidentEngine`, their members divided over the devices of this machine.

    Each device has a process of its own that keeps the base loaded. Where there is one device,
    or one member, it is that one engine. A process that dies fails its own members alone.
    """

    def __init__(self, places: Sequence[WorkerPlace] | None = None) -> None:
        """Start nothing yet.

        Args:
            places: Where the workers run; None looks at the machine when the first spec comes.
        """
        self._places = None if places is None else tuple(places)
        self._engines: list[ResidentEngine] = []
        self._opening = threading.Lock()

    def __call__(
        self,
        spec: Mapping[str, Any],
        *,
        spec_path: Path,
        log_path: Path,
        timeout_s: float | None = None,
        on_poll: Callable[[float], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        poll_s: float = 1.0,
        grace_s: float = GRACE_S,
    ) -> dict[str, Any]:
        """Run the engine's workers on spec and return one result.

        Arguments and errors are those of `run_engine`; the parts of a spec, their results and
        logs have the spec's names with `.part0` and so on in them.
        """
        engines = self._opened()
        parts = divide(spec, len(engines))
        if len(parts) == 1:
            return engines[0](
                parts[0],
                spec_path=spec_path,
                log_path=log_path,
                timeout_s=timeout_s,
                on_poll=on_poll,
                should_stop=should_stop,
                poll_s=poll_s,
                grace_s=grace_s,
            )
        stop = threading.Event()

        def run(number: int) -> dict[str, Any] | TrainError:
            try:
                return engines[number](
                    self._threaded(parts[number], number),
                    spec_path=part_path(spec_path, number),
                    log_path=part_path(log_path, number),
                    timeout_s=timeout_s,
                    should_stop=stop.is_set,
                    grace_s=grace_s,
                )
            except TrainError as err:
                return err
            except BaseException:
                stop.set()
                raise

        with ThreadPoolExecutor(len(parts), thread_name_prefix="replica") as pool:
            futures = [pool.submit(run, number) for number in range(len(parts))]
            try:
                _watch(futures, stop, on_poll, should_stop, poll_s)
            except BaseException:
                # The workers are asked to end; leaving the block waits until they have.
                stop.set()
                raise
        results = [future.result() for future in futures]
        if stop.is_set():
            ended = [result for result in results if isinstance(result, TrainError)]
            raise ended[0] if ended else TrainError("the engine was stopped on request")
        joined = join(spec, parts, results)
        write_json_atomic(spec["result_path"], joined)
        return joined

    def release(self) -> None:
        """End the processes, and so give their memory back; the next spec starts others."""
        for engine in self._engines:
            engine.release()

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the engines that run."""
        return tuple(engine.pid for engine in self._engines if engine.pid is not None)

    def _opened(self) -> list[ResidentEngine]:
        with self._opening:
            if not self._engines:
                self._places = self._places or worker_places(os.environ)
                self._engines = [ResidentEngine(environment=place.environment) for place in self._places]
        return self._engines

    def _threaded(self, part: Mapping[str, Any], number: int) -> Mapping[str, Any]:
        assert self._places is not None
        threads = self._places[number].threads
        return part if part.get("threads") is not None or threads is None else {**part, "threads": threads}


def _watch(
    futures: Sequence[Future[Any]],
    stop: threading.Event,
    on_poll: Callable[[float], None] | None,
    should_stop: Callable[[], bool] | None,
    poll_s: float,
) -> None:
    """Look at the world until all workers have ended, in the caller's own thread."""
    began = time.monotonic()
    due = began + poll_s
    while wait(futures, timeout=min(poll_s, _SLICE_S) or _SLICE_S).not_done:
        now = time.monotonic()
        if should_stop is not None and should_stop():
            stop.set()
        if on_poll is not None and poll_s and now >= due:
            on_poll(now - began)
            due = now + poll_s
