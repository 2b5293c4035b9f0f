"""The context of a plan: what the workspace and the bakeoff branch hold, for the planner to read.

Of the judged splits only dev is opened for its text. `selection` gives scores, `test` nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.diagnostics.false_progress import find_conditioned_on_judged, find_objective_mismatch
from agent.diagnostics.finding import Finding, describe_findings
from agent.diagnostics.guessing import find_answer_classes
from agent.diagnostics.panel import diagnose_history
from agent.diagnostics.plateaus import find_base_below_random
from agent.diagnostics.technique import RewardShape, choose_technique
from agent.incumbent import Incumbent
from agent.plan import BudgetLeft, PlanContext, TrialSummary
from agent.planners.evidence import PlannerEvidence
from agent.planners.quoting import cut, quote
from agent.records import TrialRecord
from agent.trials import BASE_TRIAL, TrialRunner
from tools.dataset import Dataset, load_dataset
from tools.decisions import DecideEntry, load_entries
from tools.decisions.corpus import default_dirs
from tools.errors import BakehouseError, TaskError
from tools.evaluation.scorers import get_scorer
from tools.evaluation.scores import ScoreRow, read_scores
from tools.lineage import LineageStore, Trial
from tools.patch_space import PatchSpace
from tools.recipe import TrainRecipe
from tools.workspace import Workspace

__all__ = ["build_context", "read_history"]

_ENTRIES_SHOWN: Final = 20
_TEXTS: Final = {"mission": "mission.md", "background": "BACKGROUND.md"}


@dataclass(frozen=True)
class _Splits:
    train: Dataset
    dev: Dataset
    selection: Dataset


def build_context(
    runner: TrialRunner, incumbent: Incumbent, *, iteration: int, budget_left: BudgetLeft, planner: str
) -> PlanContext:
    """Return what a planner may look at.

    Args:
        runner: Knows the workspace, the task and the bakeoff branch's lineage.
        incumbent: The recipe to beat.
        iteration: Its number, from 1.
        budget_left: What the run may still spend.
        planner: Who reads the rendered lineage.
    """
    task, workspace = runner.task, runner.workspace
    store = LineageStore(runner.committed_lineage, lower_is_better=False)
    trials = tuple(store.all_trials())
    splits = _Splits(
        *(load_dataset(workspace.split_file(task, name)) for name in ("train", "dev", "selection"))
    )
    history = read_history(runner.committed_lineage, trials, incumbent.trials)
    entry_dirs = (runner.committed_lineage.parent / "decide-entries", *default_dirs())
    evidence = PlannerEvidence(trials, _dev_rows(runner, incumbent), entry_dirs)
    snapshot = store.render_prompt(planner, top_k=10, recent_n=40, last_m_full=10)
    return PlanContext(
        incumbent=incumbent.train_recipe,
        incumbent_score=incumbent.selection,
        history=history,
        n_candidates=task.bakeoff.candidates,
        iteration=iteration,
        budget_left=budget_left,
        patch_space=PatchSpace.from_mapping(task.patch_space),
        n_train_rows=len(splits.train),
        background={
            **_read_texts(workspace, incumbent.train_recipe),
            "task": _describe_task(runner, splits),
            "diagnostics": _diagnose(runner, incumbent, history, splits),
            "dev_failures": _describe_failures(evidence),
            "decisions": _describe_decisions(entry_dirs),
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


def _read_texts(workspace: Workspace, recipe: TrainRecipe) -> dict[str, str]:
    files = {**_TEXTS, **({"system_prompt": recipe.system_prompt_file} if recipe.system_prompt_file else {})}
    found = {}
    for name, relative in files.items():
        try:
            path = workspace.inside(relative)
        except TaskError:
            # What a link out of the workspace leads to must not be sent anywhere.
            found[name] = f"({relative} leads out of the workspace and is not shown)"
            continue
        if path.is_file():
            found[name] = path.read_text(encoding="utf-8", errors="replace")
    return found


def _describe_task(runner: TrialRunner, splits: _Splits) -> str:
    task = runner.task
    return "\n".join(
        [
            f"name: {task.name}",
            f"description: {task.description}",
            f"scorer: {task.scorer.name}, leaving out {list(task.scorer.ignore) or 'nothing'}",
            f"target score: {task.target_score:g}; a gain counts above {task.minimum_gain:g}, "
            f"at level {task.level:g}",
            f"seeds a candidate may cost: {len(task.seeds)}; answers of at most {task.max_new_tokens} tokens",
            f"forbidden outputs: {list(task.forbidden_outputs) or 'none'}",
            f"rows: train {len(splits.train)}, dev {len(splits.dev)}, selection {len(splits.selection)}",
        ]
    )


def _diagnose(
    runner: TrialRunner, incumbent: Incumbent, history: Sequence[TrialSummary], splits: _Splits
) -> str:
    findings = list(diagnose_history(history, n_items=len(splits.selection)))
    # Leaks are no matter here: the gate refuses them before every bakeoff.
    found = [find_conditioned_on_judged(splits.train, {"selection": splits.selection})]
    if runner.task.scorer.name != "custom":  # the workspace's own code runs in the worker alone
        scorer = get_scorer(runner.task.scorer.name, ignore=runner.task.scorer.ignore)
        found += [
            find_objective_mismatch(splits.train, splits.dev, scorer),
            _judge_base(runner, incumbent, splits),
        ]
    findings += [finding for finding in found if finding is not None]
    choice = choose_technique(
        RewardShape.SCORED_DEMONSTRATIONS,  # every task has a scorer, and every row an answer
        base_score=incumbent.base_selection,
        is_stuck_at_zero=any(finding.code == "stuck_at_zero" for finding in findings),
    )
    return f"{describe_findings(findings)}\ntechnique by the shape of the reward: {choice}"


def _judge_base(runner: TrialRunner, incumbent: Incumbent, splits: _Splits) -> Finding | None:
    scorer = get_scorer(runner.task.scorer.name, ignore=runner.task.scorer.ignore)
    classes = find_answer_classes((row.expected for row in splits.dev), scorer)
    outputs = [
        row.output or "" for row in _rows(runner.workspace.state_dir / "scores" / BASE_TRIAL / "dev.jsonl")
    ]
    if classes is None:
        return None
    return find_base_below_random(
        score=incumbent.base_dev,
        chance=classes.chance,
        n_items=len(splits.dev),
        well_formed=classes.well_formed(outputs, scorer),
    )


def _describe_failures(evidence: PlannerEvidence) -> str:
    counts = evidence.failure_counts()
    if not evidence.dev_rows:
        return "the incumbent's answers to dev are not on this machine"
    told = ", ".join(f"{kind} {n}" for kind, n in counts.items()) or "none"
    examples = [evidence.read_dev_failures(kind=kind, limit=3) for kind in list(counts)[:6]]
    head = f"{len(evidence.dev_failures)} of {len(evidence.dev_rows)} dev answers are wrong: {told}"
    return "\n".join([head, *examples])


def _describe_decisions(entry_dirs: Sequence[Path]) -> str:
    entries = load_entries(dirs=entry_dirs, lifecycle="active")
    return "\n".join(_describe_entry(entry) for entry in entries[:_ENTRIES_SHOWN]) or "none yet"


def _describe_entry(entry: DecideEntry) -> str:
    told = {
        "entry": entry.slug,
        "question": entry.question,
        "context": dict(entry.context),
        "findings": [
            {"optimize_for": found.optimize_for, "pick": found.pick, "evidence": cut(found.evidence, 400)}
            for found in entry.findings[:4]
        ],
    }
    return quote(told)


def _dev_rows(runner: TrialRunner, incumbent: Incumbent) -> tuple[ScoreRow, ...]:
    try:
        return runner.scores(incumbent.trials[0], "dev")
    except BakehouseError:
        # A planner without failures to read plans worse, and a bakeoff without a planner not at all.
        return ()


def _rows(path: Path) -> tuple[ScoreRow, ...]:
    try:
        return read_scores(path)
    except BakehouseError:
        return ()


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
