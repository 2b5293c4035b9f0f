"""The probe step: does a trial still reason, or know, what the incumbent does?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from agent.attempts import told_end
from agent.faults import raise_if_machine, worth_retrying
from agent.records import GuardRecord, TrialRecord
from agent.trials import TrialRunner
from agent.workers import run_metered
from tools.child import Child, watch
from tools.errors import BudgetError, ProbeError, TrainError
from tools.files import digest_file
from tools.lanes.local import explain_end
from tools.models import resolve_base_model
from tools.probe import KnowledgeReport, ProbeReport, compare_knowledge, load_probe_kind
from tools.verdict import Guard, probe_guard


def probe_trial(
    runner: TrialRunner, incumbent: TrialRecord, trial: TrialRecord, *, label: str
) -> GuardRecord | None:
    """Return the guard of a trial's probe against the incumbent's; None where there is no probe set.

    A probe that died is tried once more. One that a cap kept from measuring, or that died twice,
    gives a guard that is unknown.

    Args:
        label: Names this work in the book of retries.
    Raises:
        ProbeError: the probe set is malformed.
        DiskFullError, GpuLostError: the machine is at fault.
    """
    questions = runner.workspace.probe_file(runner.task)
    if not questions.is_file():
        return None
    name = f"{load_probe_kind(questions)} probe"
    try:
        guard = _retried(runner, f"{label}-probe-{trial.trial_id}", questions, incumbent, trial)
    except BudgetError as err:
        return GuardRecord(name=name, passed=False, detail=str(err), measured=False)
    except TrainError as err:
        if runner.retries is None:
            raise
        return GuardRecord(name=name, passed=False, detail=told_end(err), measured=False)
    return GuardRecord(name=guard.name, passed=guard.passed, detail=guard.detail)


def _retried(
    runner: TrialRunner, key: str, questions: Path, incumbent: TrialRecord, trial: TrialRecord
) -> Guard:
    try:
        return guard_by_probe(runner, questions, incumbent, trial)
    except TrainError as err:
        raise_if_machine(err)
        if runner.retries is None or runner.retries.is_taken(key) or not worth_retrying(err):
            raise
        runner.retries.take(key, told_end(err))
        return guard_by_probe(runner, questions, incumbent, trial)


def guard_by_probe(runner: TrialRunner, questions: Path, incumbent: TrialRecord, trial: TrialRecord) -> Guard:
    """Return the guard of a trial's probe against the incumbent's.

    Raises:
        TrainError: the probe's process failed.
        ProbeError: the probe set is malformed.
        BudgetError: a cap ended it.
    """
    before = _report(runner, questions, incumbent)
    after = _report(runner, questions, trial)
    if load_probe_kind(questions) == "reasoning":
        return probe_guard(ProbeReport.from_json(after).compare(ProbeReport.from_json(before)))
    delta = compare_knowledge(_knowledge(before), _knowledge(after))
    return probe_guard(delta, name="knowledge probe")


def _report(runner: TrialRunner, questions: Path, trial: TrialRecord) -> Path:
    """Return the report of a trial, probing it where there is none of these questions yet."""
    workspace = runner.workspace
    folder = workspace.state_dir / "probes" / digest_file(questions)[:12]
    report = folder / f"{trial.trial_id}.json"
    if report.is_file():
        return report
    if trial.adapter_dir is None or not (workspace.root / trial.adapter_dir).is_dir():
        raise TrainError(
            f"the adapter of {trial.trial_id} is not on this machine, so it cannot be probed; "
            f"move {questions} away, or delete lineage/incumbent.json on the bakeoff branch to measure anew"
        )
    recipe = trial.train_recipe.resolve(workspace.root)
    argv = [sys.executable, "-P", "-m", "tools.probe", str(questions)]
    argv += ["--model", resolve_base_model(recipe.base_model)]
    argv += ["--adapter", str(workspace.root / trial.adapter_dir), "--out", str(report)]
    if load_probe_kind(questions) == "reasoning":
        argv += ["--resume", str(folder / f"{trial.trial_id}.rows.jsonl")]
    else:
        argv += ["--tag", trial.trial_id]
    log_path = folder / f"{trial.trial_id}.log"

    def run(timeout_s: float | None = None) -> dict[str, Any]:
        with Child.start(argv, log_path=log_path) as child:
            end = watch(child, interval_s=1.0, timeout_s=timeout_s)
        explain_end(end, "the probe", log_path, timeout_s)
        return {}

    run_metered(runner.meter, run)
    return report


def _knowledge(path: Path) -> KnowledgeReport:
    try:
        return KnowledgeReport.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as err:
        raise ProbeError(f"{path} cannot be read: {err}; delete it to probe again") from err
