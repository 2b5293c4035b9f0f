"""A worker that stays: spec after spec in one process, the base loaded once.

Requests come in on the Unix socket that is the process's standard input, one JSON object a line,
with two open files: the log of that spec and the lock on it. The same socket takes the replies:
`{"begun": SPEC}` at once, `{"exit_code": N, "stays": true}` at the end. A spec is done by the same
code as in a process of its own and leaves the same files.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tools.engine.worker import EXIT_FAILED, EXIT_STOPPED, StopFlag, run_worker

if TYPE_CHECKING:
    from tools.engine.keeper import BaseKeeper
    from tools.engine.process_state import ProcessState

__all__ = ["IDLE_S", "serve"]

logger = logging.getLogger(__name__)

IDLE_S: Final = 600.0
_LOOK_S: Final = 1.0
"""Seconds between two looks at the machine's memory while nothing is asked."""
_USAGE: Final = 2


def serve(*, idle_s: float = IDLE_S) -> int:
    """Do the specs that come in until the socket closes, SIGTERM, or idle_s without one.

    Returns:
        0, or EXIT_STOPPED after SIGTERM, or EXIT_FAILED where this process is no longer fit.
    """
    if not stat.S_ISSOCK(os.fstat(0).st_mode):
        logger.error("standard input is no Unix socket; tools.lanes.resident starts a resident worker")
        return _USAGE
    with _own_standard_input() as link, _Bell() as bell:
        return _Resident(link, bell, StopFlag.on_signal(), idle_s).run()


@dataclass(frozen=True)
class _Request:
    spec: Path
    folder: str
    log: int
    lock: int


class _Resident:
    def __init__(self, link: socket.socket, bell: _Bell, stop: StopFlag, idle_s: float) -> None:
        self._link = link
        self._bell = bell
        self._stop = stop
        self._idle_s = idle_s
        self._keeper: BaseKeeper | None = None
        self._state: ProcessState | None = None

    def run(self) -> int:
        while self._wait():
            request = _receive(self._link)
            if request is None:
                return 0
            _send(self._link, {"begun": str(request.spec)})
            exit_code, stays = self._do(request)
            # Open until here, so that the spec stays locked should the asker die meanwhile.
            os.close(request.lock)
            if not _send(self._link, {"exit_code": exit_code, "stays": stays}):
                return EXIT_STOPPED
            if not stays:
                return exit_code
        return EXIT_STOPPED if self._stop.is_set else 0

    def _wait(self) -> bool:
        """Wait for a request or the end of the stream; False when it is time to leave."""
        deadline = time.monotonic() + self._idle_s
        while not self._stop.is_set and (left := deadline - time.monotonic()) > 0:
            if self._bell.wait(self._link, min(left, _LOOK_S)):
                return True
            if self._keeper is not None:
                self._keeper.drop_if_short()
        return False

    def _do(self, request: _Request) -> tuple[int, bool]:
        """Run a spec and return its exit code, and whether this process is fit for another one."""
        _log_to(request.log)
        try:
            self._prepare(request.folder)
            exit_code = run_worker(request.spec, stop=self._stop, base_source=self._keeper)
            assert self._keeper is not None
            return exit_code, self._keeper.tidy() and not self._stop.is_set
        except Exception:
            # It would end a process of its own; what it left behind ends with this one.
            logger.exception("the worker failed")
        return EXIT_STOPPED if self._stop.is_set else EXIT_FAILED, False

    def _prepare(self, folder: str) -> None:
        # Only now: what is missing belongs into the log of a spec.
        from tools.engine.keeper import BaseKeeper
        from tools.engine.memory import reset_peak_memory
        from tools.engine.process_state import ProcessState

        if self._keeper is None or self._state is None:
            self._keeper, self._state = BaseKeeper(), ProcessState.capture()
        self._state.restore(folder)
        reset_peak_memory()


class _Bell:
    """Wakes a wait when a signal arrives, however short before the wait it came."""

    def __init__(self) -> None:
        self._bell, self._ring = os.pipe()
        for descriptor in (self._bell, self._ring):
            os.set_blocking(descriptor, False)

    def __enter__(self) -> _Bell:
        signal.set_wakeup_fd(self._ring, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        os.close(self._bell)
        os.close(self._ring)

    def wait(self, link: socket.socket, timeout_s: float) -> bool:
        """Return whether the link has something to read, after timeout_s at the latest."""
        heard: list[Any] = [link, self._bell]
        ready, _, _ = select.select(heard, [], [], timeout_s)
        if self._bell in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._bell, 512)
        return link in ready


@contextlib.contextmanager
def _own_standard_input() -> Iterator[socket.socket]:
    """Take the socket from standard input, where code of a spec could read from it."""
    with socket.socket(fileno=os.dup(0)) as link:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        yield link


def _receive(link: socket.socket) -> _Request | None:
    """Return the next request, None when there are no more."""
    data = b""
    files: list[int] = []
    while not data.endswith(b"\n"):
        try:
            block, more, _, _ = socket.recv_fds(link, 65536, 2)
        except ConnectionError:
            return None
        files += more
        if not block:
            return None
        data += block
    for descriptor in files:
        os.set_inheritable(descriptor, False)
    asked = json.loads(data)
    log, lock = files
    return _Request(Path(asked["spec"]), str(asked["folder"]), log, lock)


def _send(link: socket.socket, reply: dict[str, object]) -> bool:
    """Send a line; False when nobody is there to read it."""
    try:
        link.sendall(json.dumps(reply).encode() + b"\n")
    except ConnectionError:
        return False
    return True


def _log_to(descriptor: int) -> None:
    """Send standard output and error, that of native code too, to a spec's log."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
