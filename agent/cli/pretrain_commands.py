"""The command that makes a new base from plain text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from agent.cli.options import AsJson, Where
from agent.cli.output import CONSOLE, print_json
from agent.cli.run_commands import report_job
from agent.launch import save_result, start_agent_job
from tools.workspace import Workspace

if TYPE_CHECKING:
    from tools.pretraining.corpus import Corpus
    from tools.pretraining.run import PretrainResult, PretrainSettings

CorpusPaths = Annotated[
    list[Path], typer.Argument(help="Folders, .txt, .md, or .jsonl with a `text` in each line.")
]


def register(app: typer.Typer) -> None:
    """Add the command to app."""
    app.command()(pretrain)


def pretrain(
    corpus: CorpusPaths,
    where: Where = Path("."),
    name: Annotated[str, typer.Option(help="Names the base's folder under .bakehouse/pretrain.")] = "base",
    base: Annotated[
        str | None, typer.Option(help="What to start from; the base of the workspace's recipe by default.")
    ] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the corpus.")] = 1.0,
    learning_rate: Annotated[float, typer.Option(help="Low: a domain is taken in gently.")] = 2e-5,
    rank: Annotated[int, typer.Option(help="Of the adapter that is merged.")] = 32,
    seq_length: Annotated[int, typer.Option(help="Tokens of a piece of a document at most.")] = 1024,
    batch_size: Annotated[int, typer.Option(help="Pieces a step.")] = 16,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    held_out: Annotated[float, typer.Option(help="Share to measure on and not to learn from.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Of the order and of what is held out.")] = 42,
    drop_leaks: Annotated[bool, typer.Option(help="Leave out documents tied to a judged split.")] = False,
    detach: Annotated[bool, typer.Option(help="Return at once with a job id.")] = False,
    key: Annotated[str | None, typer.Option(help="Idempotency key: the same key is the same job.")] = None,
    as_json: AsJson = False,
) -> None:
    """Learn plain text with LoRA on every token and merge it into a new base for recipes."""
    from agent.pretraining import pretrain_folder, read_gated_corpus
    from tools.pretraining.run import PretrainSettings

    workspace = Workspace.find(where)
    folder = pretrain_folder(workspace, name)
    gated = read_gated_corpus(workspace, corpus, drop_leaks=drop_leaks)
    recipe = workspace.load_recipe().resolve(workspace.root)
    settings = PretrainSettings(
        base_model=recipe.base_model if base is None else base,
        epochs=epochs,
        learning_rate=learning_rate,
        lora_rank=rank,
        seq_length=seq_length,
        micro_batch_size=next(size for size in (4, 3, 2, 1) if batch_size % size == 0),
        global_batch_size=batch_size,
        torch_dtype=dtype,
        seed=seed,
        held_out=held_out,
    )
    settings.recipe(folder / "x", folder)
    if detach:
        _detach(workspace, corpus, settings, name, drop_leaks, key, as_json)
        return
    result = _run(gated.corpus, settings, folder)
    facts = {**_facts(result, workspace), "documents_left_out": gated.n_leaking}
    save_result(facts)
    if as_json:
        print_json(facts)
        return
    before, after = result.before.perplexity, result.after.perplexity
    _say(f"{result.n_documents} documents, {result.n_train_tokens} tokens, {result.steps} steps")
    _say(f"perplexity on {result.after.n_tokens} held-out tokens: {before:.2f} -> {after:.2f}")
    if not result.gained:
        _say("it did not fall: the base learned nothing that carries over; change the corpus or the settings")
    _say(f"base_model: {facts['base_model']}")


def _detach(
    workspace: Workspace,
    corpus: list[Path],
    settings: PretrainSettings,
    name: str,
    drop_leaks: bool,
    key: str | None,
    as_json: bool,
) -> None:
    options = [str(path.resolve()) for path in corpus]
    for option, value in (
        ("--name", name),
        ("--base", settings.base_model),
        ("--epochs", settings.epochs),
        ("--learning-rate", settings.learning_rate),
        ("--rank", settings.lora_rank),
        ("--seq-length", settings.seq_length),
        ("--batch-size", settings.global_batch_size),
        ("--dtype", settings.torch_dtype),
        ("--held-out", settings.held_out),
        ("--seed", settings.seed),
    ):
        options += [option, str(value)]
    options += ["--drop-leaks"] if drop_leaks else []
    report_job(start_agent_job(workspace, "pretrain", options, key=key), as_json)


def _run(corpus: Corpus, settings: PretrainSettings, folder: Path) -> PretrainResult:
    from tools.poll import read_progress
    from tools.pretraining.run import pretrain as learn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=CONSOLE, disable=not CONSOLE.is_terminal) as progress:
        task = progress.add_task("reading", total=None)

        def show(latest: int, _: list[int]) -> None:
            found = read_progress(folder / "runs-full")
            loss = "" if found.loss is None else f", loss {found.loss:.3f}"
            total = None if found.heartbeat is None else found.heartbeat.max_iters
            step = max(latest, found.step or 0)
            progress.update(task, completed=step, total=total, description=f"training{loss}")

        return learn(
            corpus,
            settings,
            folder,
            on_stage=lambda text: progress.update(task, description=text),
            on_progress=show,
        )


def _facts(result: PretrainResult, workspace: Workspace) -> dict[str, Any]:
    folder = Path(result.base)
    inside = folder.is_relative_to(workspace.root.resolve())
    return {
        "base_model": str(folder.relative_to(workspace.root.resolve()) if inside else folder),
        "corpus_digest": result.corpus_digest,
        "recipe_digest": result.recipe_digest,
        "documents": result.n_documents,
        "train_tokens": result.n_train_tokens,
        "steps": result.steps,
        "perplexity_before": result.before.perplexity,
        "perplexity_after": result.after.perplexity,
        "held_out_tokens": result.after.n_tokens,
        "gained": result.gained,
    }


def _say(text: str) -> None:
    CONSOLE.print(text, markup=False, highlight=False, soft_wrap=True)
