"""Scoring one adapter outside a bakeoff."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.records import TrialRecord
from agent.trials import BASE_TRIAL, TrialRunner, new_trial, read_system_prompt, short_digest
from tools.dataset import load_dataset
from tools.errors import TaskError
from tools.evaluation.scorers import get_scorer
from tools.evaluation.scores import ScoreRow, read_scores
from tools.files import digest_file
from tools.generators.generator import Generator
from tools.generators.scoring import Generated, score_generated, write_generated
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


def score_generator(workspace: Workspace, generator: Generator, split: Split) -> tuple[str, Generated]:
    """Score whoever answers, an endpoint for instance, on a split; return the scores' name with them.

    Raises:
        EvaluationError: no row got an answer.
        DatasetError, ScorerError: the rows or the scorer are unfit.
    """
    task = workspace.load_task()
    scorer = task.scorer
    file = str(workspace.inside("scorer.py")) if scorer.name == "custom" else None
    found = score_generated(
        generator,
        load_dataset(workspace.split_file(task, split)).rows,
        get_scorer(scorer.name, ignore=scorer.ignore, scorer_file=file),
        system_prompt=read_system_prompt(workspace, workspace.load_recipe()),
        forbidden_outputs=task.forbidden_outputs,
    )
    name = f"endpoint-{short_digest(generator.name)}"
    write_generated(workspace.state_dir / "scores" / name, split, found, redact=split != "dev")
    return name, found


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
