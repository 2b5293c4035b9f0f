"""`python -P -m tools.lanes.ray.engine BASE SPEC`: a worker whose base lies elsewhere than its name says.

A node keeps bases under their digests, while checkpoints and adapters carry the name that the base
has where the run was started: there they are read again.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import threading
from typing import TYPE_CHECKING

# Sets how the worker's threads wait, as for every worker.
import tools.engine.__main__  # noqa: F401
from tools.engine.spec import TrainSpec, read_spec
from tools.engine.worker import EXIT_FAILED, run_worker
from tools.errors import BakehouseError
from tools.hardware import check_fit
from tools.recipe import Quantization

if TYPE_CHECKING:
    from tools.engine.base import LoadedBase

logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Run the worker on a spec, if this node has the memory for it; logs go to stderr.

    Standard input is a pipe whose other end the node's side holds: the worker ends when it closes.
    """
    place, spec_path = arguments
    threading.Thread(target=_end_with_input, daemon=True).start()

    def load(name: str, dtype: str, quantization: Quantization) -> LoadedBase:
        from tools.engine.base import load_base

        return dataclasses.replace(load_base(place, dtype, quantization=quantization), name=name)

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        _check_memory(place, spec_path)
    except BakehouseError as err:
        logger.error("%s: %s", type(err).__name__, err)
        return EXIT_FAILED
    return run_worker(spec_path, base_source=load)


def _end_with_input() -> None:
    # Ray kills the children of a process that it ends, the guard of this worker among them.
    while os.read(sys.stdin.fileno(), 1):
        continue
    os._exit(EXIT_FAILED)


def _check_memory(place: str, spec_path: str) -> None:
    spec = read_spec(spec_path)
    assert isinstance(spec, TrainSpec)
    for member in spec.members:
        check_fit(member.recipe.replace(base_model=place))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
