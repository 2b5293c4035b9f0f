"""The probe step: does a trial still reason, or know, what the incumbent does?"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from agent.records import TrialRecord
from tools.child import Child, watch
from tools.errors import ProbeError, TrainError
from tools.files import digest_file
from tools.lanes.local import explain_end
from tools.models import resolve_base_model
from tools.probe import KnowledgeReport, ProbeReport, compare_knowledge, load_probe_kind
from tools.task import Task
from tools.verdict import Guard, probe_guard
from tools.workspace import Workspace


def guard_by_probe(
    workspace: Workspace, task: Task, incumbent: TrialRecord, trial: TrialRecord
) -> Guard | None:
    """Return the guard of a trial's probe against the incumbent's; None where there is no probe set.

    Raises:
        TrainError: the probe's process failed.
        ProbeError: the probe set is malformed.
    """
    questions = workspace.probe_file(task)
    if not questions.is_file():
        return None
    before = _report(workspace, questions, incumbent)
    after = _report(workspace, questions, trial)
    if load_probe_kind(questions) == "reasoning":
        return probe_guard(ProbeReport.from_json(after).compare(ProbeReport.from_json(before)))
    delta = compare_knowledge(_knowledge(before), _knowledge(after))
    return probe_guard(delta, name="knowledge probe")


def _report(workspace: Workspace, questions: Path, trial: TrialRecord) -> Path:
    """Return the report of a trial, probing it where there is none of these questions yet."""
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
    with Child.start(argv, log_path=log_path) as child:
        end = watch(child, interval_s=1.0)
    explain_end(end, "the probe", log_path)
    return report


def _knowledge(path: Path) -> KnowledgeReport:
    try:
        return KnowledgeReport.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as err:
        raise ProbeError(f"{path} cannot be read: {err}; delete it to probe again") from err
