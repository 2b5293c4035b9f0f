from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.child import Child, child_environment, is_alive, started_at, tail, watch


def _until(holds: Callable[[], object], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "the awaited event did not come"
        time.sleep(0.02)


def _pid_in(path: Path) -> int:
    _until(lambda: path.exists() and path.read_text(encoding="utf-8").strip())
    return int(path.read_text(encoding="utf-8"))


def test_output_and_exit_code_come_back(tmp_path):
    with Child.start(["sh", "-c", "echo out; echo err >&2; exit 7"], log_path=tmp_path / "log") as child:
        assert child.wait(20) == 7
    assert sorted(tail(tmp_path / "log").split()) == ["err", "out"]


def test_a_command_killed_by_a_signal_shows_128_plus_it(tmp_path):
    with Child.start(["sh", "-c", "kill -9 $$"], log_path=tmp_path / "log") as child:
        assert child.wait(20) == 137


def test_a_command_that_does_not_exist_is_127_and_says_so(tmp_path):
    with Child.start(["no-such-command"], log_path=tmp_path / "log") as child:
        assert child.wait(20) == 127
    assert "no-such-command" in tail(tmp_path / "log")


def test_arguments_arrive_as_they_are(tmp_path):
    hostile = ["--", "-x", "a b", "$(touch /tmp/owned)", "'\"", "ü\n"]
    code = "import sys, json; open(sys.argv[1], 'w').write(json.dumps(sys.argv[2:]))"
    with Child.start(
        [sys.executable, "-c", code, str(tmp_path / "got"), *hostile], log_path=tmp_path / "log"
    ) as child:
        assert child.wait(20) == 0
    assert json.loads((tmp_path / "got").read_text(encoding="utf-8")) == hostile


def test_stop_asks_first_and_lets_the_command_save(tmp_path):
    script = (
        f"trap 'echo saved > {tmp_path}/saved; exit 3' TERM; echo $$ > {tmp_path}/pid; "
        "while :; do sleep 0.05; done"
    )
    with Child.start(["bash", "-c", script], log_path=tmp_path / "log") as child:
        _pid_in(tmp_path / "pid")
        assert child.stop(grace_s=20) == 3
    assert (tmp_path / "saved").exists()


def test_stop_kills_what_will_not_end_and_all_below_it(tmp_path):
    script = (
        "trap '' TERM; "
        f"(trap '' TERM; echo $BASHPID > {tmp_path}/below; while :; do sleep 0.05; done) & "
        f"echo $$ > {tmp_path}/pid; wait"
    )
    with Child.start(["bash", "-c", script], log_path=tmp_path / "log") as child:
        pids = [_pid_in(tmp_path / "pid"), _pid_in(tmp_path / "below")]
        child.stop(grace_s=0.2)
    _until(lambda: all(started_at(pid) is None for pid in pids))


def test_leaving_the_block_by_an_exception_leaves_nothing_running(tmp_path):
    def broken_caller() -> None:
        argv = ["sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 1000"]
        with Child.start(argv, log_path=tmp_path / "log"):
            _pid_in(tmp_path / "pid")
            raise RuntimeError("the caller broke")

    with pytest.raises(RuntimeError, match="the caller broke"):
        broken_caller()
    assert started_at(_pid_in(tmp_path / "pid")) is None


def test_a_killed_parent_takes_the_command_with_it(tmp_path):
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from tools.child import Child\n"
            "folder = Path(sys.argv[1])\n"
            'script = f\'trap "echo saved > {folder}/saved; exit 0" TERM; echo $$ > {folder}/pid; '
            "while :; do sleep 0.05; done'\n"
            "child = Child.start(['bash', '-c', script], log_path=folder / 'log')\n"
            "time.sleep(1000)",
            str(tmp_path),
        ],
        env=child_environment(),
    )
    pid = _pid_in(tmp_path / "pid")
    parent.kill()
    parent.wait()
    _until(lambda: started_at(pid) is None)
    assert (tmp_path / "saved").exists()
    _until(lambda: "gone" in tail(tmp_path / "log"))


def test_watch_looks_while_the_command_runs_and_stops_on_request(tmp_path):
    looks: list[float] = []
    with Child.start(["sleep", "1000"], log_path=tmp_path / "log") as child:
        end = watch(child, interval_s=0.01, on_poll=looks.append, should_stop=lambda: len(looks) >= 3)
    assert (end.reason, len(looks)) == ("stopped", 3)
    assert looks == sorted(looks)
    assert end.exit_code != 0


def test_watch_ends_a_command_that_is_over_its_time(tmp_path):
    with Child.start(["sleep", "1000"], log_path=tmp_path / "log") as child:
        assert watch(child, interval_s=0, timeout_s=0.1).reason == "timed out"


def test_a_process_is_known_by_its_start_and_not_by_its_number():
    started = started_at(os.getpid())
    assert started is not None
    assert is_alive(os.getpid(), started)
    assert not is_alive(os.getpid(), started - 3600)
    assert not is_alive(None, started)
    assert not is_alive(-1, started)
    assert started_at(2**31 - 1) is None


def test_a_zombie_is_not_alive():
    process = subprocess.Popen(["true"])
    _until(lambda: started_at(process.pid) is None)
    process.wait()


def test_a_terminated_program_cleans_up(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from tools.child import termination_as_exit\n"
        "folder = Path(sys.argv[1])\n"
        "with termination_as_exit():\n"
        "    try:\n"
        "        (folder / 'pid').write_text('1'); time.sleep(1000)\n"
        "    finally:\n"
        "        (folder / 'clean').touch()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=child_environment())
    _pid_in(tmp_path / "pid")
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    assert (tmp_path / "clean").exists()


def test_children_import_this_package_and_no_other_called_tools(tmp_path, monkeypatch):
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").write_text("raise SystemExit('the wrong package')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Child.start(
        [sys.executable, "-P", "-c", "import tools.child as found; print(found.__file__)"],
        log_path=tmp_path / "log",
    ) as child:
        assert child.wait(20) == 0
    import tools.child

    assert tail(tmp_path / "log") == tools.child.__file__
