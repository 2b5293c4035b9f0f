"""A whole bakeoff on disk, built by hand: score rows, metrics, and verdicts that rest on them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.records import CandidateRecord, GuardRecord, IterationRecord, RulingRecord, TrialRecord
from tools.comparison import Scores, compare, corrected_level
from tools.evaluation.scores import ScoreRow, read_scores, write_scores
from tools.patch import diff_recipes
from tools.recipe import TrainRecipe
from tools.task import Task
from tools.verdict import Guard, forbidden_guard, reach_verdict
from tools.workspace import Workspace

ITERATION = "i0003"
N_ITEMS = 120
COMMANDS = ("takeoff", "land", "hover", "ascend", "descend", "turn")
TASK = Task(name="drone-router", seeds=(17, 29), minimum_gain=0.02)
BASE = TrainRecipe(
    base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
    dataset_jsonl="data/train.jsonl",
    output_dir=".bakehouse/runs",
    epochs=1.0,
    eval_interval=10,
)


@dataclass(frozen=True)
class Try:
    """A recipe to fake: how often its answers are right, and what became of it."""

    name: str
    recipe: TrainRecipe
    skill: float
    hypothesis: str = ""
    expected: float | None = None
    rejected: str | None = None
    seeds: tuple[int, ...] = (17,)
    loss: float = 0.3


INCUMBENT = Try("incumbent", BASE, 0.52, seeds=(17, 29), loss=0.42)
TRIES = (
    Try(
        "c1",
        BASE.replace(learning_rate=1e-3, lora_rank=32),
        0.86,
        "raise learning_rate from 0.0001 to 0.001 (10x) and lora_rank from 16 to 32 (2x), "
        "because the loss still falls steeply at the last step",
        0.08,
        seeds=(17, 29),
        loss=0.09,
    ),
    Try(
        "c2",
        BASE.replace(lora_target_modules=("q_proj", "v_proj")),
        0.33,
        "drop adapters on k_proj, o_proj, because they may not be needed",
        0.0,
        loss=0.8,
    ),
    Try(
        "c3",
        BASE.replace(use_rslora=True),
        0.60,
        "switch use_rslora from false to true",
        0.02,
        loss=0.35,
    ),
    Try(
        "c4",
        BASE.replace(learning_rate=0.5),
        0.0,
        "raise learning_rate from 0.0001 to 0.5 (5000x)",
        None,
        rejected="smoke: the loss became nan at step 3; lower learning_rate",
    ),
)


@dataclass(frozen=True)
class Bakeoff:
    workspace: Workspace
    task: Task
    record: IterationRecord
    folder: Path
    """Where its report belongs."""


def build_bakeoff(
    root: Path, *, incumbent: Try = INCUMBENT, tries: Sequence[Try] = TRIES, task: Task = TASK
) -> Bakeoff:
    """Write the files of a bakeoff below root and return its record."""
    workspace = Workspace(root)
    base = _trials(workspace, incumbent, parent_id="")
    trials, candidates, rulings = list(base), [], []
    level = corrected_level(task.level, sum(one.rejected is None for one in tries) or 1, 2)
    for one in tries:
        mine = () if one.rejected else _trials(workspace, one, parent_id=base[0].trial_id)
        trials += mine
        candidates.append(_candidate(incumbent, one))
        if mine:
            rulings.append(_ruling(workspace, task, one.name, base, mine, level))
    kept = next((ruling for ruling in rulings if ruling.verdict == "keep"), None)
    record = IterationRecord(
        iteration_id=ITERATION,
        started_at="2026-11-20T01:12:00Z",
        finished_at="2026-11-20T04:49:00Z",
        wall_s=sum(trial.train_s + trial.eval_s for trial in trials),
        planner="optuna",
        hypothesis="The incumbent underfits: its loss still falls when the run ends.",
        candidates=tuple(candidates),
        trials=tuple(trials),
        rulings=tuple(rulings),
        promoted=kept.candidate_id if kept else None,
        decision=f"Keep {kept.candidate_id}: {kept.reason}." if kept else "Keep the incumbent: no winner.",
    )
    return Bakeoff(workspace, task, record, workspace.lineage_dir / ITERATION)


def _candidate(incumbent: Try, one: Try) -> CandidateRecord:
    changes = diff_recipes(incumbent.recipe, one.recipe)
    return CandidateRecord(
        candidate_id=one.name,
        patch={change.field: change.after for change in changes},
        recipe=one.recipe.to_dict(),
        changes=tuple(map(str, changes)),
        hypothesis=one.hypothesis,
        expected_gain=one.expected,
        rejected=one.rejected,
    )


def _trials(workspace: Workspace, one: Try, *, parent_id: str) -> tuple[TrialRecord, ...]:
    return tuple(_trial(workspace, one, seed, parent_id) for seed in one.seeds)


def _trial(workspace: Workspace, one: Try, seed: int, parent_id: str) -> TrialRecord:
    trial_id = f"{ITERATION}-{one.name}-s{seed}"
    run_dir, scores_dir = f".bakehouse/runs/{trial_id}/runs-full", f".bakehouse/scores/{trial_id}"
    _write_metrics(workspace.root / run_dir / "metrics.jsonl", one, seed)
    means = {}
    for split in ("dev", "selection"):
        rows = _rows(split, one, seed)
        write_scores(workspace.root / scores_dir / f"{split}.jsonl", rows, redact=split != "dev")
        means[split] = sum(row.score for row in rows) / len(rows)
    return TrialRecord(
        trial_id=trial_id,
        candidate_id=one.name,
        parent_id=parent_id,
        recipe=one.recipe.replace(seed=seed).to_dict(),
        seed=seed,
        status="done",
        adapter_dir=f"{run_dir}/iter_0000090",
        run_dir=run_dir,
        steps=90,
        best_iter=80,
        tokens=184_320,
        train_s=311.5 + seed,
        eval_s=44.25,
        scores_dir=scores_dir,
        **means,
    )


def _rows(split: str, one: Try, seed: int) -> list[ScoreRow]:
    items = random.Random(split)
    luck = random.Random(f"{one.name} {seed}")
    rows = []
    for number in range(N_ITEMS):
        hard, command, height = items.random(), items.choice(COMMANDS), items.randrange(2, 90)
        right = hard < one.skill + luck.uniform(-0.08, 0.08)
        expected = {"cmd": command, "args": {"altitude_m": height}, "confidence": 0.95}
        output, error = json.dumps(expected), None
        if not right:
            output, error = _mistake(expected, luck)
        rows.append(
            ScoreRow(
                item_id=f"{split}-{number:04d}",
                seed=seed,
                score=float(right),
                output=output,
                expected=json.dumps(expected),
                prompt=f"please {command} to about {height} metres, not any higher",
                error=error,
            )
        )
    return rows


def _mistake(expected: dict[str, object], luck: random.Random) -> tuple[str, str]:
    kind = luck.choice(("mismatch:args", "mismatch:args", "mismatch:cmd", "invalid_json"))
    if kind == "invalid_json":
        return json.dumps(expected)[:-9] + ' "confi', kind
    if kind == "mismatch:cmd":
        return json.dumps({**expected, "cmd": "unknown"}), kind
    return json.dumps({**expected, "args": {"altitude_m": luck.randrange(90, 400)}}), kind


def _write_metrics(path: Path, one: Try, seed: int) -> None:
    luck = random.Random(f"{one.name} {seed} loss")
    lines = []
    for step in range(1, 91):
        loss = one.loss + 3.1 * math.exp(-step / 14) * luck.uniform(0.9, 1.1)
        lines.append({"step": step, "loss": loss, "grad_norm": 1.0, "lr": 1e-4, "tokens": 2048})
        if step % 10 == 0:
            score = one.skill * (1 - math.exp(-step / 25)) + luck.uniform(-0.03, 0.03)
            lines.append({"step": step, "eval_score": max(0.0, score), "n_items": 24})
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _ruling(
    workspace: Workspace,
    task: Task,
    name: str,
    base: Sequence[TrialRecord],
    mine: Sequence[TrialRecord],
    level: float,
) -> RulingRecord:
    seeds = {trial.seed for trial in mine}
    before = _selection(workspace, [trial for trial in base if trial.seed in seeds])
    after = _selection(workspace, mine)
    guards = [
        forbidden_guard(before, after),
        Guard("reasoning probe", 0.9, 0.88, True, "accuracy at 98% of the base, 90% needed"),
    ]
    found = compare(Scores.from_rows(before), Scores.from_rows(after), level=level)
    ruling = reach_verdict(found, minimum_gain=task.minimum_gain, guards=guards, n_candidates=3, n_looks=2)
    return RulingRecord(
        candidate_id=name,
        verdict=ruling.verdict.value,
        reason=ruling.reason,
        gain=found.gain,
        low=found.low,
        high=found.high,
        level=found.level,
        n_items=found.n_items,
        n_seeds=found.n_seeds_candidate,
        base_mean=found.base_mean,
        candidate_mean=found.candidate_mean,
        p_value=found.p_value,
        guards=tuple(GuardRecord(name=g.name, passed=g.passed, detail=g.detail) for g in guards),
    )


def _selection(workspace: Workspace, trials: Sequence[TrialRecord]) -> list[ScoreRow]:
    folders = [workspace.root / str(trial.scores_dir) for trial in trials]
    return [row for folder in folders for row in read_scores(folder / "selection.jsonl")]
