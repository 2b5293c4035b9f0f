"""The gates before the budget is spent: data, patch, recipe, memory, and a smoke run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agent.data_work.requested_rows import RequestedRows
from agent.incumbent import Incumbent
from agent.plan import Plan, Proposal
from agent.records import CandidateRecord
from agent.training_rows import find_rows, resolve_recipe
from agent.trials import TrialRunner, new_trial, short_digest, write_smoke_rows
from tools.dataset import Dataset, load_dataset
from tools.errors import BakehouseError, TrainError
from tools.hardware import check_fit
from tools.leakage import check_leaks
from tools.models import resolve_base_model
from tools.patch import apply_patch, diff_recipes
from tools.patch_space import PatchSpace
from tools.recipe import TrainRecipe
from tools.task import JUDGED_SPLITS, SPLITS, Task
from tools.workspace import Workspace


def check_data(workspace: Workspace, task: Task, recipe: TrainRecipe | None = None) -> dict[str, Dataset]:
    """Read every split and refuse a training set that touches a judged one.

    Args:
        recipe: Its rows are looked at as well, where they are others than the train split's.

    Raises:
        DatasetError: rows that cannot be used, all of them listed.
        LeakError: training rows tied to dev, selection or test, with the pairs.
    """
    splits = {split: load_dataset(workspace.split_file(task, split)) for split in SPLITS}
    judged = {split: splits[split] for split in JUDGED_SPLITS}
    check_leaks(splits["train"], judged)
    if recipe is not None:
        rows = find_rows(workspace, recipe.dataset_jsonl)
        # That a file is missing is said by whoever checks the recipe's paths.
        if rows.is_file() and rows != workspace.split_file(task, "train"):
            check_leaks(load_dataset(rows), judged)
    return splits


def check_training_rows(workspace: Workspace, recipe: TrainRecipe) -> None:
    """Refuse a recipe whose own rows, the train split or others, touch a judged split.

    Raises:
        DatasetError, LeakError: as `check_data`.
    """
    task = workspace.load_task()
    judged = {split: load_dataset(workspace.split_file(task, split)) for split in JUDGED_SPLITS}
    check_leaks(load_dataset(recipe.dataset_jsonl), judged)


def check_proposals(
    workspace: Workspace, task: Task, incumbent: Incumbent, plan: Plan
) -> tuple[CandidateRecord, ...]:
    """Turn proposals into candidates; one that is refused keeps its reason and is never trained."""
    return tuple(
        _check_proposal(workspace, task, incumbent.train_recipe, proposal, f"c{number}")
        for number, proposal in enumerate(plan.proposals, start=1)
    )


def check_requested(
    workspace: Workspace, incumbent: Incumbent, rows: RequestedRows, candidate_id: str
) -> CandidateRecord:
    """Return the candidate that trains the incumbent's recipe on requested rows beside its own."""
    recipe = incumbent.train_recipe.replace(dataset_jsonl=str(rows.dataset))
    rejected = None
    try:
        check_training_rows(workspace, check_recipe(workspace, recipe))
    except BakehouseError as err:
        rejected = str(err)
    return CandidateRecord(
        candidate_id=candidate_id,
        patch={},
        recipe=recipe.to_dict(),
        changes=(f"{rows.n_rows} rows more, made for {rows.item}",),
        hypothesis=rows.hypothesis,
        expected_gain=rows.expected_gain,
        rejected=rejected,
        idea=rows.item,
        author=rows.author,
    )


def check_recipe(workspace: Workspace, recipe: TrainRecipe) -> TrainRecipe:
    """Return the recipe with absolute paths after every check that needs no training.

    Raises:
        RecipeError, ModelError, HardwareError: the first thing that is wrong.
    """
    resolved = resolve_recipe(workspace, recipe)
    resolved = resolved.replace(base_model=resolve_base_model(resolved.base_model))
    workspace.runs_dir.mkdir(parents=True, exist_ok=True)
    resolved.preflight()
    # Where a cluster will train it is not known yet; the node that gets it looks at itself.
    if resolved.backend != "ray":
        check_fit(resolved)
    return resolved


