"""Commands that take a trained adapter out of the house: merge, export, push."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from agent.cli.options import AsJson, Where
from agent.cli.output import CONSOLE, print_json
from tools.errors import MergeExportError
from tools.merge import MergeExportResult
from tools.recipe import MODE_FULL, TrainRecipe
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
    from tools.merge import merge_and_export

    workspace = Workspace.find(where)
    recipe = _recipe_of_run(workspace, trial, recipe_file)
    with CONSOLE.status("merging"):
        result = merge_and_export(recipe, iter=iteration)
        parity = _check(workspace, recipe, result, rows) if check else None
    if as_json:
        print_json({**_facts(result), "parity": parity})
    else:
        _say(f"iteration {result.source_iter} merged: {result.merged_hf_dir}")
        if parity is not None:
            _say(
                f"parity on {parity.n_tokens} tokens of {parity.n_rows} rows: "
                f"adapter {parity.adapter_effect:.2g}, rounding {parity.rounding:.2g}, "
                f"export {parity.export:.2g}, same choice {parity.same_choice:.1%}"
            )
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


def _recipe_of_run(workspace: Workspace, trial: str | None, recipe_file: Path | None) -> TrainRecipe:
    """Return the recipe of the run to merge, its paths absolute."""
    recipe = TrainRecipe.from_yaml(recipe_file) if recipe_file else workspace.load_recipe()
    if trial is None:
        return recipe.resolve(workspace.root)
    folder = workspace.inside(workspace.runs_dir / trial)
    if not folder.is_dir():
        known = sorted(path.name for path in workspace.runs_dir.glob("*") if (path / "runs-full").is_dir())
        raise MergeExportError(f"no run of trial {trial!r} in {workspace.runs_dir}; there are: {known[:40]}")
    recipe = recipe.replace(output_dir=str(folder)).resolve(workspace.root)
    base = _base_of(recipe.run_dir(MODE_FULL))
    return recipe if base is None else recipe.replace(base_model=base)


def _base_of(run_dir: Path) -> str | None:
    """Return the base model that the run's adapters name: a trial's may not be the recipe's."""
    for path in sorted(run_dir.glob("iter_*/adapter_config.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
        except (OSError, ValueError, AttributeError) as err:
            raise MergeExportError(f"{path} cannot be read: {err}") from err
        return str(found) if found else None
    return None


def _check(workspace: Workspace, recipe: TrainRecipe, result: MergeExportResult, rows: int) -> Any:
    from tools.models import resolve_base_model
    from tools.parity import check_parity

    run_dir = recipe.run_dir(MODE_FULL)
    names = (f"iter_{result.source_iter:07d}", f"checkpoint-{result.source_iter}")
    adapter = next((run_dir / name for name in names if (run_dir / name).is_dir()), run_dir / names[0])
    task = workspace.load_task()
    return check_parity(
        resolve_base_model(recipe.base_model),
        adapter,
        result.merged_hf_dir,
        workspace.split_file(task, "dev"),
        n_rows=rows,
        system_prompt_file=recipe.system_prompt_file,
    )


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
