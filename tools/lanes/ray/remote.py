"""The node's side of a run, reached through a Ray actor."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from tools.errors import BakehouseError, TrainError
from tools.lanes.ray import bootstrap
from tools.lanes.ray.resources import Resources
from tools.lanes.ray.view import Facts
from tools.lanes.shipping import pack_source

__all__ = ["RemoteNode"]

logger = logging.getLogger(__name__)

# Asked a second time they answer as at first, so that a reply lost on the way costs nothing.
_REPEATABLE: Final = frozenset({"look", "hold", "read", "drop", "facts", "stop", "result"})
_OUTAGE_S: Final = 30.0
_SAY_EVERY_S: Final = 60.0
_LEAVE_S: Final = 15.0


class RemoteNode:
    """Starts the actor where there is room, and ends it with the block."""

    def __init__(self, resources: Resources, check: Callable[[], None]) -> None:
        """Wait until a node takes the actor.

        Args:
            check: Called while waiting; raises to give up.
        Raises:
            TrainError: the node cannot take it.
        """
        import ray
        from ray import cloudpickle

        # A node has no package of ours: the class itself travels, not its name.
        cloudpickle.register_pickle_by_value(bootstrap)
        start = ray.remote(bootstrap.Bootstrap).options(
            num_cpus=resources.cpus, num_gpus=resources.gpus, max_restarts=0, max_task_retries=0
        )
        self.name = "the node"
        self._is_lost = False
        self._actor = start.remote(pack_source())
        try:
            self._await_room(resources, check)
            self.facts: Facts = self.call("facts")
        except BaseException:
            self._kill()
            raise
        self.name = f"node {self.facts.name}"

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a method of `NodeSide` and return what it returns.

        Raises:
            TrainError: the node was lost, or it cannot do that.
            BakehouseError: as the method.
        """
        import ray

        deadline, is_said = time.monotonic() + _OUTAGE_S, False
        while True:
            try:
                return ray.get(self._actor.call.remote("call", name, *arguments))
            except ray.exceptions.RayTaskError as err:
                if isinstance(err.cause, BakehouseError):
                    raise err.cause from None
                raise TrainError(f"{self.name} could not {name.replace('_', ' ')}: {err.cause}") from err
            except ray.exceptions.ActorUnavailableError as err:
                if name not in _REPEATABLE or time.monotonic() > deadline:
                    raise TrainError(self._lost(err)) from err
                if not is_said:
                    logger.warning("%s cannot be reached; trying for %.0f s", self.name, _OUTAGE_S)
                    is_said = True
                time.sleep(1.0)
            except ray.exceptions.RayError as err:
                raise TrainError(self._lost(err)) from err

    def _lost(self, err: Exception) -> str:
        self._is_lost = True
        if getattr(err, "actor_init_failed", False):
            # The last line of what the node's process printed as it failed.
            reason = str(err).strip().splitlines()[-1].strip()
            return f"a node could not begin: {reason}; see to its disk and its BAKEHOUSE_CACHE"
        return (
            f"{self.name} was lost during the run; what had come back is kept, and running the same recipe "
            f"again goes on from there. Ray says: {' '.join(str(err).split())}"
        )

    def _await_room(self, resources: Resources, check: Callable[[], None]) -> None:
        import ray

        first = self._actor.call.remote("call", "facts")
        due = time.monotonic() + _SAY_EVERY_S / 6
        while not ray.wait([first], timeout=0.5)[0]:
            check()
            if time.monotonic() > due:
                logger.info(
                    "waiting for a node with %s CPUs and %g GPUs free", resources.cpus, resources.gpus
                )
                due = time.monotonic() + _SAY_EVERY_S

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        if self._is_lost:
            return
        # The worker's end and the job's folder are the node's business; it may be gone.
        with contextlib.suppress(ray.exceptions.RayError, TrainError):
            ray.get(self._actor.call.remote("call", "leave"), timeout=_LEAVE_S)
        self._kill()

    def _kill(self) -> None:
        import ray

        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.kill(self._actor)
