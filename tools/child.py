"""A child process in a group of its own, which is ended when its parent dies."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Literal, Protocol, Self

__all__ = [
    "Child",
    "ChildEnd",
    "Watched",
    "child_environment",
    "is_alive",
    "run_stop_command",
    "started_at",
    "tail",
    "termination_as_exit",
    "watch",
]

GRACE_S: Final = 30.0
"""Seconds between the request to end and the kill: long enough to save a checkpoint."""

_LOG = logging.getLogger(__name__)
_SLICE_S: Final = 0.5
_CLOCK_SLACK_S: Final = 5.0


@dataclass(frozen=True)
class ChildEnd:
    """How a watched child came to its end."""

    exit_code: int
    reason: Literal["exited", "stopped", "timed out"]
    wall_s: float


class Watched(Protocol):
    """Work in another process that `watch` can wait for."""

    def poll(self) -> int | None:
        """Return the exit code, or None while the work goes on."""
        ...

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for the end; None when timeout_s passed first."""
        ...

    def stop(self, grace_s: float = GRACE_S) -> int:
        """Ask for the end, enforce it after grace_s, and return the exit code."""
        ...


class Child:
    """A running command, its output in a log file.

    It runs under a small guard process in a session of its own, so that a signal reaches
    all of its group and a Ctrl-C in the terminal reaches none of it. The guard ends the
    group when this process dies, however it dies. As a context manager it leaves nothing
    running behind.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        lifeline: int,
        log_path: Path,
        stop_argv: Sequence[str] | None = None,
    ) -> None:
        self._process = process
        self._stop_argv = stop_argv
        self._lifeline: int | None = lifeline
        self.log_path = log_path

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        log_path: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int = subprocess.DEVNULL,
        keep_fds: Sequence[int] = (),
        heartbeat: Path | None = None,
        stop_argv: Sequence[str] | None = None,
        grace_s: float = GRACE_S,
    ) -> Child:
        """Start argv.

        Args:
            argv: The command; no shell reads it.
            log_path: Standard output and error are appended here.
            env: Variables added to this process's own.
            cwd: Folder to start in.
            stdin: Open file that the command reads; nothing by default.
            keep_fds: Open files that the command holds on to, a lock for instance.
            heartbeat: sft-progress file that the guard closes truthfully when this process dies.
            stop_argv: A command that ends what signals to the group do not reach; it is run
                first whenever argv has to be ended, here or by the guard.
            grace_s: What an orphaned command gets between the request to end and the kill.
        """
        log_path.parent.mkdir(parents=True, exist_ok=True)
        reader, writer = os.pipe()
        guard = [sys.executable, "-P", "-m", "tools.lifeline", "--fd", str(reader), "--grace", str(grace_s)]
        for descriptor in keep_fds:
            guard += ["--keep", str(descriptor)]
        if heartbeat is not None:
            guard += ["--heartbeat", str(heartbeat)]
        if stop_argv is not None:
            guard += ["--stop", json.dumps(list(stop_argv))]
        try:
            with log_path.open("ab") as log:
                process = subprocess.Popen(
                    [*guard, "--", *argv],
                    stdin=stdin,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=child_environment(env),
                    cwd=cwd,
                    pass_fds=(reader, *keep_fds),
                    start_new_session=True,
                )
        except BaseException:
            os.close(writer)
            raise
        finally:
            os.close(reader)
        return cls(process, writer, log_path, stop_argv)

    @property
    def pid(self) -> int:
        """The guard's process id, which is also the group's."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs. A signal n shows as 128 + n."""
        return _shell_code(self._process.poll())

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for the end and return the exit code, or None when timeout_s passed first."""
        try:
            return _shell_code(self._process.wait(timeout_s))
        except subprocess.TimeoutExpired:
            return None

    def stop(self, grace_s: float = GRACE_S) -> int:
        """Ask the whole group to end, kill it after grace_s, and return the exit code."""
        try:
            if self._stop_argv is not None and self._process.poll() is None:
                run_stop_command(self._stop_argv, self.log_path)
            self._signal(signal.SIGTERM)
            self.wait(grace_s)
        finally:
            # A second Ctrl-C during the wait lands here too: nothing is left running.
            if self._process.poll() is None:
                self._signal(signal.SIGKILL)
            self._process.wait()
        return _shell_code(self._process.returncode) or 0

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            if self._lifeline is not None:
                os.close(self._lifeline)
                self._lifeline = None


def watch(
    child: Watched,
    *,
    interval_s: float,
    on_poll: Callable[[float], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    timeout_s: float | None = None,
    grace_s: float = GRACE_S,
    sleep: Callable[[float], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> ChildEnd:
    """Wait for child to end, looking at the world meanwhile.

    Args:
        child: What to watch; its caller holds it as a context manager.
        interval_s: Seconds between calls of on_poll; 0 calls it never.
        on_poll: Called with the seconds since the watch began.
        should_stop: Asked about twice a second; True ends the child.
        timeout_s: The child is ended after this many seconds.
        grace_s: Seconds between the request to end and the kill.
        sleep: Takes the place of waiting for the child between looks.
        clock: Monotonic seconds.
    """
    began = clock()
    due = began + interval_s
    pause = min(interval_s, _SLICE_S) or _SLICE_S
    while (code := child.poll()) is None:
        now = clock()
        if should_stop is not None and should_stop():
            return ChildEnd(child.stop(grace_s), "stopped", clock() - began)
        if timeout_s is not None and now - began >= timeout_s:
            return ChildEnd(child.stop(grace_s), "timed out", clock() - began)
        if interval_s and on_poll is not None and now >= due:
            on_poll(now - began)
            due = now + interval_s
        if sleep is not None:
            sleep(pause)
        else:
            child.wait(pause)
    return ChildEnd(code, "exited", clock() - began)


def run_stop_command(argv: Sequence[str], log_path: Path | None, *, limit_s: float = 90.0) -> None:
    """Run a stop command, its output in the log; its failure is logged and no more."""
    try:
        with contextlib.ExitStack() as stack:
            log = None if log_path is None else stack.enter_context(log_path.open("ab"))
            subprocess.run(
                list(argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=limit_s, check=True
            )
    except (OSError, subprocess.SubprocessError) as err:
        _LOG.warning("the command that ends the trainer failed; it may still run: %s", err)


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment, with extra, in which children import this very package.

    `python -P` keeps the working folder off the import path, but not what PYTHONPATH
    names: ours goes first, so that no other package called `tools` can take its place.
    """
    home = str(Path(__file__).resolve().parent.parent)
    others = os.environ.get("PYTHONPATH")
    found = {**os.environ, **(extra or {})}
    found["PYTHONPATH"] = os.pathsep.join([home, others]) if others else home
    found["PYTHONUNBUFFERED"] = "1"
    return found


def started_at(pid: int) -> float | None:
    """Return when process pid started, in seconds since the epoch; None when there is none."""
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return float(process.create_time())
    except (psutil.Error, ValueError, OverflowError):
        return None


def is_alive(pid: int | None, started: float | None) -> bool:
    """Return whether pid still is the process that started then, and not a later one of that number."""
    if pid is None or started is None or pid <= 0:
        return False
    now = started_at(pid)
    return now is not None and abs(now - started) <= _CLOCK_SLACK_S


def tail(path: str | Path, *, lines: int = 20, max_bytes: int = 8192) -> str:
    """Return the last lines of a text file, or an empty text when it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max_bytes))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


@contextlib.contextmanager
def termination_as_exit() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as SystemExit, so that cleaning up happens.

    Only in the main thread, and only where the program has not chosen a handler itself.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    taken = [
        number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in taken:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _shell_code(code: int | None) -> int | None:
    return 128 - code if code is not None and code < 0 else code
