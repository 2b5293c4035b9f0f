"""The start of an iteration: the incumbent, found where it still holds and measured where it does not."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from agent.affording import training_worst
from agent.bench import Bench
from agent.incumbent import INCUMBENT, Incumbent, load_incumbent, still_holds
from agent.publishing import INCUMBENT_FILE
from agent.records import TrialRecord
from agent.trials import new_trial
from tools.errors import TrainError
from tools.recipe import TrainRecipe
from tools.workspace import Workspace

__all__ = ["establish_incumbent"]


def establish_incumbent(bench: Bench, iteration_id: str) -> Incumbent:
    """Return the incumbent: the committed one where its scores still hold, else one measured now.

    A step of its own, so that an iteration that is resumed after its files were written still
    compares with the incumbent that it began with.

    Raises:
        TrainError: the starting recipe cannot be trained or scored, so nothing can be compared.
        BudgetError: the budget has no room for measuring it.
    """

    def run() -> Any:
        # What a run that died or was abandoned left half written there is nobody's work.
        bench.worktree.discard_changes()
        recipe = Workspace(bench.worktree.root).load_recipe()
        committed = load_incumbent(bench.worktree.root / INCUMBENT_FILE)
        if committed is not None and still_holds(committed, recipe, bench.locks):
            return committed.model_dump(mode="json")
        measured = _measured_before(bench, recipe)
        if measured is not None:
            return measured.model_dump(mode="json")
        return _measure_start(bench, iteration_id, recipe)

    return Incumbent.model_validate(bench.step("start", iteration_id, run))


def _measured_before(bench: Bench, recipe: TrainRecipe) -> Incumbent | None:
    """Return what a run measured that a cap ended before it had anything to commit."""
    for event in reversed(bench.journal.events()):
        if event.step != "start" or event.event != "done":
            continue
        ended = bench.journal.last("iteration_end", event.key)
        if ended is None or "abandoned" not in ended.data:
            # What an iteration has committed counts as long as the branch holds it, and no longer.
            return None
        try:
            found = Incumbent.model_validate(event.data.get("result"))
        except ValidationError:
            # Written by another version.
            continue
        if still_holds(found, recipe, bench.locks) and _is_here(bench.workspace, found):
            return found
    return None


def _is_here(workspace: Workspace, incumbent: Incumbent) -> bool:
    places = [place for trial in incumbent.trials for place in (trial.scores_dir, trial.adapter_dir)]
    return all(place is not None and (workspace.root / place).is_dir() for place in places)


def _measure_start(bench: Bench, iteration_id: str, recipe: TrainRecipe) -> Any:
    """Train and score the starting recipe, and score the untrained base beside it."""
    seed = bench.task.seeds[0]
    trial = new_trial(
        bench.workspace,
        trial_id=f"{iteration_id}-{INCUMBENT}-s{seed}",
        candidate_id=INCUMBENT,
        recipe=recipe,
        seed=seed,
        parent_id="",
    )
    with bench.spending("start", iteration_id, training_worst([trial], None)):
        return _run_start(bench, iteration_id, recipe, trial)


def _run_start(bench: Bench, iteration_id: str, recipe: TrainRecipe, trial: TrialRecord) -> Any:
    base = bench.runner.evaluate_base(recipe, splits=("dev", "selection"), label=iteration_id)
    bench.say("start", iteration_id, f"untrained base: selection {100 * base['selection']:.1f}%")
    (trained,) = bench.runner.train([trial], label=f"{iteration_id}-start")
    (scored,) = bench.runner.evaluate([trained], splits=("dev", "selection"), label=f"{iteration_id}-start")
    if scored.selection is None:
        raise TrainError(f"the starting recipe failed: {scored.error}; mend {bench.workspace.recipe_file}")
    bench.say("start", iteration_id, f"starting recipe: selection {100 * scored.selection:.1f}%")
    incumbent = Incumbent(
        recipe=recipe.to_dict(),
        trials=(scored,),
        since=iteration_id,
        locks=bench.locks,
        base_dev=base["dev"],
        base_selection=base["selection"],
        start_trials=(scored,),
    )
    return incumbent.model_dump(mode="json")
