"""Score sets: what was measured once, found again by the name of a trial, a candidate or a job."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Final

from agent.launch import load_result, option_of
from agent.trials import BASE_TRIAL
from tools.comparison import Scores
from tools.errors import EvidenceError, JobError, TaskError
from tools.evaluation.scores import ScoreRow, read_scores
from tools.jobs import JobRecord, list_jobs, read_job
from tools.poll import read_progress
from tools.recipe import MODE_FULL, MODE_SMOKE, Mode, TrainRecipe
from tools.workspace import Workspace

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")


def newest(workspace: Workspace) -> Workspace:
    """Return where the newest lineage lies: the bakeoff branch's worktree, else the workspace."""
    root = workspace.worktree_dir
    found = sorted(root.rglob("task.yaml"))[:1] if root.is_dir() else []
    return Workspace(found[0].parent) if found else workspace


def find_adapter(workspace: Workspace, name: str) -> Path | None:
    """Return the folder of a saved adapter, None for the untrained base.

    Args:
        name: Empty or `base`, the id of a training job or of a trial, or a folder inside the workspace.
    Raises:
        TaskError: there is no such adapter, or the path leaves the workspace.
        JobError: the job is unknown.
    """
    if name in ("", BASE_TRIAL):
        return None
    if _is_job(name):
        folder = _job_adapter(workspace, name)
    elif _NAME.match(name) and (run_dir := workspace.runs_dir / name / f"runs-{MODE_FULL}").is_dir():
        folder = _best_checkpoint(workspace.inside(run_dir), f"trial {name}")
    else:
        folder = workspace.inside(name)
    if not (folder / "adapter_config.json").is_file():
        raise TaskError(
            f"{name!r} holds no adapter_config.json; name a training job that saved a checkpoint, a "
            "trial, an iter_NNNNNNN folder of a run inside the workspace, or nothing for the untrained base"
        )
    return folder


def job_run_dir(workspace: Workspace, job_id: str) -> Path:
    """Return the run folder of a training job.

    Raises:
        JobError: the job is unknown or trains nothing.
    """
    job = read_job(workspace.jobs_dir, job_id)
    if job.kind != "train":
        raise JobError(f"job {job_id} is a {job.kind} job; name one of kind train")
    return run_dir_of(workspace, job)


def find_scores(workspace: Workspace, name: str, split: str) -> tuple[ScoreRow, ...]:
    """Return the score rows of a name on a split, those of all seeds for a candidate's name.

    Args:
        name: `base`, a trial (`i0001-c1-s17`), a candidate (`i0001-c1`) or an evaluation's job.
        split: dev or selection.
    Raises:
        EvidenceError: nothing of that name was scored on the split.
    """
    if _is_job(name):
        result = load_result(read_job(workspace.jobs_dir, name)) or {}
        if result.get("split") != split or not isinstance(result.get("scores"), str):
            raise EvidenceError(f"job {name} scored no {split}; poll it, or evaluate on {split} first")
        name = str(result["scores"])
    if not _NAME.match(name):
        raise EvidenceError(f"scores of {name[:80]!r}; allowed: base, a trial, a candidate or a job id")
    folders = [newest(workspace).lineage_dir, workspace.state_dir / "scores"]
    for wanted in (name, f"{name}-s*"):
        for folder in folders:
            files = sorted(folder.glob(f"{wanted}/{split}.jsonl"))
            if files:
                return tuple(row for file in files for row in read_scores(file))
    raise EvidenceError(
        f"nothing called {name!r} is scored on {split}; `lineage` names the trials, `evaluate` scores an "
        "adapter or the base"
    )


def load_scores(workspace: Workspace, name: str, split: str) -> Scores:
    """Return `find_scores` as the table that a comparison takes."""
    return Scores.from_rows(find_scores(workspace, name, split))


def run_dir_of(workspace: Workspace, job: JobRecord) -> Path:
    """Return the folder that a training job trains into.

    Raises:
        RecipeError: its recipe cannot be read.
    """
    chosen = option_of(job, "--recipe")
    file = Path(chosen) if chosen else workspace.recipe_file
    mode: Mode = MODE_SMOKE if "--smoke" in job.argv else MODE_FULL
    return _run_dir(file, _version_of(file), workspace.root, mode)


# A job is asked about many times a second, and reading a recipe costs more than all the rest of the look.
@lru_cache(maxsize=256)
def _run_dir(file: Path, _: tuple[int, ...], root: Path, mode: Mode) -> Path:
    recipe = TrainRecipe.from_yaml(file)
    recipe.validate()
    return recipe.resolve(root).run_dir(mode)


def _version_of(file: Path) -> tuple[int, ...]:
    """Return what differs once a file was written anew."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _job_adapter(workspace: Workspace, job_id: str) -> Path:
    run_dir = job_run_dir(workspace, job_id)
    for job in list_jobs(workspace.jobs_dir):
        if job.id > job_id and job.kind == "train" and run_dir_of(workspace, job) == run_dir:
            raise TaskError(
                f"job {job.id} has trained into {run_dir} after {job_id}, whose adapter is gone; give each "
                "recipe an output_dir of its own to keep both"
            )
    return _best_checkpoint(run_dir, f"job {job_id}")


def _best_checkpoint(run_dir: Path, whose: str) -> Path:
    found = read_progress(run_dir)
    number = found.best_iter or found.latest_iter
    if not number:
        raise TaskError(f"{whose} has saved no checkpoint in {run_dir} yet; poll it until it has")
    return run_dir / f"iter_{number:07d}"


def _is_job(name: str) -> bool:
    return re.match(r"[0-9]{8}T[0-9]{12}Z-", name) is not None
