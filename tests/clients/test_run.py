"""`make clients` tells the truth: what failed, what was not run, and what passed before."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.clients import run
from tests.clients.checks import Check
from tools.jobs import list_jobs, start_job
from tools.workspace import Workspace


def good(workspace: Path, log: Path) -> None:
    log.write_text("well", encoding="utf-8")


def bad(workspace: Path, log: Path) -> None:
    argv = [sys.executable, "-c", "import time; time.sleep(1000)"]
    start_job(Workspace(workspace).jobs_dir, "merge", argv, cwd=workspace)
    raise AssertionError("the answer is wrong")


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Check]:
    """Three checks, of which one cannot be run here."""
    checks = {"one": Check("python", good), "two": Check("python", bad), "three": Check("node", good)}
    monkeypatch.setattr(run, "all_checks", lambda: checks)
    monkeypatch.setattr(run, "prepare", lambda say: {"node": "no registry"})
    monkeypatch.setattr(run, "digest_of_sources", lambda: "as it is")
    monkeypatch.setattr(run, "PASSED", tmp_path / "passed.json")
    monkeypatch.setattr(run, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(sys, "argv", ["run.py"])
    return checks


def test_each_client_has_its_verdict_and_the_exit_code_follows(
    clients: dict[str, Check], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[str] = []
    end_jobs = run.end_jobs

    def ended(workspace: Workspace) -> None:
        end_jobs(workspace)
        left.extend(job.status for job in list_jobs(workspace.jobs_dir))

    monkeypatch.setattr(run, "end_jobs", ended)
    assert run.main() == 1
    said = capsys.readouterr().out
    assert "FAILED   two" in said
    assert "the answer is wrong" in said
    assert "not run  three (0 s): no registry" in said
    assert "1 of 3 passed" in said
    assert left == ["cancelled"]
    monkeypatch.setattr(sys, "argv", ["run.py", "one"])
    assert run.main() == 0


def test_what_has_passed_is_left_out_only_where_no_source_has_changed(
    clients: dict[str, Check], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run.main()
    monkeypatch.setattr(sys, "argv", ["run.py", "--resume", "one"])
    capsys.readouterr()
    assert run.main() == 0
    assert "passed before" in capsys.readouterr().out
    monkeypatch.setattr(run, "digest_of_sources", lambda: "changed")
    assert run.main() == 0
    assert "passed before" not in capsys.readouterr().out
