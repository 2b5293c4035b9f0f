"""A search that stops its losers early beside one that trains everyone to the end, in one run.

    python benchmarks/halving.py                     the demo's rows on the cached demo model
    python benchmarks/halving.py --steps 48 --repeat 3 --json halving.json
    python benchmarks/halving.py --curves halving.json     the simulation alone, from a saved file

Eight recipes of unlike learning rate, rank, targets and layers are trained on the same rows, by
turns to the end and with successive halving, and whoever is left is scored on the judged rows:
wall clock and steps to the same winner. Mid-run evaluations and final scores are in the wall
clock, loading the base is not.

Then the risk. Checkpoints of the full training are scored on the whole dev set, a score per row
and recipe and rung. From these curves searches are simulated, each on dev rows drawn
anew: how often is the eventual winner dropped, what does the best that is left lack, and what part
of the steps is saved; with equal scores told apart by the loss of the expected answers, as the
engine does, and with all that tie going on. Differences of less than a judged row are no
difference: a recipe that ties with the winner is the winner too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.dataset import load_dataset  # noqa: E402
from tools.engine.adapter_files import load_adapter  # noqa: E402
from tools.engine.base import LoadedBase, load_base  # noqa: E402
from tools.engine.batches import RowEncoder  # noqa: E402
from tools.engine.evaluate import evaluate_adapters  # noqa: E402
from tools.engine.halving import Halving, Standing, cut  # noqa: E402
from tools.engine.results import MemberResult  # noqa: E402
from tools.engine.row_loss import row_losses  # noqa: E402
from tools.engine.spec import AdapterRef, EvaluateSpec, MidEval, ScorerChoice, StackMember  # noqa: E402
from tools.engine.trainer import train_stack  # noqa: E402
from tools.evaluation.scores import read_scores  # noqa: E402
from tools.models import resolve_base_model  # noqa: E402
from tools.recipe import TrainRecipe  # noqa: E402

EXAMPLE = ROOT / "examples" / "drone-router"
SCORER = ScorerChoice("json", ("confidence",))
MLP = ("gate_proj", "up_proj", "down_proj")
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", *MLP)
MAX_NEW_TOKENS = 56
PATCHES: dict[str, dict[str, Any]] = {
    "start": {},
    "timid": {"learning_rate": 3e-4},
    "bold": {"learning_rate": 5e-3},
    "wide": {"lora_rank": 32, "lora_alpha": 64},
    "all": {"lora_target_modules": ALL},
    "all-calm": {"lora_target_modules": ALL, "lora_rank": 16, "learning_rate": 7e-4},
    "mlp": {"lora_target_modules": MLP, "lora_alpha": 32},
    "upper": {"lora_layers": tuple(range(15, 30)), "lora_target_modules": ALL},
}
SEARCHES = (
    Halving((0.25,), 0.5),
    Halving((0.5,), 0.5),
    Halving((0.25, 0.5), 0.5),
    Halving((0.375, 0.625), 0.5),
    Halving((0.5, 0.75), 0.5),
    Halving((0.25, 0.5, 0.75), 0.6),
)
POINTS = sorted({rung for search in SEARCHES for rung in search.rungs})
"""Where the curves are measured; all of them eighths of the way."""
ITEMS = (24, 48, 80)


@dataclass(frozen=True)
class Arm:
    """One way through the eight recipes."""

    wall_s: float
    cpu_s: float
    """Of this process: on a machine that others use too, steadier than the clock."""
    steps: int
    winner: str
    winner_score: float
    statuses: dict[str, str]
    judged: dict[str, float]
    """Mean over the judged rows of everyone who was left."""


@dataclass(frozen=True)
class Curves:
    """How each recipe did on the way, and at its end."""

    dev: dict[str, list[list[float]]]
    """After each of POINTS of its steps, the score of every dev row."""
    dev_loss: dict[str, list[list[float]]]
    """The same for the loss of the expected answer."""
    final: dict[str, float]
    """At its end, the mean over the judged rows."""
    n_judged: int


@dataclass(frozen=True)
class Risk:
    """What a search does on dev rows drawn again and again."""

    rungs: tuple[float, ...]
    keep: float
    n_items: int
    by_loss: bool
    """Equal scores are told apart by loss."""
    dropped: float
    """Part of the draws in which nobody who ends as well as the winner is left."""
    regret: float
    """Mean of what the best that is left lacks on the judged rows."""
    steps_left: float
    """Mean part of all steps that is trained."""


def members(folder: Path, base: LoadedBase, steps: int) -> list[StackMember]:
    """Return the eight recipes as members of a stack, each with a checkpoint after every eighth."""
    start = TrainRecipe.from_yaml(EXAMPLE / "recipe.yaml").resolve(EXAMPLE)
    fixed = {"base_model": base.name, "output_dir": str(folder), "epochs": None, "max_steps": steps}
    saving = {"save_interval": steps // 8, "most_recent_k": -1, "smoke_steps": 1}
    recipes = {name: start.replace(**fixed, **saving, **changes) for name, changes in PATCHES.items()}
    return [StackMember(name, recipe, str(folder / name)) for name, recipe in recipes.items()]


def run_arm(
    base: LoadedBase, folder: Path, search: Halving | None, options: argparse.Namespace
) -> tuple[Arm, tuple[MemberResult, ...]]:
    """Train the eight, score those that are left and return how long it took."""
    stack = members(folder, base, options.steps)
    mid_eval = MidEval(
        str(EXAMPLE / "data/dev.jsonl"), options.items, SCORER, MAX_NEW_TOKENS, options.batch_size
    )
    started, cpu_before = time.perf_counter(), time.process_time()
    results = train_stack(base, stack, mid_eval=mid_eval, search=search, stack_tokens=options.stack_tokens)
    left = {r.trial_id: str(r.adapter_dir) for r in results if r.status in ("done", "stopped_early")}
    scores = score(base, folder, left, "selection", options)
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_before
    means = {name: fmean(found) for name, found in scores.items()}
    winner = max(means, key=lambda name: means[name])
    statuses = {result.trial_id: f"{result.status} at {result.steps}" for result in results}
    return Arm(wall_s, cpu_s, sum(r.steps for r in results), winner, means[winner], statuses, means), results


def score(
    base: LoadedBase, folder: Path, adapters: Mapping[str, str], split: str, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Return the score of every row of a split for every adapter."""
    refs = tuple(AdapterRef(name, 0, path) for name, path in adapters.items())
    spec = EvaluateSpec(
        base_model=base.name,
        torch_dtype="bfloat16",
        adapters=refs,
        splits={split: str(EXAMPLE / f"data/{split}.jsonl")},
        scorer=SCORER,
        scores_dir=str(folder / "scores"),
        result_path=str(folder / "result.json"),
        system_prompt=system_prompt(),
        max_new_tokens=MAX_NEW_TOKENS,
        batch_size=options.batch_size,
    )
    for result in evaluate_adapters(base, spec):
        if result.error:
            raise SystemExit(f"{result.trial_id} could not be scored: {result.error}")
    return {
        name: [row.score for row in read_scores(folder / "scores" / name / f"{split}.jsonl")]
        for name in adapters
    }


