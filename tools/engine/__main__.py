"""`python -P -m tools.engine SPEC.json`: run one worker."""

from __future__ import annotations

import logging
import os
import sys

from tools.engine.worker import run_worker

# Read once, when torch loads its thread pool. Threads that spin while they wait make a worker
# several times slower as soon as anything else wants the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main(arguments: list[str]) -> int:
    """Run the worker on the one argument, a spec file; logs go to stderr."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -P -m tools.engine SPEC.json\n")
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    return run_worker(arguments[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
