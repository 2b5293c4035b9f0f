"""Trials: recipes with a seed, trained together and scored by the worker."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from agent.attempts import Retries, Run, run_trials
from agent.records import CandidateRecord, TrialRecord
from agent.training_rows import resolve_recipe
from agent.workers import HoldsMemory, RunWorker, WorkerMeter, run_metered
from tools.errors import TrainError
from tools.evaluation.scores import ScoreRow, read_scores
from tools.files import write_text_atomic
from tools.models import resolve_base_model
from tools.recipe import TrainRecipe
from tools.task import Split, Task
from tools.workspace import Workspace

BASE_TRIAL = "base"


@dataclass(frozen=True)
class TrialRunner:
    """Trains and scores trials of one workspace.

    Every method can be called again after a crash: a trial whose checkpoints are on disk is
    continued by the worker, and scores are replaced whole.
    """

    workspace: Workspace
    task: Task
    run_worker: RunWorker
    committed_lineage: Path
    """The lineage folder of the bakeoff branch's worktree."""
    threads: int | None = None
    progress: Callable[[str], None] = lambda _: None
    meter: WorkerMeter | None = None
    retries: Retries | None = None

    def release(self) -> None:
        """Let go of the base model that the worker may hold: other programs need the memory now."""
        if isinstance(self.run_worker, HoldsMemory):
            self.run_worker.release()

    def plan_trial(
        self, candidate: CandidateRecord, *, iteration_id: str, seed: int, parent_id: str
    ) -> TrialRecord:
        """Return the trial of a candidate and a seed, not yet run. Its id says what it is."""
        return new_trial(
            self.workspace,
            trial_id=f"{iteration_id}-{candidate.candidate_id}-s{seed}",
            candidate_id=candidate.candidate_id,
            recipe=candidate.train_recipe,
            seed=seed,
            parent_id=parent_id,
        )

    def train(
        self, trials: Sequence[TrialRecord], *, label: str, search: bool = False
    ) -> tuple[TrialRecord, ...]:
        """Train the trials together, a stack for each base model, and return what became of each.

        A trial that fails comes back with its error; the others are unharmed.

        Args:
            search: Let the trials compete, where the task says how; the losers come back halted.
        Raises:
            TrainError: the worker itself died, and no retries are kept.
            BudgetError: a cap ended the worker.
            DiskFullError, GpuLostError: the machine is at fault.
        """

        def run(some: Sequence[TrialRecord]) -> list[TrialRecord]:
            result = self._run("train", label, self._train_spec(some, search=search))
            return [_with_training(trial, result, self.workspace) for trial in some]

        finished = self._in_groups(trials, run, f"{label}-train")
        return tuple(finished[trial.trial_id] for trial in trials)

    def evaluate(
        self, trials: Sequence[TrialRecord], *, splits: Sequence[Split], label: str
    ) -> tuple[TrialRecord, ...]:
        """Score trained trials on splits; failed trials pass through as they are.

        Raises:
            TrainError, BudgetError, DiskFullError, GpuLostError: as `train`.
        """

        def run(some: Sequence[TrialRecord]) -> list[TrialRecord]:
            adapters = [
                {
                    "trial_id": trial.trial_id,
                    "seed": trial.seed,
                    "adapter_dir": str(self.workspace.root / str(trial.adapter_dir)),
                }
                for trial in some
            ]
            spec = self._evaluate_spec(some[0].train_recipe, adapters, self._split_files(splits))
            result = self._run("evaluate", label, spec)
            return [self._with_scores(trial, result) for trial in some]

        able = [trial for trial in trials if trial.adapter_dir is not None]
        finished = self._in_groups(able, run, f"{label}-evaluate")
        return tuple(finished.get(trial.trial_id, trial) for trial in trials)

    def evaluate_base(self, recipe: TrainRecipe, *, splits: Sequence[Split], label: str) -> dict[str, float]:
        """Return the untrained base model's mean score per split."""
        adapters = [{"trial_id": BASE_TRIAL, "seed": 0, "adapter_dir": None}]
        spec = self._evaluate_spec(recipe, adapters, self._split_files(splits))
        return _split_means(_entry(self._run("evaluate", label, spec)["adapters"], BASE_TRIAL))

    def evaluate_rows(self, trial: TrialRecord, rows: Path, *, label: str) -> float:
        """Return a trained trial's mean score on any file of rows."""
        adapter_dir = str(self.workspace.root / str(trial.adapter_dir))
        adapters = [{"trial_id": trial.trial_id, "seed": trial.seed, "adapter_dir": adapter_dir}]
        spec = self._evaluate_spec(trial.train_recipe, adapters, {"rows": str(rows)})
        return _split_means(_entry(self._run("evaluate", label, spec)["adapters"], trial.trial_id))["rows"]

    def scores(self, trial: TrialRecord, split: Split) -> tuple[ScoreRow, ...]:
        """Read the score rows of a trial on a split.

        Raises:
            TrainError: the trial was never scored on it.
        """
        if trial.scores_dir is None:
            raise TrainError(
                f"trial {trial.trial_id} has no scores; it ended as {trial.status}: {trial.error}"
            )
        path = self.workspace.root / trial.scores_dir / f"{split}.jsonl"
        if not path.is_file():
            # A fresh clone has no state folder, but what was committed holds the same scores.
            path = self.committed_lineage / trial.trial_id / f"{split}.jsonl"
        return read_scores(path)

    def _in_groups(self, trials: Sequence[TrialRecord], run: Run, key: str) -> dict[str, TrialRecord]:
        """Run trials, those that share a base together, and return what became of each, by its id."""
        finished: dict[str, TrialRecord] = {}
        for number, group in enumerate(_groups(trials)):
            done = run_trials(group, run, self.retries, key=f"{key}{number or ''}")
            finished |= {trial.trial_id: trial for trial in done}
        return finished

    def _train_spec(self, group: Sequence[TrialRecord], *, search: bool) -> dict[str, Any]:
        rules = self.task.bakeoff.search if search and len(group) > 1 else None
        scores = rules is not None or any(trial.train_recipe.eval_interval for trial in group)
        members = [
            {
                "trial_id": trial.trial_id,
                "recipe": self._resolved(trial.train_recipe, trial).to_dict(),
                "run_dir": str(self.workspace.root / trial.run_dir),
            }
            for trial in group
        ]
        first = group[0].train_recipe
        return {
            "kind": "train",
            "base_model": self._base(first),
            "mode": "full",
            "members": members,
            "mid_eval": self.mid_eval() if scores else None,
            "search": None if rules is None else rules.model_dump(mode="json"),
            "threads": self.threads,
        }

    def mid_eval(self) -> dict[str, Any]:
        """Return the settings of mid-run evaluations: the first dev rows, the task's scorer."""
        return {
            "rows": str(self.workspace.split_file(self.task, "dev")),
            "n_items": self.task.mid_eval_items,
            "scorer": self._scorer(),
            "max_new_tokens": self.task.max_new_tokens,
            "batch_size": self.task.eval_batch_size,
        }

    def _evaluate_spec(
        self, recipe: TrainRecipe, adapters: Sequence[Mapping[str, Any]], splits: Mapping[str, str]
    ) -> dict[str, Any]:
        return {
            "kind": "evaluate",
            "base_model": self._base(recipe),
            "torch_dtype": recipe.torch_dtype,
            "quantization": recipe.quantization,
            "system_prompt": read_system_prompt(self.workspace, recipe),
            "adapters": list(adapters),
            "splits": dict(splits),
            "scorer": self._scorer(),
            "max_new_tokens": self.task.max_new_tokens,
            "batch_size": self.task.eval_batch_size,
            "forbidden_outputs": list(self.task.forbidden_outputs),
            "scores_dir": str(self.workspace.state_dir / "scores"),
            "threads": self.threads,
        }

    def _split_files(self, splits: Sequence[Split]) -> dict[str, str]:
        return {split: str(self.workspace.split_file(self.task, split)) for split in splits}

    def _scorer(self) -> dict[str, Any]:
        custom = self.task.scorer.name == "custom"
        return {
            "name": self.task.scorer.name,
            "ignore": list(self.task.scorer.ignore),
            "scorer_file": str(self.workspace.inside("scorer.py")) if custom else None,
        }

    def _resolved(self, recipe: TrainRecipe, trial: TrialRecord) -> TrainRecipe:
        base = self._base(recipe)
        folder = str(Path(trial.run_dir).parent)
        resolved = resolve_recipe(self.workspace, recipe.replace(output_dir=folder))
        return resolved.replace(base_model=base)

    def _base(self, recipe: TrainRecipe) -> str:
        return resolve_base_model(recipe.resolve(self.workspace.root).base_model)

    def _run(self, kind: str, label: str, spec: dict[str, Any]) -> Mapping[str, Any]:
        folder = self.workspace.state_dir / "worker"
        name = re.sub(r"[^A-Za-z0-9._-]", "_", f"{label}-{kind}-{short_digest(spec)}")
        spec["result_path"] = str(folder / f"{name}.result.json")
        places = {"spec_path": folder / f"{name}.json", "log_path": folder / f"{name}.log"}
        if places["log_path"].exists():
            # The words of a worker that died before must not be taken for this one's.
            places["log_path"].replace(folder / f"{name}.log.old")
        return run_metered(self.meter, partial(self.run_worker, spec, **places))

    def _with_scores(self, trial: TrialRecord, result: Mapping[str, Any]) -> TrialRecord:
        entry = _entry(result["adapters"], trial.trial_id)
        if entry.get("error"):
            return trial.model_copy(update={"status": "failed", "error": str(entry["error"])})
        means = _split_means(entry)
        scores_dir = (self.workspace.state_dir / "scores" / trial.trial_id).relative_to(self.workspace.root)
        return trial.model_copy(
            update={
                "dev": means.get("dev", trial.dev),
                "selection": means.get("selection", trial.selection),
                "eval_s": round(trial.eval_s + float(entry["eval_s"]), 3),
                "scores_dir": str(scores_dir),
            }
        )


