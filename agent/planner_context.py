"""The context of a plan: what the workspace and the bakeoff branch hold, for the planner to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agent.background_notes import describe_additions
from agent.context_sections import (
    describe_decisions,
    describe_diagnostics,
    describe_failures,
    describe_task,
    load_shown_splits,
    read_texts,
)
from agent.incumbent import Incumbent
from agent.lineage_view import open_lineage
from agent.plan import BudgetLeft, OnTheWay, PlanContext, TrialSummary
from agent.planners.evidence import PlannerEvidence
from agent.records import TrialRecord
from agent.training_rows import find_rows, is_own_file
from agent.trials import TrialRunner
from tools.decisions.corpus import default_dirs
from tools.errors import BakehouseError
from tools.evaluation.scores import ScoreRow
from tools.files import read_jsonl
from tools.lineage import FailureLabel, Trial
from tools.patch_space import PatchSpace
from tools.recipe import TrainRecipe
from tools.workspace import Workspace

__all__ = ["build_context", "read_history"]


def build_context(
    runner: TrialRunner,
    incumbent: Incumbent | None,
    *,
    iteration: int,
    budget_left: BudgetLeft,
    planner: str,
) -> PlanContext:
    """Return what a planner may look at.

    Args:
        runner: Knows the workspace, the task and the bakeoff branch's lineage.
        incumbent: The recipe to beat; None where it was not measured yet.
        iteration: Its number, from 1.
        budget_left: What the run may still spend.
        planner: Who reads the rendered lineage.
    """
    task, workspace = runner.task, runner.workspace
    store = open_lineage(runner.committed_lineage)
    trials = tuple(store.all_trials())
    splits = load_shown_splits(workspace, task)
    newest = Workspace(runner.committed_lineage.parent)
    recipe = newest.load_recipe() if incumbent is None else incumbent.train_recipe
    history = read_history(runner.committed_lineage, trials, incumbent.trials if incumbent else ())
    entry_dirs = (newest.entries_dir, *default_dirs())
    evidence = PlannerEvidence(trials, _dev_rows(runner, incumbent), entry_dirs)
    snapshot = store.render_prompt(planner, top_k=10, recent_n=40, last_m_full=10)
    return PlanContext(
        incumbent=recipe,
        incumbent_score=incumbent.selection if incumbent else None,
        history=history,
        n_candidates=task.bakeoff.candidates,
        iteration=iteration,
        budget_left=budget_left,
        patch_space=PatchSpace.from_mapping(task.patch_space),
        n_train_rows=_count_rows(workspace, recipe, len(splits.train)),
        background={
            **read_texts(workspace, recipe),
            "task": describe_task(task, splits),
            "diagnostics": describe_diagnostics(runner, incumbent, history, splits),
            "dev_failures": describe_failures(evidence),
            "decisions": describe_decisions(entry_dirs),
            "unverified_notes": describe_additions(newest.root),
            "lineage": snapshot.rendered_prompt,
        },
        evidence=evidence,
    )


def read_history(
    lineage: Path, trials: Sequence[Trial], current: Sequence[TrialRecord] = ()
) -> tuple[TrialSummary, ...]:
    """Return every trial of the lineage that has its recipe, oldest first, then the current ones."""
    found: dict[str, TrialSummary] = {}
    for trial in trials:
        recipe = _recipe_of(lineage / trial.exp_id / "recipe.yaml")
        if recipe is not None:
            found[trial.exp_id] = TrialSummary(
                trial.exp_id,
                recipe,
                trial.core_metric,
                trial.status.value,
                trial.train_s,
                gain=trial.delta_vs_best,
                expected_gain=_number(trial.expected_delta),
                planner=trial.specialist,
                halted=_halted_at(lineage / trial.exp_id / "metrics.jsonl", trial),
            )
    for record in current:
        summary = TrialSummary(
            record.trial_id,
            record.train_recipe,
            record.selection,
            "baseline",
            record.train_s,
            planner="baseline",
        )
        found.setdefault(record.trial_id, summary)
    return tuple(found.values())


def _dev_rows(runner: TrialRunner, incumbent: Incumbent | None) -> tuple[ScoreRow, ...]:
    if incumbent is None:
        return ()
    try:
        return runner.scores(incumbent.trials[0], "dev")
    except BakehouseError:
        # A planner without failures to read plans worse, and a bakeoff without a planner not at all.
        return ()


def _halted_at(metrics: Path, trial: Trial) -> OnTheWay | None:
    """Return the last score of a trial that was discarded without one of its end."""
    if trial.core_metric is not None or trial.status is not FailureLabel.DISCARD or not metrics.is_file():
        return None
    scored = [row for row in read_jsonl(metrics).rows if isinstance(row, dict) and "eval_score" in row]
    return OnTheWay(int(scored[-1]["step"]), float(scored[-1]["eval_score"])) if scored else None


def _count_rows(workspace: Workspace, recipe: TrainRecipe, n_of_split: int) -> int:
    if not is_own_file(recipe.dataset_jsonl):
        return n_of_split
    with find_rows(workspace, recipe.dataset_jsonl).open("rb") as file:
        return sum(bool(line.strip()) for line in file)


def _recipe_of(path: Path) -> TrainRecipe | None:
    try:
        return TrainRecipe.from_yaml(path)
    except BakehouseError:
        # A trial whose recipe is gone still counts in the lineage; only the planner cannot use it.
        return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
