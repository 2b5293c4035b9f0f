"""`python -P -m tools.lanes.ray.here FILE`: a Ray cluster of this machine alone, while this process lives.

It is a process of its own, so that the signal which asks a run to stop does not take the cluster
away while the run is being saved. Started by `tools.child`, it ends the group that it was given.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import NoReturn

from tools.files import write_text_atomic


def main(arguments: list[str]) -> NoReturn:
    """Start the cluster, write its address and wait to be ended."""
    import ray

    options = _parse(arguments)
    ray.init(
        address="local",
        num_cpus=options.cpus,
        object_store_memory=options.store_mb << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="WARNING",
        _temp_dir=options.folder,
    )
    signal.signal(signal.SIGTERM, _end_all)
    write_text_atomic(options.address_file, ray.get_runtime_context().gcs_address)
    while True:
        signal.pause()


def _end_all(*_: object) -> None:
    # Asked to end by themselves, as Ray's own handler does, its processes take long or stay for good.
    if os.getpgrp() == os.getppid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(128 + signal.SIGTERM)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -P -m tools.lanes.ray.here", description=__doc__)
    parser.add_argument("address_file", help="where the cluster's address is written once it answers")
    parser.add_argument("--folder", required=True, help="Ray's own folder; its path must be short")
    parser.add_argument("--cpus", type=int, default=None, help="CPUs to offer; by default all")
    parser.add_argument("--store-mb", type=int, default=256, help="memory for what is sent")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