def new_trial(
    workspace: Workspace, *, trial_id: str, candidate_id: str, recipe: TrainRecipe, seed: int, parent_id: str
) -> TrialRecord:
    """Return a trial that has not run yet."""
    run_dir = (workspace.runs_dir / trial_id / "runs-full").relative_to(workspace.root)
    return TrialRecord(
        trial_id=trial_id,
        candidate_id=candidate_id,
        parent_id=parent_id,
        recipe=recipe.replace(seed=seed).to_dict(),
        seed=seed,
        status="failed",
        error="not run yet",
        run_dir=str(run_dir),
    )


def read_system_prompt(workspace: Workspace, recipe: TrainRecipe) -> str | None:
    """Return the text that a recipe puts before its conversations, or None."""
    if recipe.system_prompt_file is None:
        return None
    return workspace.inside(recipe.system_prompt_file).read_text(encoding="utf-8").strip()


def write_smoke_rows(workspace: Workspace, task: Task, path: Path) -> Path:
    """Write the first rows of the train split, whole lines, as the smoke gate's data set."""
    lines: list[str] = []
    with workspace.split_file(task, "train").open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                lines.append(json.dumps(json.loads(line), ensure_ascii=False))
            if len(lines) == task.smoke.rows:
                break
    return write_text_atomic(path, "\n".join(lines) + "\n")


