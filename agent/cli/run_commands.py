"""Commands that run one recipe: train, poll, cancel, eval."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from agent.cli.options import AsJson, Where
from agent.cli.output import CONSOLE, percent, print_json, table
from agent.launch import save_result, start_training
from tools.errors import EvaluationError, TaskError
from tools.evaluation.chat_clients import OpenAICompatibleClient
from tools.evaluation.scores import ScoreRow
from tools.jobs import JobRecord, cancel_job, list_jobs, read_job
from tools.poll import RunProgress, read_progress
from tools.recipe import TrainRecipe
from tools.workspace import Workspace


def register(app: typer.Typer) -> None:
    """Add the commands to app."""
    app.command()(train)
    app.command()(poll)
    app.command()(cancel)
    app.command(name="eval")(evaluate)


def train(
    where: Where = Path("."),
    recipe_file: Annotated[
        Path | None, typer.Option("--recipe", help="Recipe; the workspace's by default.")
    ] = None,
    smoke: Annotated[bool, typer.Option(help="Only the recipe's smoke steps.")] = False,
    detach: Annotated[bool, typer.Option(help="Return at once with a job id.")] = False,
    key: Annotated[str | None, typer.Option(help="Idempotency key: the same key is the same job.")] = None,
    check_data: Annotated[bool, typer.Option(help="Refuse rows that are tied to a judged split.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train one recipe, here or detached."""
    from agent.validation import check_recipe, check_training_rows

    workspace = Workspace.find(where)
    recipe = TrainRecipe.from_yaml(recipe_file) if recipe_file else workspace.load_recipe()
    if detach:
        report_job(
            start_training(workspace, recipe_file=recipe_file, smoke=smoke, check_data=check_data, key=key),
            as_json,
        )
        return
    resolved = check_recipe(workspace, recipe)
    if check_data:
        check_training_rows(workspace, resolved)
    result = _train_here(workspace, resolved, "smoke" if smoke else "full")
    if as_json:
        print_json(result)
        return
    CONSOLE.print(
        f"step {result.final_iter} after {result.wall_seconds:.0f} s; checkpoints in {result.run_dir}",
        markup=False,
        soft_wrap=True,
    )


