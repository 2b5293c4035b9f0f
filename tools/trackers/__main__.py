"""`python -P -m tools.trackers TRACKER SPEC.json`: a sidecar, which mirrors until its input ends.

It shares nothing with the training but the files in the run's folder, so that whatever becomes
of a tracker, its package or its network becomes of this process alone.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tools.trackers.mirror import Mirror
from tools.trackers.secret_free import SecretFreeFormatter
from tools.trackers.tracked_run import SidecarSpec
from tools.trackers.tracker import Ending

__all__ = ["main"]

logger = logging.getLogger("tools.trackers")

_INTERVAL_S: Final = 1.0
_ENDINGS: Final[Mapping[str, Ending]] = {
    "done": "finished",
    "stopped_early": "finished",
    "halted": "finished",
    "failed": "failed",
    "stopped": "killed",
}


def main(argv: list[str]) -> int:
    """Mirror the runs of a spec into a tracker; 1 where something could not be told."""
    tracker, spec = argv[0], SidecarSpec.read(Path(argv[1]))
    _keep_own_log()
    try:
        return _mirror(tracker, spec)
    except Exception:
        # Nobody sees what the interpreter itself would print.
        logger.exception("the sidecar failed")
        return 1


def _mirror(tracker: str, spec: SidecarSpec) -> int:
    mirrors = [Mirror(run, tracker) for run in spec.runs]
    said = _wait(mirrors)
    endings = _member_endings(spec.result_path)
    for run, mirror in zip(spec.runs, mirrors, strict=True):
        mirror.finish(endings.get(run.member, said))
    return 1 if any(mirror.is_behind for mirror in mirrors) else 0


def _wait(mirrors: list[Mirror]) -> Ending:
    """Mirror until the parent says how it ended, or is gone."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    heard = b""
    while not stopped:
        for mirror in mirrors:
            mirror.pump()
        if select.select([0], [], [], _INTERVAL_S)[0]:
            block = os.read(0, 64)
            heard += block
            if not block:
                break
    return "finished" if heard == b"finished" else "failed" if heard == b"failed" else "killed"


def _member_endings(path: str | None) -> dict[str, Ending]:
    """Return how the worker says that each member ended; nothing where it says nothing."""
    try:
        members = json.loads(Path(path or "").read_text(encoding="utf-8"))["members"]
        return {entry["trial_id"]: _ENDINGS[entry["status"]] for entry in members}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _keep_own_log() -> None:
    """Log to what was standard error, and let nothing else write there: packages print addresses."""
    handler = logging.StreamHandler(os.fdopen(os.dup(2), "w", encoding="utf-8"))
    handler.setFormatter(SecretFreeFormatter(os.environ))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