def short_digest(value: Any) -> str:
    """Return eight hexadecimal digits that tell equal values from different ones."""
    from tools.files import digest_json

    return digest_json(value)[:8]


def _groups(trials: Sequence[TrialRecord]) -> list[list[TrialRecord]]:
    """Group trials that can share one loaded base, in the order they came."""
    groups: dict[tuple[str, str, str], list[TrialRecord]] = {}
    for trial in trials:
        recipe = trial.train_recipe
        held = (recipe.base_model, recipe.torch_dtype, recipe.quantization)
        groups.setdefault(held, []).append(trial)
    return list(groups.values())


def _entry(entries: Sequence[Mapping[str, Any]], trial_id: str) -> Mapping[str, Any]:
    for entry in entries:
        if entry["trial_id"] == trial_id:
            return entry
    raise TrainError(f"the worker's result says nothing of trial {trial_id}; see its log")


def _split_means(entry: Mapping[str, Any]) -> dict[str, float]:
    if entry.get("error"):
        raise TrainError(f"evaluating {entry['trial_id']} failed: {entry['error']}")
    return {split: float(found["mean"]) for split, found in entry["splits"].items()}


def _with_training(trial: TrialRecord, result: Mapping[str, Any], workspace: Workspace) -> TrialRecord:
    entry = _entry(result["members"], trial.trial_id)
    adapter = entry.get("adapter_dir")
    failed = entry["status"] == "failed" or adapter is None
    halted = entry["status"] == "halted"
    relative = None if adapter is None else str(Path(adapter).resolve().relative_to(workspace.root.resolve()))
    return trial.model_copy(
        update={
            "status": "failed" if failed else entry["status"],
            "error": str(entry.get("error") or "no checkpoint was written") if failed or halted else None,
            # What left the search is not looked at on selection.
            "adapter_dir": None if failed or halted else relative,
            "steps": int(entry["steps"]),
            "total_steps": int(entry["total_steps"]),
            "best_iter": entry["best_iter"],
            "tokens": int(entry["tokens"]),
            "train_s": round(float(entry["train_s"]), 3),
        }
    )