def system_prompt() -> str:
    return (EXAMPLE / "system_prompt.md").read_text(encoding="utf-8").strip()


def measure_curves(
    base: LoadedBase,
    folder: Path,
    results: Sequence[MemberResult],
    final: dict[str, float],
    options: argparse.Namespace,
) -> Curves:
    """Score the checkpoints of a training to the end on all dev rows."""
    dev: dict[str, list[list[float]]] = {result.trial_id: [] for result in results}
    dev_loss: dict[str, list[list[float]]] = {result.trial_id: [] for result in results}
    rows = RowEncoder(base.tokenizer).encode(str(EXAMPLE / "data/dev.jsonl"), system_prompt()).rows
    for part in POINTS:
        adapters = {}
        for result in results:
            folder_of = Path(str(result.adapter_dir)).parent
            adapters[result.trial_id] = str(folder_of / f"iter_{round(part * result.total_steps):07d}")
        for name, scores in score(base, folder, adapters, "dev", options).items():
            dev[name].append(scores)
            adapter = load_adapter(base.stack, adapters[name], device=base.device, dtype=base.dtype)
            dev_loss[name].append([loss.mean for loss in row_losses(base, rows, adapter)])
    return Curves(dev, dev_loss, final, len(load_dataset(EXAMPLE / "data/selection.jsonl").rows))


def simulate(curves: Curves, search: Halving, n_items: int, *, by_loss: bool, draws: int, seed: int) -> Risk:
    """Run a search on the curves, again and again on n_items dev rows drawn with replacement."""
    chance = random.Random(seed)
    best = max(curves.final.values())
    n_rows = len(next(iter(curves.dev.values()))[0])
    dropped, regrets, parts = 0, [], []
    for _ in range(draws):
        rows = [chance.randrange(n_rows) for _ in range(n_items)]
        left, cost, before = set(curves.dev), 0.0, 0.0
        for rung in search.rungs:
            cost += len(left) * (rung - before)
            place = POINTS.index(rung)
            standings = {
                name: Standing(
                    fmean(curves.dev[name][place][i] for i in rows),
                    fmean(curves.dev_loss[name][place][i] for i in rows) if by_loss else None,
                )
                for name in left
            }
            left &= cut(standings, search.keep).kept
            before = rung
        cost += len(left) * (1 - before)
        lacks = best - max(curves.final[name] for name in left)
        dropped += lacks > 0.5 / curves.n_judged
        regrets.append(lacks)
        parts.append(cost / len(curves.dev))
    return Risk(search.rungs, search.keep, n_items, by_loss, dropped / draws, fmean(regrets), fmean(parts))


