"""`python -P -m tools.engine SPEC.json`: run one worker. With --resident: one after the other."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from tools.engine.resident import IDLE_S, serve
from tools.engine.worker import run_worker

# Read once, when torch loads its thread pool. Threads that spin while they wait make a worker
# several times slower as soon as anything else wants the same cores, and threads that sleep at
# once cost a quarter on an idle machine; so they spin for some microseconds and then sleep.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def main(arguments: list[str]) -> int:
    """Run the worker on a spec file, or on those that come in on a socket; logs go to stderr."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    if not options.resident:
        return run_worker(options.spec)
    exit_code = serve(idle_s=options.idle)
    # Taking torch apart takes a second and more, and frees nothing that the system would not.
    logging.shutdown()
    os._exit(exit_code)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -P -m tools.engine", description="Run the engine's worker.")
    parser.add_argument("spec", nargs="?", help="a JSON file that says what to do")
    parser.add_argument(
        "--resident",
        action="store_true",
        help="take specs from the Unix socket on standard input and keep the base loaded between them",
    )
    parser.add_argument(
        "--idle", type=float, default=IDLE_S, metavar="S", help="a resident leaves after S idle seconds"
    )
    options = parser.parse_args(arguments)
    if options.resident == (options.spec is not None):
        parser.error("give a spec file, or --resident and no file")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
