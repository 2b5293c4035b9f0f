"""Scoring one adapter outside a bakeoff."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.records import TrialRecord
from agent.trials import BASE_TRIAL, TrialRunner, new_trial
from tools.errors import TaskError
from tools.evaluation.scores import ScoreRow, read_scores
from tools.files import digest_file
from tools.lanes.local import run_engine
from tools.task import Split
from tools.workspace import Workspace


@dataclass(frozen=True)
class ScoreSet:
    """Score rows and the name under which they are found again."""

    name: str
    rows: tuple[ScoreRow, ...]

    @property
    def mean(self) -> float:
        return sum(row.score for row in self.rows) / len(self.rows)


def score_adapter(workspace: Workspace, adapter: Path | None, split: Split | str) -> ScoreSet:
    """Score an adapter, or the untrained base, on a split.

    An adapter's name is made of its weights: one that was trained anew gets another.

    Raises:
        TaskError: adapter is no folder with a saved adapter inside the workspace.
        TrainError: the worker failed.
    """
    runner = _runner(workspace)
    recipe = workspace.load_recipe()
    if adapter is None:
        runner.evaluate_base(recipe, splits=(split,), label="eval")  # type: ignore[arg-type]
        return _read(workspace, BASE_TRIAL, split)
    folder = workspace.inside(adapter.resolve())
    if not (folder / "adapter_config.json").is_file():
        raise TaskError(f"{folder} holds no adapter_config.json; name an iter_NNNNNNN folder of a run")
    trial = _adapter_trial(workspace, folder)
    runner.evaluate([trial], splits=(split,), label="eval")  # type: ignore[arg-type]
    return _read(workspace, trial.trial_id, split)


def _read(workspace: Workspace, name: str, split: str) -> ScoreSet:
    return ScoreSet(name, read_scores(workspace.state_dir / "scores" / name / f"{split}.jsonl"))


def mid_eval_settings(workspace: Workspace) -> dict[str, Any]:
    """Return the worker's settings for mid-run evaluations of a workspace's task."""
    return _runner(workspace).mid_eval()


def _runner(workspace: Workspace) -> TrialRunner:
    return TrialRunner(
        workspace=workspace,
        task=workspace.load_task(),
        run_worker=run_engine,
        committed_lineage=workspace.lineage_dir,
    )


def _adapter_trial(workspace: Workspace, folder: Path) -> TrialRecord:
    recipe = workspace.load_recipe()
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise TaskError(f"{folder} holds no adapter_model.safetensors; name an iter_NNNNNNN folder of a run")
    name = f"eval-{digest_file(weights)[:12]}"
    made = new_trial(
        workspace, trial_id=name, candidate_id="eval", recipe=recipe, seed=recipe.seed, parent_id=""
    )
    return made.model_copy(update={"adapter_dir": str(folder.relative_to(workspace.root.resolve()))})
