"""Commands that take a trained adapter out of the house: merge, export, push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from agent.cli.options import AsJson, Where
from agent.cli.output import CONSOLE, print_json
from tools.errors import MergeExportError
from tools.merge import MergeExportResult
from tools.workspace import Workspace

Model = Annotated[Path, typer.Argument(help="The merged model's folder, as `bakehouse merge` prints it.")]
TrialOption = Annotated[
    str | None, typer.Option("--trial", help="A trial of a bakeoff; without it the run of `bakehouse train`.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to app."""
    app.command()(merge)
    app.command()(export)
    app.command()(push)


def merge(
    where: Where = Path("."),
    trial: TrialOption = None,
    recipe_file: Annotated[
        Path | None, typer.Option("--recipe", help="Recipe; the workspace's by default.")
    ] = None,
    iteration: Annotated[
        int | None, typer.Option("--iter", min=1, help="Checkpoint; by default the best, else the last.")
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Compare logits of adapter, merged and exported model on real rows.")
    ] = False,
    rows: Annotated[int, typer.Option(min=1, help="Dev rows to compare on.")] = 8,
    as_json: AsJson = False,
) -> None:
    """Merge a run's adapter into its base model and write it in Hugging Face layout."""
    from agent.exporting import check_export, parity_in_words, recipe_of_run
    from tools.merge import merge_and_export

    workspace = Workspace.find(where)
    recipe = recipe_of_run(workspace, trial, recipe_file)
    with CONSOLE.status("merging"):
        result = merge_and_export(recipe, iter=iteration)
        parity = check_export(workspace, recipe, result, rows) if check else None
    if as_json:
        print_json({**_facts(result), "parity": parity})
    else:
        _say(f"iteration {result.source_iter} merged: {result.merged_hf_dir}")
        if parity is not None:
            _say(parity_in_words(parity))
    if parity is not None and parity.problems:
        raise MergeExportError("parity: " + "; ".join(parity.problems))


def export(
    model: Model,
    llama_cpp: Annotated[Path, typer.Option("--llama-cpp", help="A checkout of llama.cpp that you trust.")],
    gguf: Annotated[Path | None, typer.Option("--gguf", help="File; beside the model by default.")] = None,
    outtype: Annotated[str, typer.Option(help="f32, f16, bf16, q8_0 or auto.")] = "bf16",
    python: Annotated[
        str | None,
        typer.Option(help="Interpreter with llama.cpp's requirements; this one by default."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert a merged model to a GGUF file with llama.cpp's converter."""
    from tools.gguf_export import export_gguf

    with CONSOLE.status("converting"):
        done = export_gguf(model, llama_cpp=llama_cpp, out=gguf, outtype=outtype, python=python)
    if as_json:
        print_json(done)
        return
    _say(f"{done.path}: {done.architecture}, {done.n_tensors} tensors, {done.size_bytes / 1e6:.1f} MB")
    _say(f"sha256 {done.sha256}")


def push(
    model: Model,
    repo: Annotated[str, typer.Option(help="name/model on the hub.")],
    public: Annotated[bool, typer.Option("--public", help="The repository may be seen by all.")] = False,
    message: Annotated[str, typer.Option(help="The commit's message.")] = "Upload model",
    as_json: AsJson = False,
) -> None:
    """Upload a model folder to a Hugging Face hub; private unless --public is given."""
    from tools.hub_push import push_folder

    done = push_folder(model, repo, private=not public, message=message)
    if as_json:
        print_json(done)
        return
    _say(f"{len(done.files)} files pushed to {done.url} ({'private' if done.private else 'public'})")


def _facts(result: MergeExportResult) -> dict[str, Any]:
    return {
        "backend": result.backend,
        "iteration": result.source_iter,
        "merged_hf_dir": result.merged_hf_dir,
        "merged_mcore_dir": result.merged_mcore_dir,
        "shard_renames": result.shard_renames,
        "tokenizer_class_remapped": result.tokenizer_class_remapped,
    }


def _say(text: str) -> None:
    CONSOLE.print(text, markup=False, highlight=False, soft_wrap=True)
