"""The guard on a trial's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from agent.records import TrialRecord
from agent.weight_guard import guard_by_weights
from tools.workspace import Workspace


def trial(name: str, adapter: str | None) -> TrialRecord:
    facts: dict[str, Any] = {
        "trial_id": name,
        "candidate_id": name,
        "parent_id": "",
        "recipe": {},
        "seed": 17,
    }
    return TrialRecord(**facts, status="done", run_dir="runs", adapter_dir=adapter)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    for name, update in {"incumbent": 0.5, "moved": 0.6, "same": 0.5, "still": 0.0}.items():
        (tmp_path / name).mkdir()
        tensors = {
            "q_proj.lora_A.weight": torch.ones(2, 4),
            "q_proj.lora_B.weight": torch.full((4, 2), update),
        }
        save_file(tensors, tmp_path / name / "adapter_model.safetensors", metadata={"trial": name})
    return Workspace(tmp_path)


@pytest.mark.parametrize(
    ("adapter", "passed", "said"),
    [("moved", True, "moved"), ("same", False, "its parent's"), ("still", False, "all zeros")],
)
def test_a_trial_that_was_not_trained_cannot_be_kept(
    workspace: Workspace, adapter: str, passed: bool, said: str
) -> None:
    guard = guard_by_weights(workspace, trial("i0", "incumbent"), trial("t1", adapter))
    assert guard is not None
    assert guard.passed is passed
    assert said in guard.detail


def test_what_cannot_be_read_is_unknown_and_no_guard(workspace: Workspace) -> None:
    assert guard_by_weights(workspace, trial("i0", "incumbent"), trial("t1", "gone")) is None
    assert guard_by_weights(workspace, trial("i0", "incumbent"), trial("t1", None)) is None


def test_an_incumbent_that_is_not_on_this_machine_leaves_the_first_check(workspace: Workspace) -> None:
    gone = trial("i0", "gone")
    still = guard_by_weights(workspace, gone, trial("t1", "still"))
    same = guard_by_weights(workspace, gone, trial("t1", "same"))
    assert still is not None
    assert same is not None
    assert (still.passed, same.passed) == (False, True)
