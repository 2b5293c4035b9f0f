from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.child import child_environment, started_at
from tools.errors import JobError
from tools.jobs import cancel_job, list_jobs, read_job, start_job, wait_job


def _until(holds: Callable[[], object], limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "the awaited event did not come"
        time.sleep(0.02)


@pytest.fixture
def jobs(tmp_path) -> Path:
    return tmp_path / "jobs dir"


def _supervisor(job) -> int:
    return json.loads((job.folder / "process.json").read_text(encoding="utf-8"))["supervisor_pid"]


def test_the_record_is_on_disk_when_start_returns(jobs, tmp_path):
    job = start_job(jobs, "train", ["sleep", "1000"], cwd=tmp_path)
    written = json.loads((jobs / job.id / "job.json").read_text(encoding="utf-8"))
    assert (written["argv"], written["kind"], written["id"]) == (["sleep", "1000"], "train", job.id)
    assert (job.status, job.ended) == ("running", False)
    assert started_at(job.pid) is not None
    assert cancel_job(jobs, job.id).status == "cancelled"


def test_exit_codes_are_recorded(jobs, tmp_path):
    good = start_job(jobs, "eval", ["sh", "-c", "echo hello; exit 0"], cwd=tmp_path)
    bad = start_job(jobs, "eval", ["sh", "-c", "exit 7"], cwd=tmp_path)
    killed = start_job(jobs, "eval", ["sh", "-c", "kill -9 $$"], cwd=tmp_path)
    assert [wait_job(jobs, job.id, timeout_s=30).status for job in (good, bad, killed)] == [
        "succeeded",
        "failed",
        "failed",
    ]
    assert [read_job(jobs, job.id).exit_code for job in (good, bad, killed)] == [0, 7, 137]
    assert read_job(jobs, good.id).log_tail() == "hello"
    assert read_job(jobs, good.id).ended_at is not None


def test_a_command_that_cannot_start_is_a_failed_job(jobs, tmp_path):
    job = start_job(jobs, "train", ["no-such-command"], cwd=tmp_path)
    job = wait_job(jobs, job.id, timeout_s=30)
    assert (job.status, job.exit_code) == ("failed", 127)
    assert "no-such-command" in (job.error or "")


def test_a_job_outlives_its_starter_and_its_end_is_recorded(jobs, tmp_path):
    program = (
        "import os, sys; from tools.jobs import start_job\n"
        "script = f'while [ ! -e {sys.argv[2]}/gate ]; do sleep 0.02; done; exit 5'\n"
        "print(start_job(sys.argv[1], 'train', ['sh', '-c', script], cwd=sys.argv[2]).id, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    starter = subprocess.run(
        [sys.executable, "-c", program, str(jobs), str(tmp_path)],
        env=child_environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert starter.returncode == -9
    job_id = starter.stdout.strip()
    assert read_job(jobs, job_id).status == "running"
    (tmp_path / "gate").touch()
    job = wait_job(jobs, job_id, timeout_s=30)
    assert (job.status, job.exit_code) == ("failed", 5)


def test_the_same_key_is_the_same_job_also_after_it_ended(jobs, tmp_path):
    argv = ["sh", "-c", f"echo ran >> {tmp_path}/count"]
    first = start_job(jobs, "train", argv, cwd=tmp_path, idempotency_key="../night 1")
    wait_job(jobs, first.id, timeout_s=30)
    again = start_job(jobs, "train", argv, cwd=tmp_path, idempotency_key="../night 1")
    other = start_job(jobs, "train", argv, cwd=tmp_path, idempotency_key="night 2")
    wait_job(jobs, other.id, timeout_s=30)
    assert again.id == first.id != other.id
    assert (tmp_path / "count").read_text(encoding="utf-8").split() == ["ran", "ran"]
    with pytest.raises(JobError, match="another command"):
        start_job(jobs, "train", ["true"], cwd=tmp_path, idempotency_key="night 2")


def test_many_starters_with_one_key_start_one_job(jobs, tmp_path):
    program = (
        "import sys; from tools.jobs import start_job\n"
        "argv = ['sh', '-c', f'echo ran >> {sys.argv[2]}/count']\n"
        "print(start_job(sys.argv[1], 'train', argv, cwd=sys.argv[2], idempotency_key='k').id)"
    )
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(jobs), str(tmp_path)],
            env=child_environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    ids = {starter.communicate(timeout=60)[0].strip() for starter in starters}
    assert len(ids) == 1
    wait_job(jobs, ids.pop(), timeout_s=30)
    assert (tmp_path / "count").read_text(encoding="utf-8") == "ran\n"


def test_a_start_cut_short_before_the_command_is_made_good_by_the_next(jobs, tmp_path):
    argv = ["sh", "-c", "exit 0"]
    job = start_job(jobs, "train", argv, cwd=tmp_path, idempotency_key="k")
    wait_job(jobs, job.id, timeout_s=30)
    _until(lambda: started_at(_supervisor(job)) is None)
    # As a starter leaves it that was killed after it had recorded the job.
    for name in ("process.json", "exit.json"):
        (job.folder / name).unlink()
    record = json.loads((job.folder / "job.json").read_text(encoding="utf-8"))
    record["starter"]["started"] = 1000.0
    (job.folder / "job.json").write_text(json.dumps(record), encoding="utf-8")
    assert read_job(jobs, job.id).status == "lost"
    again = start_job(jobs, "train", argv, cwd=tmp_path, idempotency_key="k")
    assert again.id == job.id
    assert wait_job(jobs, job.id, timeout_s=30).status == "succeeded"


def test_cancel_asks_first_and_keeps_what_was_saved(jobs, tmp_path):
    script = (
        f"trap 'echo saved > {tmp_path}/saved; exit 0' TERM; touch {tmp_path}/up; "
        "while :; do sleep 0.02; done"
    )
    job = start_job(jobs, "train", ["bash", "-c", script], cwd=tmp_path)
    _until((tmp_path / "up").exists)
    job = cancel_job(jobs, job.id)
    assert (job.status, job.exit_code) == ("cancelled", 0)
    assert (tmp_path / "saved").exists()
    assert cancel_job(jobs, job.id) == job


def test_cancel_kills_what_will_not_end_with_all_its_children(jobs, tmp_path):
    script = (
        f"trap '' TERM; setsid bash -c 'trap \"\" TERM; echo $$ > {tmp_path}/below; sleep 1000' & "
        f"while [ ! -s {tmp_path}/below ]; do sleep 0.02; done; touch {tmp_path}/up; wait"
    )
    job = start_job(jobs, "train", ["bash", "-c", script], cwd=tmp_path)
    _until((tmp_path / "up").exists)
    assert cancel_job(jobs, job.id, grace_s=0.2).status == "cancelled"
    below = int((tmp_path / "below").read_text(encoding="utf-8"))
    _until(lambda: started_at(below) is None)


def test_cancel_after_the_end_changes_nothing(jobs, tmp_path):
    job = start_job(jobs, "train", ["true"], cwd=tmp_path)
    wait_job(jobs, job.id, timeout_s=30)
    assert cancel_job(jobs, job.id).status == "succeeded"


def test_a_job_whose_supervisor_was_killed_runs_on_and_then_is_lost(jobs, tmp_path):
    job = start_job(jobs, "train", ["sleep", "1000"], cwd=tmp_path)
    os.kill(_supervisor(job), signal.SIGKILL)
    _until(lambda: started_at(_supervisor(job)) is None)
    assert read_job(jobs, job.id).status == "running"
    os.kill(job.pid, signal.SIGKILL)
    _until(lambda: read_job(jobs, job.id).status == "lost")
    job = read_job(jobs, job.id)
    assert (job.exit_code, job.ended) == (None, True)
    assert "no exit record" in (job.error or "")


def test_a_process_number_given_again_is_not_the_job(jobs, tmp_path):
    job = start_job(jobs, "train", ["true"], cwd=tmp_path)
    wait_job(jobs, job.id, timeout_s=30)
    _until(lambda: started_at(_supervisor(job)) is None)
    (job.folder / "exit.json").unlink()
    process = json.loads((job.folder / "process.json").read_text(encoding="utf-8"))
    process |= {"pid": os.getpid(), "started": 1000.0}
    (job.folder / "process.json").write_text(json.dumps(process), encoding="utf-8")
    assert read_job(jobs, job.id).status == "lost"
    # Above all, cancelling it must not signal the process that has the number now.
    assert cancel_job(jobs, job.id).status == "lost"


def test_wait_returns_a_running_job_when_time_is_up(jobs, tmp_path):
    job = start_job(jobs, "train", ["sleep", "1000"], cwd=tmp_path)
    assert wait_job(jobs, job.id, timeout_s=0.05).status == "running"
    cancel_job(jobs, job.id)


def test_the_list_is_in_order_and_leaves_foreign_folders_out(jobs, tmp_path, caplog):
    ids = [start_job(jobs, "train", ["true"], cwd=tmp_path).id for _ in range(3)]
    (jobs / "20261120T044900000000Z-train-1a2b3c").mkdir()
    (jobs / "notes").mkdir()
    with caplog.at_level(logging.WARNING):
        assert [job.id for job in list_jobs(jobs)] == ids
    assert "1a2b3c" in caplog.text
    assert list_jobs(tmp_path / "nothing") == ()


@pytest.mark.parametrize(
    "job_id", ["../x", "", "x", "/etc", "20261120T044900000000Z-train-1a2b3c/..", "a\0b"]
)
def test_a_hostile_id_is_refused(jobs, job_id):
    for ask in (read_job, cancel_job, wait_job):
        with pytest.raises(JobError, match="job id"):
            ask(jobs, job_id)


def test_an_unknown_id_is_an_error(jobs):
    with pytest.raises(JobError, match="no job"):
        read_job(jobs, "20261120T044900000000Z-train-1a2b3c")


@pytest.mark.parametrize("kind", ["", "../x", "Train", "a b", "x" * 41, "1a"])
def test_a_hostile_kind_is_refused(jobs, tmp_path, kind):
    with pytest.raises(JobError, match="kind"):
        start_job(jobs, kind, ["true"], cwd=tmp_path)


def test_an_empty_command_or_a_missing_folder_is_refused(jobs, tmp_path):
    for argv in ([], [""], ["a\0b"]):
        with pytest.raises(JobError, match="argv"):
            start_job(jobs, "train", argv, cwd=tmp_path)
    with pytest.raises(JobError, match="cwd"):
        start_job(jobs, "train", ["true"], cwd=tmp_path / "nothing")
    assert list_jobs(jobs) == ()


@pytest.mark.parametrize(
    "argv",
    [
        ["x", "--api-key", "abc123"],
        ["x", "--api-key=abc123"],
        ["env", "-", "HF_TOKEN=abc123"],
        ["x", "--token", "abc123"],
        ["x", "hf_" + "a" * 34],
        ["x", "sk-ant-api03-" + "a" * 40],
        ["x", "https://user:passw0rd@example.org/x"],
        ["sh", "-c", "curl -H 'Authorization: ghp_" + "a" * 36 + "'"],
    ],
)
def test_a_secret_in_the_command_is_refused_and_not_repeated(jobs, tmp_path, argv):
    with pytest.raises(JobError, match="secret") as caught:
        start_job(jobs, "train", argv, cwd=tmp_path)
    assert argv[-1] not in str(caught.value)
    assert "abc123" not in str(caught.value)
    assert list_jobs(jobs) == ()


@pytest.mark.parametrize(
    "argv",
    [
        ["x", "--max-new-tokens", "64"],
        ["x", "--eos-token", "<|im_end|>"],
        ["x", "--tokenizer=/m"],
        ["x", "--password-file", "/p"],
        ["x", "--secret"],
    ],
)
def test_harmless_flags_pass(jobs, tmp_path, argv):
    job = start_job(jobs, "train", ["true", *argv], cwd=tmp_path)
    assert wait_job(jobs, job.id, timeout_s=30).status == "succeeded"


def test_the_environment_reaches_the_command_and_no_record(jobs, tmp_path):
    job = start_job(
        jobs,
        "train",
        ["sh", "-c", f'echo "$HF_TOKEN" > {tmp_path}/out'],
        cwd=tmp_path,
        env_extra={"HF_TOKEN": "hf_veryverysecretindeed"},
    )
    wait_job(jobs, job.id, timeout_s=30)
    assert (tmp_path / "out").read_text(encoding="utf-8") == "hf_veryverysecretindeed\n"
    for path in jobs.rglob("*"):
        assert not path.is_file() or b"verysecret" not in path.read_bytes()


def test_starting_leaves_no_zombie_behind(jobs, tmp_path):
    import psutil

    job = start_job(jobs, "train", ["true"], cwd=tmp_path)
    wait_job(jobs, job.id, timeout_s=30)
    assert [child for child in psutil.Process().children() if child.pid == _supervisor(job)] == []


def test_a_full_disk_is_an_error_that_says_so(tmp_path):
    (tmp_path / "jobs").write_text("a file where the folder should be", encoding="utf-8")
    with pytest.raises(JobError, match="cannot be recorded"):
        start_job(tmp_path / "jobs", "train", ["true"], cwd=tmp_path)


def test_a_supervisor_that_cannot_start_is_a_failed_job_and_an_error(jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(JobError, match="did not start"):
        start_job(jobs, "train", ["true"], cwd=tmp_path)
    (job,) = list_jobs(jobs)
    assert (job.status, job.exit_code) == ("failed", None)
    assert "not started" in (job.error or "")
