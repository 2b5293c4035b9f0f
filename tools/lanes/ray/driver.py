"""`python -P -m tools.lanes.ray.driver SPEC`: train on a Ray cluster, the run folder kept here.

It stands where the local lane's worker stands: it ends when it is asked to, with what was saved
brought home first, and what it started on the cluster ends when it is killed.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tools.child import termination_as_exit
from tools.errors import BakehouseError, TrainError
from tools.files import write_json_atomic
from tools.lanes.local import RESULT
from tools.lanes.ray.cluster import connected
from tools.lanes.ray.inputs import local_base, pack_inputs, result_here
from tools.lanes.ray.mirror import Mirror, send_parcel
from tools.lanes.ray.parcels import Parcel
from tools.lanes.ray.remote import RemoteNode
from tools.lanes.ray.resources import Resources, asked, choose, cluster_rooms
from tools.lanes.ray.versions import check_versions
from tools.recipe import TrainRecipe

__all__ = ["main"]

logger = logging.getLogger(__name__)

_LOOK_S: Final = 0.25
_PATIENCE_S: Final = 1.0


def main(arguments: list[str]) -> int:
    """Run the spec of one recipe; logs go to stderr."""
    (spec_path,) = arguments
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        spec = json.loads(Path(spec_path).read_text(encoding="utf-8"))
        run_dir = Path(spec["members"][0]["run_dir"])
        # Ray puts the working folder on its workers' import path; nothing of the user's shall be there.
        os.chdir(run_dir)
        with termination_as_exit(), connected(os.environ, run_dir / "ray.log"):
            return _explained(lambda: _train(spec, run_dir, StopRequest()))
    except (BakehouseError, OSError) as err:
        return _explain(err)


def _explained(work: Callable[[], int]) -> int:
    # Said while still connected: when the cluster is gone, Ray may end this process on the way out.
    try:
        return work()
    except (BakehouseError, OSError) as err:
        return _explain(err)


def _explain(err: Exception) -> int:
    logger.error("%s: %s", type(err).__name__, err)
    return 1


class StopRequest:
    """Set by SIGTERM from its making on; until then a signal just ends this process."""

    def __init__(self) -> None:
        self.is_set = False
        signal.signal(signal.SIGTERM, self._set)

    def _set(self, *_: object) -> None:
        self.is_set = True

    def check(self) -> None:
        """Raise TrainError once set, where there is nothing to save."""
        if self.is_set:
            raise TrainError("asked to stop before the training began")


def _train(spec: Mapping[str, Any], run_dir: Path, stop: StopRequest) -> int:
    import ray

    resources = choose(asked(), cluster_rooms(ray.nodes()))
    with RemoteNode(resources, stop.check) as node:
        check_versions(node.facts)
        logger.info("training on %s with %s CPUs, %g GPUs", node.name, resources.cpus, resources.gpus)
        mirror = Mirror(run_dir, node)
        _send(node, spec, mirror, resources, stop)
        return _follow(node, mirror, run_dir, stop)


def _send(
    node: RemoteNode, spec: Mapping[str, Any], mirror: Mirror, resources: Resources, stop: StopRequest
) -> None:
    """Bring all to the node that the run needs, and start it."""
    assert resources.cpus is not None
    assert resources.gpus is not None
    model = _send_base(node, spec["base_model"], stop)
    inputs = pack_inputs(spec, threads=None if resources.gpus else resources.cpus)
    send_parcel(node, "inputs", "", inputs.files)
    latest = mirror.send_state(TrainRecipe.from_dict(spec["members"][0]["recipe"]).most_recent_k)
    if latest is not None:
        logger.info("sent the checkpoints of the run so far, the last of step %d", latest)
    stop.check()
    node.call("start", inputs.spec, model, resources.cpus, resources.gpus)


def _send_base(node: RemoteNode, name: str, stop: StopRequest) -> tuple[str, str] | None:
    """See to it that the node has the base; return its digest and file, None where its name is enough."""
    files = local_base(name)
    if not files:
        logger.info("the base model %s is looked for on the node", name)
        return None
    parcel = Parcel.of(files)
    waits_since: float | None = None
    while (answer := node.call("seek_model", parcel.digest)) == "busy":
        if waits_since is None:
            waits_since = time.monotonic()
            logger.info("another run is sending the base model to this node; waiting for it")
        stop.check()
        time.sleep(_PATIENCE_S)
    if answer == "send":
        logger.info("sending the base model, %.1f MB, which the node then keeps", parcel.size_bytes / 1e6)
        send_parcel(node, "model", parcel.digest, files, parcel)
    return parcel.digest, next(iter(files)) if Path(name).is_file() else ""


def _follow(node: RemoteNode, mirror: Mirror, run_dir: Path, stop: StopRequest) -> int:
    """Bring home what the worker writes until it ends; return its exit code."""
    is_told = False
    while True:
        if stop.is_set and not is_told:
            logger.warning("asked to stop: the worker is asked to save")
            node.call("stop")
            is_told = True
        view = mirror.update()
        if view.is_last:
            break
        if view.exit_code is None:
            time.sleep(_LOOK_S)
    assert view.exit_code is not None
    if view.exit_code == 0:
        write_json_atomic(run_dir / RESULT, result_here(node.call("result"), run_dir))
    elif not is_told:
        logger.error("the worker on %s ended with exit code %d", node.name, view.exit_code)
    return view.exit_code


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    # What Ray would do at exit may wait for a cluster that is gone.
    logging.shutdown()
    os._exit(exit_code)
