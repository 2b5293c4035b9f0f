"""A bakeoff of K recipes: this engine beside transformers + peft and TRL, in one run.

    python benchmarks/bakeoff.py --device cpu --models smollm2-135m --recipes 8 --peers peft,trl
    python benchmarks/bakeoff.py --device cuda --models smollm2-135m,qwen3-0.6b,qwen3-1.7b \\
        --recipes 8 --rows-tokens 256 --spread 0 --peers peft,trl --json results.json
    python benchmarks/bakeoff.py --decision --device cpu --model-dir FOLDER

All train the same recipes on the same rows in bfloat16, in processes of their own that take
turns: (a) transformers and peft in a plain loop, (b) TRL's SFTTrainer with each of the settings
that could be its best on the device, (c) this engine one recipe at a time, (d) this engine
with all recipes side by side. Ratios are to the TRL setting that ran fastest.

tokens/s counts tokens of rows, never padding, without the first steps of a process; /cpu-s is the
same over processor time, which other work on the machine changes less. `cold s` is the wall of
one process with all recipes, imports and loading included, and `cpu s` its processor time;
`apart s` is the wall of one process a recipe, as a shell loop over configs does it. The peers get
their rows as tokens, this engine tokenises itself. `loss` is the mean over all recipes and steps:
it shows that all do the same work. A packed row of TRL holds about what a step of the others does.

A name in --models is built with random weights; --model-dir takes a real model. Packages of the
peers are looked for in --peer-python, and what is missing there is said and left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bakeoff_decision import run_decision
from benchmarks.bakeoff_report import Outcome, print_report, report_as_json
from benchmarks.bakeoff_run import Peers, Runner, prepare, work_of
from benchmarks.bakeoff_work import Recipe, n_cores

ATTENTION: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
TARGETS: Final = {"attention": ATTENTION, "all": (*ATTENTION, "gate_proj", "up_proj", "down_proj")}
OURS: Final = ("bakehouse in turn", "bakehouse stacked")
# `pure`: the adapters in bfloat16 too, no autocast.
TRL_SETTINGS: Final = {
    "cpu": ("packed", "packed+pure", "padded", "padded+pure"),
    "cuda": (
        "packed",
        "packed+pure",
        "packed+liger",
        "padded",
        "padded+pure",
        "padded+liger",
        "padded+liger+compiled",
    ),
}


def recipes_of(options: argparse.Namespace) -> tuple[Recipe, ...]:
    """Return K recipes that differ in rate, seed and, where several are asked for, rank."""
    return tuple(
        Recipe(
            name=f"r{i}",
            learning_rate=options.learning_rate * 2 ** (i % 4 - 1),
            rank=options.ranks[i % len(options.ranks)],
            alpha=2 * options.ranks[i % len(options.ranks)],
            seed=17 + i,
            targets=TARGETS[options.targets],
        )
        for i in range(options.recipes)
    )


def contenders_of(options: argparse.Namespace) -> list[str]:
    """Return who takes part, by name."""
    found = ["peft loop"] if "peft" in options.peers else []
    if "trl" in options.peers:
        found += [f"trl {setting}" for setting in options.trl or TRL_SETTINGS[options.device]]
    return [*found, *OURS]


def measure(model: str, options: argparse.Namespace, folder: Path) -> Outcome:
    """Have all contenders train on one model, in turn, and return what they took."""
    facts = prepare(model, options, folder)
    work = work_of(facts, options, recipes_of(options))
    runner = Runner(work, Peers(options.peer_python), folder, options.threads)
    outcome = Outcome(model, facts, work, ceiling_flops=runner.ceiling())
    for repeat in range(options.repeat):
        for contender in contenders_of(options):
            if contender not in outcome.absent:
                print(f"  {model}: {contender}, run {repeat + 1} of {options.repeat}", file=sys.stderr)
                outcome.take(contender, runner.run(contender, range(options.recipes)))
    for contender in ("peft loop", outcome.reference) if options.apart else ():
        if contender in outcome.runs:
            print(f"  {model}: {contender}, one process a recipe", file=sys.stderr)
            runs = [runner.run(contender, [i]) for i in range(options.recipes)]
            outcome.apart_s[contender] = sum(run.wall_s for run in runs)
    return outcome


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--models", default="smollm2-135m", help="shapes, by comma")
    parser.add_argument("--model-dir", help="a model to use instead, in Hugging Face layout")
    parser.add_argument("--recipes", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warm-steps", type=int, default=2)
    parser.add_argument("--rows-per-step", type=int, default=8)
    parser.add_argument("--rows-tokens", type=int, default=60)
    parser.add_argument("--spread", type=float, default=0.25, help="row lengths differ by this part")
    parser.add_argument("--supervised-share", type=float, default=0.33)
    parser.add_argument("--rows", help="a JSONL of rows to train on instead of made ones")
    parser.add_argument("--system-prompt", help="a file put before every row")
    parser.add_argument("--ranks", type=lambda text: [int(r) for r in text.split(",")], default=[16])
    parser.add_argument("--targets", choices=tuple(TARGETS), default="attention")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument(
        "--peers", type=lambda text: set(filter(None, text.split(","))), default={"peft", "trl"}
    )
    parser.add_argument(
        "--trl", type=lambda text: text.split(","), help="settings to try, such as packed+liger"
    )
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has the peers")
    parser.add_argument("--threads", type=int, default=n_cores(), help="of every process, on a CPU")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--apart", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--decision", action="store_true", help="time to the same decision instead")
    parser.add_argument("--dev-rows", type=int, default=80, help="rows that a decision rests on")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.warm_steps >= options.steps:
        parser.error("--warm-steps must be below --steps")
    if unknown := options.peers - {"peft", "trl"}:
        parser.error(f"--peers {sorted(unknown)}; allowed: peft, trl")
    return options


def main() -> None:
    """Measure every model and print a table of each."""
    options = parse()
    outcomes = []
    for model in [options.model_dir] if options.model_dir else options.models.split(","):
        with tempfile.TemporaryDirectory(prefix="bakeoff-") as folder:
            try:
                run = run_decision if options.decision else measure
                outcome = run(model, options, Path(folder))
            except subprocess.CalledProcessError as err:
                raise SystemExit(f"{err}\n{err.stderr or ''}") from err
        print_report(outcome)
        outcomes.append(outcome)
        if options.json:
            text = json.dumps([report_as_json(done) for done in outcomes], indent=1)
            options.json.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
