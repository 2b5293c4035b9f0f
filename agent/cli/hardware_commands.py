"""Commands on what fits a machine: envelope."""

from __future__ import annotations

from typing import Annotated

import typer

from agent.cli.options import AsJson
from agent.cli.output import CONSOLE, print_json, table

_GB = 1e9


def register(app: typer.Typer) -> None:
    """Add the commands to app."""
    app.command()(envelope)


def envelope(
    model: Annotated[
        str, typer.Argument(help="A folder, a .gguf file, a known model, or a size such as '8B bf16'.")
    ],
    ctx: Annotated[int, typer.Option(min=1, help="Tokens of context a sequence.")] = 4096,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once.")] = 1,
    spark: Annotated[bool, typer.Option(help="Reckon for a DGX Spark instead of this machine.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what serving a model takes (weights, KV cache, the longest context), and training an adapter."""
    from tools.capabilities import SPARK, inference_envelope, practical_inference_envelope
    from tools.errors import CapabilityError
    from tools.hardware import detect, estimate, read_shape
    from tools.models import resolve_base_model
    from tools.recipe import TrainRecipe

    hardware = SPARK if spark else detect()
    try:
        words = practical_inference_envelope(model, hardware=hardware)
    except CapabilityError:
        words = None
    if words is not None:
        if as_json:
            print_json({"hardware": hardware.name, "envelope": words})
        else:
            CONSOLE.print(f"{hardware.name}: {words}", markup=False)
        return
    shape = read_shape(resolve_base_model(model))
    found = {
        dtype: inference_envelope(shape, hardware=hardware, ctx=ctx, batch=batch, dtype=dtype)
        for dtype in ("fp32", "bf16", "fp8", "int4")
    }
    # A recipe of defaults, one row at a time: what a first trial would ask for.
    recipe = TrainRecipe(model, "train.jsonl", "out", micro_batch_size=1, seq_length=ctx)
    training = estimate(recipe, shape, hardware, row_tokens=ctx)
    if as_json:
        facts: dict[str, dict[str, object]] = {
            dtype: {**vars(e), "total_bytes": e.total_bytes, "fits": e.fits} for dtype, e in found.items()
        }
        facts["training"] = {"total_bytes": training.total_bytes, "fits": training.fits}
        print_json(
            {"hardware": hardware.name, "parameters": shape.n_params, "ctx": ctx, "batch": batch, **facts}
        )
        return
    rows = [
        (
            dtype,
            f"{e.weight_bytes / _GB:.2f} GB",
            f"{e.kv_cache_bytes / _GB:.3f} GB",
            "fits" if e.fits else "does not fit",
            f"{e.longest_context:,} tokens",
        )
        for dtype, e in found.items()
    ]
    title = f"{model} ({shape.n_params / 1e6:.0f}M weights) on {hardware.name}, {batch} x {ctx} tokens"
    columns = ("weights in", "weights", "KV cache", "", "longest context a sequence")
    CONSOLE.print(table(title, columns, rows))
    verdict = "fits" if training.fits else "does not fit"
    CONSOLE.print(
        f"training a rank-{recipe.lora_rank} adapter, a row of {ctx} tokens at a time: "
        f"{training.describe()}, {verdict}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