def poll(
    target: Annotated[str, typer.Argument(help="A job's id or a run folder; nothing lists the jobs.")] = "",
    where: Where = Path("."),
    wait_s: Annotated[float, typer.Option(min=0, max=3600, help="Wait this long for the job's end.")] = 0.0,
    log_lines: Annotated[int, typer.Option(min=0, max=1000, help="Lines of the job's log to show.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Say what a job or a run folder has reached, from what is on disk."""
    from tools.jobs import wait_job

    if Path(target).is_dir() and target:
        _report_run(read_progress(target), as_json)
        return
    jobs_dir = Workspace.find(where).jobs_dir
    if target:
        job = wait_job(jobs_dir, target, timeout_s=wait_s) if wait_s else read_job(jobs_dir, target)
        report_job(job, as_json, log_lines=log_lines)
        return
    jobs = list_jobs(jobs_dir)
    if as_json:
        print_json([_job_facts(job) for job in jobs])
    else:
        rows = [(job.id, job.kind, job.status, job.created_at, job.error or "") for job in jobs]
        CONSOLE.print(table("jobs", ("job", "kind", "status", "created", "note"), rows))


def cancel(
    job_id: Annotated[str, typer.Argument(help="A job's id.")],
    where: Where = Path("."),
    as_json: AsJson = False,
) -> None:
    """End a job and all of its processes; what it saved stays."""
    report_job(cancel_job(Workspace.find(where).jobs_dir, job_id), as_json)


def evaluate(
    split: Annotated[
        str, typer.Option(help="dev or selection; test is opened by `report --open-test` alone.")
    ] = "dev",
    adapter: Annotated[
        Path | None, typer.Option(help="A saved adapter; the untrained base without one.")
    ] = None,
    where: Where = Path("."),
    failures: Annotated[int, typer.Option(min=0, help="Failed dev rows to show.")] = 5,
    endpoint: Annotated[
        str | None, typer.Option(help="Score a served model instead: an OpenAI-compatible http(s)://host/v1.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model's name at --endpoint.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", help="Variable that holds the endpoint's key.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests in flight at most.")] = 8,
    timeout_s: Annotated[float, typer.Option(min=1, help="For one attempt of a request.")] = 120.0,
    body: Annotated[
        str | None, typer.Option(help='More fields of each request, as JSON: {"repeat_penalty": 1.0}')
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score an adapter, the base model or a served model on a split."""
    if split not in ("dev", "selection"):
        raise TaskError(
            f"split is {split!r}; allowed: dev, selection (test is opened by `bakehouse report --open-test`)"
        )
    workspace = Workspace.find(where)
    if endpoint is None:
        if any(option is not None for option in (model, api_key_env, body)):
            raise TaskError("--model, --api-key-env and --body say what to ask at --endpoint; give that too")
        _score_here(workspace, adapter, split, failures, as_json)
        return
    if model is None or adapter is not None:
        raise TaskError("--endpoint needs --model, the name it serves, and takes no --adapter")
    client = OpenAICompatibleClient(
        endpoint, model, api_key_env=api_key_env, timeout_s=timeout_s, extra_body=_fields(body)
    )
    _score_endpoint(workspace, client, split, concurrency, failures, as_json)


def _fields(body: str | None) -> dict[str, Any]:
    try:
        found = json.loads(body or "{}")
    except ValueError as err:
        raise TaskError(f"--body is no JSON: {err}") from err
    if not isinstance(found, dict) or {"model", "messages"} & found.keys():
        raise TaskError(f"--body is {body!r}; a JSON object is needed, without `model` and `messages`")
    return found


def _score_here(workspace: Workspace, adapter: Path | None, split: str, failures: int, as_json: bool) -> None:
    from agent.scoring import score_adapter

    with CONSOLE.status(f"scoring {split}"):
        scored = score_adapter(workspace, adapter, split)
    facts = {"split": split, "mean": scored.mean, "n": len(scored.rows), "scores": scored.name}
    save_result(facts)
    _report_scores(facts, scored.rows, failures, as_json)


def _score_endpoint(
    workspace: Workspace,
    client: OpenAICompatibleClient,
    split: str,
    concurrency: int,
    failures: int,
    as_json: bool,
) -> None:
    from agent.scoring import score_generator
    from tools.generators.endpoint import EndpointGenerator
    from tools.probe.generator import Sampling

    sampling = Sampling(workspace.load_task().max_new_tokens, temperature=0.0)
    with CONSOLE.status(f"scoring {split} at {client.base_url}"):
        name, found = score_generator(workspace, EndpointGenerator(client, sampling, concurrency), split)  # type: ignore[arg-type]
    facts = {
        "split": split,
        "mean": found.mean,
        "n": len(found.rows),
        "unanswered": len(found.unanswered),
        "cut_off": found.n_cut_off,
        "input_tokens": found.input_tokens,
        "output_tokens": found.output_tokens,
        "scores": name,
    }
    save_result(facts)
    _report_scores(facts, found.rows, failures, as_json)
    if found.unanswered:
        reason = f": {found.unanswered[0].error}" if split == "dev" else ""
        n_rows = len(found.rows) + len(found.unanswered)
        raise EvaluationError(
            f"{len(found.unanswered)} of {n_rows} rows got no answer and are in no mean; the first is "
            f"{found.unanswered[0].item_id}{reason}"
        )


def _report_scores(facts: Mapping[str, Any], rows: Sequence[ScoreRow], failures: int, as_json: bool) -> None:
    if as_json:
        print_json(dict(facts))
        return
    CONSOLE.print(f"{facts['split']}: {percent(facts['mean'])} of {len(rows)} items", markup=False)
    wrong = [row for row in rows if row.score < 1] if facts["split"] == "dev" else []
    if wrong[:failures]:
        cells = [(row.item_id, row.prompt, row.expected, row.output, row.error) for row in wrong[:failures]]
        CONSOLE.print(table(f"{len(wrong)} wrong", ("item", "prompt", "expected", "answered", "why"), cells))


def _train_here(workspace: Workspace, recipe: TrainRecipe, mode: str) -> Any:
    from agent.scoring import mid_eval_settings
    from tools.dataset import load_dataset
    from tools.train import run

    steps = recipe.total_steps(len(load_dataset(recipe.dataset_jsonl)), mode)  # type: ignore[arg-type]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=CONSOLE, disable=not CONSOLE.is_terminal) as progress:
        task = progress.add_task("loading the base model", total=steps)

        def show(latest: int, _: list[int]) -> None:
            found = read_progress(recipe.run_dir(mode))  # type: ignore[arg-type]
            loss = "" if found.loss is None else f"loss {found.loss:.3f}"
            progress.update(task, completed=max(latest, found.step or 0), description=loss or "training")

        mid_eval = mid_eval_settings(workspace) if recipe.eval_interval else None
        return run(recipe, mode=mode, poll_interval=1.0, on_progress=show, mid_eval=mid_eval)


def _report_run(progress: RunProgress, as_json: bool) -> None:
    if as_json:
        print_json(progress)
        return
    state = progress.heartbeat.state if progress.heartbeat else "no heartbeat"
    rows = [
        ("state", state),
        ("step", progress.step),
        ("checkpoints", ", ".join(map(str, progress.iters)) or "none"),
        ("best", progress.best_iter),
        ("loss", progress.loss),
        ("mid-run score", progress.eval_score),
        ("tokens/s", progress.tokens_per_s),
    ]
    CONSOLE.print(table(str(progress.run_dir), ("what", "now"), rows))


def report_job(job: JobRecord, as_json: bool, *, log_lines: int = 0) -> None:
    """Print what is known of a job."""
    if as_json:
        print_json(_job_facts(job))
        return
    CONSOLE.print(f"{job.id}: {job.status}", markup=False, highlight=False)
    if job.error:
        CONSOLE.print(f"  {job.error}", markup=False)
    if log_lines and job.log_tail(log_lines):
        CONSOLE.print(job.log_tail(log_lines), markup=False, highlight=False, style="dim")
    if not job.ended:
        CONSOLE.print(
            f"  look again: bakehouse poll {job.id} --workspace {job.cwd}", markup=False, soft_wrap=True
        )


def _job_facts(job: JobRecord) -> dict[str, Any]:
    return {
        "id": job.id,
        "kind": job.kind,
        "status": job.status,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "exit_code": job.exit_code,
        "error": job.error,
        "log": str(job.log_path),
    }


__all__ = ["register", "report_job"]