def smoke(
    runner: TrialRunner, candidates: Sequence[CandidateRecord], *, label: str
) -> tuple[CandidateRecord, ...]:
    """Learn a few rows by heart with each candidate's plumbing; one that cannot is rejected.

    The gate asks whether base, targets, template, mask, precision and scorer fit together,
    not whether the learning rate is good, so it trains at the task's own smoke rate, and
    candidates that share their plumbing share the run.
    """
    plumbing = {
        candidate.candidate_id: _plumbing(runner.task, candidate.train_recipe)
        for candidate in candidates
        if candidate.rejected is None
    }
    problems = {key: _smoke_problem(runner, recipe, label) for key, recipe in dict(plumbing.values()).items()}
    return tuple(
        candidate
        if candidate.candidate_id not in plumbing or problems[plumbing[candidate.candidate_id][0]] is None
        else candidate.model_copy(update={"rejected": problems[plumbing[candidate.candidate_id][0]]})
        for candidate in candidates
    )


def describe(candidate: CandidateRecord) -> str:
    """Return one line on a candidate for a person who watches."""
    if candidate.rejected:
        return f"{candidate.candidate_id}: refused: {candidate.rejected}"
    return f"{candidate.candidate_id}: {', '.join(candidate.changes)}"


def _check_proposal(
    workspace: Workspace, task: Task, incumbent: TrainRecipe, proposal: Proposal, candidate_id: str
) -> CandidateRecord:
    recipe, rejected = incumbent, None
    changes: tuple[str, ...] = ()
    try:
        recipe = apply_patch(incumbent, proposal.patch, space=PatchSpace.from_mapping(task.patch_space))
        changes = tuple(str(change) for change in diff_recipes(incumbent, recipe))
        check_recipe(workspace, recipe)
    except BakehouseError as err:
        rejected = str(err)
    return CandidateRecord(
        candidate_id=candidate_id,
        patch=proposal.patch.model_dump(mode="json"),
        recipe=recipe.to_dict(),
        changes=changes,
        hypothesis=proposal.hypothesis,
        expected_gain=proposal.expected_gain,
        rejected=rejected,
        idea=proposal.idea,
        author=proposal.author,
    )


def _plumbing(task: Task, recipe: TrainRecipe) -> tuple[str, TrainRecipe]:
    """Return a key and the smoke recipe: what decides whether anything can be learned at all."""
    smoke_recipe = recipe.replace(
        learning_rate=task.smoke.learning_rate,
        min_learning_rate=0.0,
        lr_schedule="constant",
        lr_warmup_fraction=0.0,
        lora_dropout=0.0,
        weight_decay=0.0,
        lora_rank=16,
        lora_alpha=32,
        use_rslora=False,
        epochs=None,
        max_steps=task.smoke.steps,
        smoke_steps=min(recipe.smoke_steps, task.smoke.steps),
        save_interval=task.smoke.steps,
        micro_batch_size=task.smoke.rows,
        global_batch_size=task.smoke.rows,
        eval_interval=None,
        early_stop_patience=None,
        notes=None,
    )
    return short_digest(smoke_recipe.to_dict()), smoke_recipe


def _smoke_problem(runner: TrialRunner, recipe: TrainRecipe, label: str) -> str | None:
    """Run the gate once; return what is broken, or None."""
    workspace, task = runner.workspace, runner.task
    key = short_digest(recipe.to_dict())
    folder = workspace.state_dir / "smoke" / key
    rows = write_smoke_rows(workspace, task, folder / "rows.jsonl")
    trial = new_trial(
        workspace,
        trial_id=f"{label}-smoke-{key}",
        candidate_id="smoke",
        recipe=recipe.replace(dataset_jsonl=str(rows.relative_to(workspace.root))),
        seed=recipe.seed,
        parent_id="",
    )
    try:
        (trained,) = runner.train([trial], label=f"{label}-smoke")
        if trained.adapter_dir is None:
            return f"smoke run: {trained.error}"
        score = runner.evaluate_rows(trained, rows, label=f"{label}-smoke")
    except TrainError as err:
        return f"smoke run: {err}"
    return _judge_smoke(score, task, rows)


def _judge_smoke(score: float, task: Task, rows: Path) -> str | None:
    if score > 0:
        return None
    return (
        f"smoke run: after {task.smoke.steps} steps on {task.smoke.rows} rows not one of those rows was "
        f"answered right, so template, mask, precision or scorer do not fit together; look at {rows} "
        "with `bakehouse inspect`"
    )
