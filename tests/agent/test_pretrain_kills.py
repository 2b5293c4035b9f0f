"""`bakehouse pretrain` killed outright at each of its stages, and asked for again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.agent.bench import make_workspace, write_base
from tests.git_project import isolate_git
from tools.child import child_environment
from tools.files import digest_file
from tools.poll import poll_run_progress

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

OPTIONS = ("--epochs", "4", "--learning-rate", "5e-3", "--dtype", "float32", "--seq-length", "96")
MORE = ("--rank", "4", "--batch-size", "4", "--held-out", "0.1", "--json")


def command(workspace: Path, name: str) -> list[str]:
    corpus = str(workspace.parent / "corpus")
    return [sys.executable, "-P", "-m", "agent", "pretrain", corpus, "--name", name, *OPTIONS, *MORE]


def kill_once(workspace: Path, name: str, reached: Callable[[], bool]) -> None:
    """Start the command and kill it as soon as it has come that far."""
    run = subprocess.Popen(
        command(workspace, name),
        cwd=workspace,
        env=child_environment({"OMP_NUM_THREADS": "1"}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not reached():
        assert run.poll() is None, f"{name} ended with {run.returncode} before it could be killed"
        time.sleep(0.02)
    run.kill()
    run.wait()


def finish(workspace: Path, name: str) -> tuple[dict[str, object], str]:
    done = subprocess.run(
        command(workspace, name),
        cwd=workspace,
        env=child_environment({"OMP_NUM_THREADS": "1"}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    return facts, digest_file(workspace / facts["base_model"] / "model.safetensors")


def test_whatever_the_moment_of_a_kill_the_base_is_that_of_an_undisturbed_run(tmp_path, monkeypatch):
    isolate_git(monkeypatch)
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    make_workspace(workspace, write_base(tmp_path / "base"))
    (tmp_path / "corpus").mkdir()
    for n in range(20):
        text = "\n\n".join(f"A drone of kind {n} takes off to {i} metres and lands." for i in range(1, 4))
        (tmp_path / "corpus" / f"{n}.md").write_text(text, encoding="utf-8")
    folder = workspace / ".bakehouse" / "pretrain" / "killed"

    def knows(stage: str) -> bool:
        try:
            return stage in json.loads((folder / "stages.json").read_text(encoding="utf-8"))["done"]
        except (OSError, ValueError):
            return False

    moments: list[Callable[[], bool]] = [
        lambda: (folder / "train.tokens.jsonl").exists(),
        lambda: knows("before"),
        lambda: (folder / "runs-full" / "metrics.jsonl").exists(),
        lambda: bool(poll_run_progress(folder / "runs-full")[1]),
        lambda: knows("trained"),
        lambda: (folder / "merged-hf-bf16").exists(),
        lambda: knows("merged"),
    ]
    for moment in moments:
        kill_once(workspace, "killed", moment)
    facts, weights = finish(workspace, "killed")
    whole, wanted = finish(workspace, "whole")
    assert weights == wanted
    told = ("steps", "perplexity_before", "perplexity_after", "corpus_digest")
    assert [facts[key] for key in told] == [whole[key] for key in told]
