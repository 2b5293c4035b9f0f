"""The local lane's engine in one process that stays, so that the base is loaded once."""

from __future__ import annotations

import abc
import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tools.child import GRACE_S, Child, ChildEnd, watch
from tools.errors import TrainError
from tools.lanes.local import run_spec

__all__ = ["ResidentEngine", "WarmEngine"]

_IDLE_S: Final = 600.0
_LEAVE_S: Final = 10.0
"""Seconds that an idle process gets to leave by itself."""


class WarmEngine(abc.ABC):
    """Keeps processes between specs; as a context manager it leaves nothing running behind."""

    @abc.abstractmethod
    def release(self) -> None:
        """End what runs, and so give its memory back; the next spec starts it anew."""

    def close(self) -> None:
        """End what runs, if anything does."""
        self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ResidentEngine(WarmEngine):
    """Runs specs like `run_engine`, one after the other in a process that keeps the base loaded.

    The process is started by the first spec, and anew after it was stopped, died, sat idle or
    found its device or itself unfit; a spec whose process dies fails, the next one does not. It
    is a group of its own and ends when this very process dies, however it dies.
    """

    def __init__(self, *, idle_s: float = _IDLE_S, environment: Mapping[str, str] | None = None) -> None:
        """Start nothing yet.

        Args:
            idle_s: The process leaves after this many seconds without a spec.
            environment: Variables that the process has besides this one's own.
        """
        self._idle_s = idle_s
        self._extra = dict(environment or {})
        self._turn = threading.RLock()
        self._process: _Process | None = None

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
        """Run the engine's worker on spec and return the result that it wrote.

        Arguments, result and errors are those of `run_engine`. A second thread waits its turn.
        """

        def run(path: Path, lock: int) -> ChildEnd:
            try:
                return watch(
                    self._begin(path, lock, log_path, grace_s),
                    interval_s=poll_s,
                    on_poll=on_poll,
                    should_stop=should_stop,
                    timeout_s=timeout_s,
                    grace_s=grace_s,
                )
            except BaseException:
                if self._process is not None:
                    self._process.stop(grace_s)
                raise

        with self._turn:
            return run_spec(spec, run, spec_path=spec_path, log_path=log_path, timeout_s=timeout_s)

    @property
    def pid(self) -> int | None:
        """The guard's process id, which is also the group's; None when no process is there."""
        return None if self._process is None or self._process.is_over else self._process.pid

    def release(self) -> None:
        """End the process, and so give its memory back; the next spec starts another one."""
        with self._turn:
            self._release()

    def _begin(self, path: Path, lock: int, log_path: Path, grace_s: float) -> _Process:
        """Hand the spec to the process, or to a new one where there is none that takes it."""
        known = self._process
        if known is not None:
            # Taken is not begun: it may have left, idle for too long, with the spec unread.
            if known.is_current() and known.take(path, lock, log_path) and known.has_begun():
                return known
            self._release()
        self._process = _Process.start(log_path, self._extra, idle_s=self._idle_s, grace_s=grace_s)
        # One that dies before it takes the spec shows as an end like any other.
        self._process.take(path, lock, log_path)
        return self._process

    def _release(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.leave()


class _Process:
    """A resident worker, seen from here; as a `Watched`, the one spec that it has in hand."""

    def __init__(self, child: Child, link: socket.socket) -> None:
        self._child = child
        self._link = link
        self._environment = dict(os.environ)
        self._received = b""
        self._code: int | None = None
        self.is_over = False

    @classmethod
    def start(cls, log_path: Path, extra: Mapping[str, str], *, idle_s: float, grace_s: float) -> _Process:
        ours, theirs = socket.socketpair()
        argv = (sys.executable, "-P", "-m", "tools.engine", "--resident", "--idle", str(idle_s))
        try:
            child = Child.start(argv, log_path=log_path, env=extra, stdin=theirs.fileno(), grace_s=grace_s)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(child, ours)

    @property
    def pid(self) -> int:
        return self._child.pid

    def is_current(self) -> bool:
        """Whether it runs, in the environment that a new process would get."""
        return not self.is_over and self._child.poll() is None and self._environment == dict(os.environ)

    def take(self, path: Path, lock: int, log_path: Path) -> bool:
        """Give it a spec, the open files of its log and lock with it; False when nobody is there."""
        asked = json.dumps({"spec": str(path), "folder": os.getcwd()}).encode() + b"\n"
        self._link.settimeout(None)
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            try:
                sent = socket.send_fds(self._link, [asked], [log.fileno(), lock])
                self._link.sendall(asked[sent:])
            except ConnectionError:
                self._end()
                return False
        self._code = None
        return True

    def has_begun(self) -> bool:
        """Whether it says, within a few seconds, that it has the spec in hand."""
        try:
            line = self._next_line(_LEAVE_S)
        except TimeoutError:
            return False
        return line is not None and "begun" in line

    def poll(self) -> int | None:
        """Return the spec's exit code, None while it runs."""
        return self.wait(0.0)

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for the spec's end and return its exit code, None when timeout_s passed first."""
        if self._code is not None:
            return self._code
        try:
            line = self._next_line(timeout_s)
        except (TimeoutError, BlockingIOError):
            return None
        if line is not None and "exit_code" in line:
            self._code = int(line["exit_code"])
            if not line["stays"]:
                self.leave()
        return self._code

    def stop(self, grace_s: float = GRACE_S) -> int:
        """End it, the spec in hand saved where it can be, and return the exit code."""
        try:
            self._child.stop(grace_s)
        finally:
            self._end()
        return self._code or 0

    def leave(self) -> None:
        """Let it go, and see to it that it is gone."""
        # It reads the end of the stream and leaves.
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_WR)
        self._child.wait(_LEAVE_S)
        self._end()

    def _next_line(self, timeout_s: float | None) -> dict[str, Any] | None:
        """Return the next reply; None when it died instead, its exit code known then.

        Raises:
            TimeoutError, BlockingIOError: nothing came within timeout_s.
        """
        self._link.settimeout(timeout_s)
        while b"\n" not in self._received:
            try:
                block = self._link.recv(4096)
            except ConnectionError:
                block = b""
            if not block:
                self._child.wait(_LEAVE_S)
                self._end()
                return None
            self._received += block
        line, _, self._received = self._received.partition(b"\n")
        found = json.loads(line)
        if not isinstance(found, dict):
            raise TrainError(f"the resident engine replied {line!r}; its log: {self._child.log_path}")
        return found

    def _end(self) -> None:
        """Close both ends; whatever still runs is ended, by force in the end."""
        if self.is_over:
            return
        self.is_over = True
        self._link.close()
        with self._child:
            pass
        if self._code is None:
            self._code = self._child.poll()
