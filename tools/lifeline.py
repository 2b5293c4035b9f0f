"""The guard of a child process: `python -P -m tools.lifeline --fd N -- COMMAND ...`.

It waits for two things: the command's end, whose exit code it passes on, and the closing of
the pipe that its own parent holds open. The pipe closes when the parent dies, also by a kill
that nobody can catch; the command is then asked to end, and killed after a grace time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from tools.child import run_stop_command
from tools.heartbeat import close_orphan


def main(argv: list[str] | None = None) -> int:
    """Run the command under guard and return its exit code (128 + n for signal n)."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    bell, ring = os.pipe()
    for descriptor in (bell, ring):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
    # Handlers and not SIG_IGN: an ignored signal would stay ignored in the command.
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _heard)
    try:
        command = subprocess.Popen(options.command, pass_fds=tuple(options.keep))
    except OSError as err:
        sys.stderr.write(f"cannot start {options.command[0]!r}: {err}\n")
        return 127
    while command.poll() is None:
        ready, _, _ = select.select([options.fd, bell], [], [])
        if options.fd in ready:
            return _end_orphan(command, options)
        with contextlib.suppress(BlockingIOError):
            os.read(bell, 512)
    return _shell_code(command.returncode)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools.lifeline", description="run a command that ends with us")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--grace", type=float, default=30.0)
    parser.add_argument("--keep", type=int, action="append", default=[])
    parser.add_argument("--heartbeat", type=Path, default=None)
    parser.add_argument("--stop", type=json.loads, default=None)
    # Split here and not by argparse, whose reading of a second `--` differs between versions.
    split = argv.index("--") if "--" in argv else len(argv)
    options = parser.parse_args(argv[:split])
    options.command = argv[split + 1 :]
    if not options.command:
        parser.error("no command after --")
    return options


def _heard(*_: object) -> None:
    """Do nothing: the wake-up pipe has what matters."""


def _end_orphan(command: subprocess.Popen[bytes], options: argparse.Namespace) -> int:
    sys.stderr.write("the process that started this run is gone; ending the run\n")
    if options.stop is not None:
        run_stop_command(options.stop, None)
    os.killpg(os.getpgrp(), signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        command.wait(options.grace)
    if options.heartbeat is not None:
        close_orphan(options.heartbeat)
    if command.poll() is None:
        os.killpg(os.getpgrp(), signal.SIGKILL)
    return _shell_code(command.wait())


def _shell_code(code: int) -> int:
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main())
