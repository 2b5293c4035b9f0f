"""Locks: one flywheel per workspace, refused with a name, and gone with its process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tools.errors import LockHeldError
from tools.lock import hold_lock, hold_workspace, workspace_holder

HOLD = """
import subprocess, sys
from pathlib import Path
from tools.lock import hold_lock, hold_workspace
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a process that prints a line once it holds its lock."""
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLD + code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline().startswith("held")
    return child


HOLD_WORKSPACE = """
with hold_workspace(sys.argv[1], what="flywheel of r1", clock=lambda: "2026-11-20T12:00:00Z"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_holder_is_told_who_holds_the_workspace(tmp_path: Path) -> None:
    child = start(HOLD_WORKSPACE, str(tmp_path))
    told = rf"process {child.pid} on .* \(flywheel of r1, since 2026-11-20T12:00:00Z\)"
    with pytest.raises(LockHeldError, match=told), hold_workspace(tmp_path, what="second"):
        pass
    holder = workspace_holder(tmp_path)
    assert holder is not None
    assert (holder.pid, holder.what) == (child.pid, "flywheel of r1")
    child.communicate("")
    assert workspace_holder(tmp_path) is None
    with hold_workspace(tmp_path, what="second") as mine:
        assert mine.pid == os.getpid()


def test_the_same_process_cannot_hold_a_workspace_twice(tmp_path: Path) -> None:
    with (
        hold_workspace(tmp_path, what="first"),
        pytest.raises(LockHeldError, match=r"\(first, since"),
        hold_workspace(tmp_path, what="second"),
    ):
        pass


def test_a_killed_holder_blocks_nobody_whatever_the_file_still_says(tmp_path: Path) -> None:
    child = start(HOLD_WORKSPACE, str(tmp_path))
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert json.loads((tmp_path / "lock").read_text())["pid"] == child.pid
    assert workspace_holder(tmp_path) is None
    with hold_workspace(tmp_path, what="next") as holder:
        assert holder.what == "next"


def test_a_program_that_the_holder_started_does_not_keep_the_workspace(tmp_path: Path) -> None:
    code = """
with hold_workspace(sys.argv[1], what="parent"):
    child = subprocess.Popen(["sleep", "60"])
    print("held", child.pid, flush=True)
    sys.stdin.read()
"""
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLD + code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    orphan = int(child.stdout.readline().split()[1])
    child.kill()
    child.wait()
    try:
        with hold_workspace(tmp_path, what="next"):
            pass
    finally:
        os.kill(orphan, signal.SIGKILL)
        child.communicate()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]", b'{"pid": "x"}'])
def test_a_damaged_lock_file_is_no_obstacle(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lock").write_bytes(content)
    assert workspace_holder(tmp_path) is None
    with hold_workspace(tmp_path, what="me"):
        (tmp_path / "lock").write_bytes(content)
        holder = workspace_holder(tmp_path)
        assert holder is not None
        assert holder.what == "unknown"


def test_a_workspace_without_state_is_free(tmp_path: Path) -> None:
    assert workspace_holder(tmp_path / "missing") is None
    assert not (tmp_path / "missing").exists()
    with hold_workspace(tmp_path / "missing", what="me"):
        assert workspace_holder(tmp_path / "missing") is not None


def test_an_heir_keeps_the_lock_of_a_killed_parent_until_it_ends(tmp_path: Path) -> None:
    code = """
with hold_lock(Path(sys.argv[1]), timeout_s=1) as descriptor:
    child = subprocess.Popen(["cat"], stdin=sys.stdin, pass_fds=(descriptor,))
    print("held", child.pid, flush=True)
    child.wait()
"""
    path = tmp_path / "git.lock"
    child = start(code, str(path))
    child.kill()
    child.wait()
    with pytest.raises(LockHeldError, match=r"still held after 0\.2 s"), hold_lock(path, timeout_s=0.2):
        pass
    child.communicate("")
    with hold_lock(path, timeout_s=10):
        pass


def test_an_heir_left_in_the_background_keeps_nothing_once_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "git.lock"
    with hold_lock(path, timeout_s=1) as descriptor:
        background = subprocess.Popen(["sleep", "60"], pass_fds=(descriptor,))
    try:
        with hold_lock(path, timeout_s=0.1):
            pass
    finally:
        background.kill()
        background.wait()