def tell(arms: Mapping[str, Sequence[Arm]]) -> None:
    """Print both arms and their ratio."""
    for name, runs in arms.items():
        wall_s, cpu_s, steps = (
            median(getattr(arm, key) for arm in runs) for key in ("wall_s", "cpu_s", "steps")
        )
        winners = ", ".join(f"{arm.winner} {100 * arm.winner_score:.1f}%" for arm in runs)
        print(f"{name:8} {wall_s:8.1f} s, {cpu_s:8.1f} s of CPU, {steps:5.0f} steps   winner {winners}")
        print("         " + "; ".join(f"{who} {how}" for who, how in runs[0].statuses.items()))
    pairs = list(zip(arms["whole"], arms["halving"], strict=True))
    by_clock, by_cpu, by_steps = (
        median(getattr(whole, key) / getattr(halved, key) for whole, halved in pairs)
        for key in ("wall_s", "cpu_s", "steps")
    )
    same = sum(whole.winner == halved.winner for whole, halved in pairs)
    print(
        f"halving is {by_clock:.2f}x by the clock, {by_cpu:.2f}x by CPU time, {by_steps:.2f}x by steps; ",
        end="",
    )
    print(f"the same winner in {same} of {len(pairs)}")


def tell_risks(curves: Curves, risks: Sequence[Risk]) -> None:
    """Print the curves, and what each search would have done."""
    shown = " ".join(f"{100 * point:4.1f}%" for point in POINTS)
    print(f"\ndev score after {shown} of the steps, and the judged score at the end")
    for name, parts in sorted(curves.dev.items(), key=lambda pair: -curves.final[pair[0]]):
        shown = " ".join(f"{100 * fmean(part):5.1f}" for part in parts)
        print(f"{name:10} {shown}   {100 * curves.final[name]:5.1f}")
    print(f"\n{'rungs':>20} {'keep':>5} {'rows':>5} {'ties':>6} {'best lost':>10} {'lacks':>7} {'steps':>7}")
    for risk in risks:
        rungs = ", ".join(f"{rung:g}" for rung in risk.rungs)
        numbers = f"{100 * risk.dropped:9.1f}% {100 * risk.regret:6.2f}p {100 * risk.steps_left:6.1f}%"
        ties = "loss" if risk.by_loss else "go on"
        print(f"{rungs:>20} {risk.keep:5g} {risk.n_items:5d} {ties:>6} {numbers}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--model", default="smollm2-135m-instruct-q4_1", help="folder or known name of the base"
    )
    parser.add_argument("--steps", type=int, default=24, help="of each recipe, a multiple of 8")
    parser.add_argument("--items", type=int, default=24, help="dev rows of a mid-run evaluation")
    parser.add_argument("--rungs", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--repeat", type=int, default=1, help="turns of both arms; medians are told")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--batch-size", type=int, default=120, help="rows answered at once")
    parser.add_argument("--stack-tokens", type=int, default=None)
    parser.add_argument("--draws", type=int, default=2000, help="simulated searches")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--curves", type=Path, help="take the curves from such a file and train nothing")
    options = parser.parse_args(arguments)
    if options.steps < 8 or options.steps % 8:
        parser.error("--steps must be a multiple of 8: the curves have a point after every eighth")
    return options


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Yield a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="bakehouse-halving-") as folder:
        yield Path(folder)


def measure(options: argparse.Namespace) -> tuple[dict[str, list[Arm]], Curves]:
    """Run both arms by turns and score the curves of the first training to the end."""
    base = load_base(resolve_base_model(options.model), "bfloat16")
    search = Halving(tuple(options.rungs), options.keep)
    search.check()
    arms: dict[str, list[Arm]] = {"whole": [], "halving": []}
    curves = None
    for turn in range(options.repeat):
        # Whoever goes second finds warm caches: they take turns at that too.
        for name in sorted(arms, reverse=turn % 2 == 0):
            with scratch() as folder:
                arm, results = run_arm(base, folder, None if name == "whole" else search, options)
                arms[name].append(arm)
                print(f"turn {turn + 1}, {name}: {arm.wall_s:.1f} s, {arm.steps} steps", file=sys.stderr)
                if name == "whole" and curves is None:
                    curves = measure_curves(base, folder, results, arm.judged, options)
    assert curves is not None
    return arms, curves


def main() -> int:
    """Measure, simulate and tell."""
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    arms: dict[str, list[Arm]] = {}
    if options.curves:
        curves = Curves(**json.loads(options.curves.read_text(encoding="utf-8"))["curves"])
    else:
        arms, curves = measure(options)
        tell(arms)
    risks = [
        simulate(curves, search, n_items, by_loss=by_loss, draws=options.draws, seed=1)
        for search in SEARCHES
        for n_items in ITEMS
        for by_loss in (False, True)
    ]
    tell_risks(curves, risks)
    if options.json:
        told = {
            "arms": {name: [asdict(arm) for arm in runs] for name, runs in arms.items()},
            "curves": asdict(curves),
            "risks": [asdict(risk) for risk in risks],
        }
        options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
