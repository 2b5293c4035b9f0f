"""Detached runs of this project's own commands, and the result that each leaves in its job's folder."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tools.files import write_json_atomic
from tools.jobs import FOLDER_VARIABLE, JobRecord, start_job
from tools.task import Split
from tools.workspace import Workspace

RESULT_FILE: Final = "result.json"


def start_agent_job(
    workspace: Workspace, command: str, options: Sequence[str], *, key: str | None = None
) -> JobRecord:
    """Start a command of the command line detached; its record is on disk before this returns.

    Raises:
        JobError: the job is refused or did not start.
    """
    argv = [sys.executable, "-P", "-m", "agent", command, "--workspace", str(workspace.root), *options]
    return start_job(workspace.jobs_dir, command, argv, cwd=workspace.root, idempotency_key=key)


def start_training(
    workspace: Workspace,
    *,
    recipe_file: Path | None,
    smoke: bool,
    check_data: bool = False,
    key: str | None = None,
) -> JobRecord:
    """Train a recipe, the workspace's own by default; check_data refuses rows tied to a judged split."""
    options = ["--smoke"] if smoke else []
    options += ["--check-data"] if check_data else []
    if recipe_file is not None:
        options += ["--recipe", str(recipe_file.resolve())]
    return start_agent_job(workspace, "train", options, key=key)


def start_flywheel(
    workspace: Workspace,
    *,
    iterations: int | None = None,
    planner: str | None = None,
    plan_file: Path | None = None,
    key: str | None = None,
) -> JobRecord:
    """Run bakeoffs; None takes what the task says."""
    options = [] if iterations is None else ["--iters", str(iterations)]
    options += [] if planner is None else ["--planner", planner]
    options += [] if plan_file is None else ["--plan", str(plan_file.resolve())]
    return start_agent_job(workspace, "flywheel", options, key=key)


def start_rerun(
    workspace: Workspace,
    *,
    entries: Sequence[str] = (),
    freshness_days: int | None = None,
    caps: Mapping[str, float | None] | None = None,
    key: str | None = None,
) -> JobRecord:
    """Measure stale decisions again, or those named; caps are the command's own, without `--budget-`."""
    options = ["--rerun", *(part for entry in entries for part in ("--entry", entry))]
    options += [] if freshness_days is None else ["--freshness-days", str(freshness_days)]
    for name, cap in (caps or {}).items():
        options += [] if cap is None else [f"--budget-{name}", str(cap)]
    return start_agent_job(workspace, "refresh", options, key=key)


def start_evaluation(
    workspace: Workspace, *, split: Split, adapter: Path | None, key: str | None = None
) -> JobRecord:
    """Score an adapter, or the untrained base, on a split."""
    options = ["--split", split]
    options += [] if adapter is None else ["--adapter", str(adapter.resolve())]
    return start_agent_job(workspace, "eval", options, key=key)


def start_merge(
    workspace: Workspace, *, recipe_file: Path, iteration: int | None = None, key: str | None = None
) -> JobRecord:
    """Merge a trained recipe's adapter into its base and export it."""
    argv = [sys.executable, "-P", "-m", "agent.merge_job", "--workspace", str(workspace.root)]
    argv += ["--recipe", str(recipe_file.resolve())]
    argv += [] if iteration is None else ["--iter", str(iteration)]
    return start_job(workspace.jobs_dir, "merge", argv, cwd=workspace.root, idempotency_key=key)


def start_probe(
    workspace: Workspace,
    *,
    questions: Path,
    model: str,
    adapter: Path | None,
    report: Path,
    tag: str = "probe",
    key: str | None = None,
) -> JobRecord:
    """Put a probe set to a model; the report, named by tag, appears whole at the end."""
    report.parent.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-P", "-m", "tools.probe", str(questions), "--model", model, "--out", str(report)]
    argv += ["--tag", tag]
    argv += [] if adapter is None else ["--adapter", str(adapter)]
    return start_job(workspace.jobs_dir, "probe", argv, cwd=workspace.root, idempotency_key=key)


def option_of(job: JobRecord, name: str) -> str | None:
    """Return what a job's command was given for an option, or None."""
    if name not in job.argv[:-1]:
        return None
    return job.argv[job.argv.index(name) + 1]


def save_result(value: Any) -> None:
    """Keep a command's result in the folder of the job that it runs as; elsewhere do nothing."""
    folder = _own_folder()
    if folder is not None:
        write_json_atomic(folder / RESULT_FILE, value)


def load_result(job: JobRecord) -> Mapping[str, Any] | None:
    """Return what a job saved as its result, or None where there is none."""
    try:
        found = json.loads((job.folder / RESULT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _own_folder() -> Path | None:
    name = os.environ.get(FOLDER_VARIABLE)
    return Path(name) if name else None
