"""The sections of a planner's context: what the workspace says of itself, in words.

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
from agent.plan import TrialSummary
from agent.planners.evidence import PlannerEvidence
from agent.planners.quoting import cut, quote
from agent.trials import BASE_TRIAL, TrialRunner
from tools.dataset import Dataset, load_dataset
from tools.decisions import DecideEntry, load_entries
from tools.errors import BakehouseError, TaskError
from tools.evaluation.scorers import get_scorer
from tools.evaluation.scores import ScoreRow, read_scores
from tools.recipe import TrainRecipe
from tools.task import Task
from tools.workspace import Workspace

__all__ = [
    "ShownSplits",
    "describe_decisions",
    "describe_diagnostics",
    "describe_failures",
    "describe_task",
    "load_shown_splits",
    "read_texts",
]

_ENTRIES_SHOWN: Final = 20
_TEXTS: Final = {"mission": "mission.md", "background": "BACKGROUND.md"}


@dataclass(frozen=True)
class ShownSplits:
    """The splits that a context speaks of; the sealed one is not among them."""

    train: Dataset
    dev: Dataset
    selection: Dataset


def load_shown_splits(workspace: Workspace, task: Task) -> ShownSplits:
    """Read them."""
    return ShownSplits(
        *(load_dataset(workspace.split_file(task, name)) for name in ("train", "dev", "selection"))
    )


def read_texts(workspace: Workspace, recipe: TrainRecipe) -> dict[str, str]:
    """Return the documents of a workspace that planners read, by name."""
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


def describe_task(task: Task, splits: ShownSplits) -> str:
    """Return what is measured, on how many rows."""
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


def describe_diagnostics(
    runner: TrialRunner, incumbent: Incumbent | None, history: Sequence[TrialSummary], splits: ShownSplits
) -> str:
    """Return what the trials and the data show, and the technique that fits the reward."""
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
        base_score=incumbent.base_selection if incumbent else None,
        is_stuck_at_zero=any(finding.code == "stuck_at_zero" for finding in findings),
    )
    return f"{describe_findings(findings)}\ntechnique by the shape of the reward: {choice}"


def _judge_base(runner: TrialRunner, incumbent: Incumbent | None, splits: ShownSplits) -> Finding | None:
    scorer = get_scorer(runner.task.scorer.name, ignore=runner.task.scorer.ignore)
    classes = find_answer_classes((row.expected for row in splits.dev), scorer)
    outputs = [
        row.output or "" for row in _rows(runner.workspace.state_dir / "scores" / BASE_TRIAL / "dev.jsonl")
    ]
    if classes is None or incumbent is None:
        return None
    return find_base_below_random(
        score=incumbent.base_dev,
        chance=classes.chance,
        n_items=len(splits.dev),
        well_formed=classes.well_formed(outputs, scorer),
    )


def describe_failures(evidence: PlannerEvidence) -> str:
    """Return the dev failures by kind, with a few of each."""
    counts = evidence.failure_counts()
    if not evidence.dev_rows:
        return "the incumbent's answers to dev are not on this machine"
    told = ", ".join(f"{kind} {n}" for kind, n in counts.items()) or "none"
    examples = [evidence.read_dev_failures(kind=kind, limit=3) for kind in list(counts)[:6]]
    head = f"{len(evidence.dev_failures)} of {len(evidence.dev_rows)} dev answers are wrong: {told}"
    return "\n".join([head, *examples])


def describe_decisions(entry_dirs: Sequence[Path]) -> str:
    """Return the standing decisions, a line each."""
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


def _rows(path: Path) -> tuple[ScoreRow, ...]:
    try:
        return read_scores(path)
    except BakehouseError:
        return ()
