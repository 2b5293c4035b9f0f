"""How the lineage keeps up with its own growth: reading, rendering and appending.

    python benchmarks/lineage_scale.py [--trials 100000] [--rounds 5]

The same file is read by this package and, where it can be imported, by fieldkit, whose format
it is. Each figure is the median of the rounds; "cold" is a new store, "warm" a store that has
read the file before and finds one more row.
"""

from __future__ import annotations

import argparse
import importlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tools.lineage
from tools.lineage import FailureLabel, LineageStore, Trial
from tools.lineage.rows import encode_header, encode_row

ACTIONS = ("read all, cold", "render, cold", "append and render, warm", "append")
_STATUSES = ("keep", "discard", "crash", "eval_budget_overrun")


def make_trial(number: int, rng: random.Random) -> Trial:
    """Return a trial like those of an overnight search; one in eight quotes something."""
    status = FailureLabel(rng.choices(_STATUSES, (2, 6, 1, 1))[0] if number else "baseline")
    metric = None if status is FailureLabel.CRASH else round(rng.uniform(0.4, 0.9), 6)
    quoted = ' because "r=8" underfits' if number % 8 == 0 else ""
    return Trial(
        exp_id=f"{number:06d}",
        timestamp="2026-05-11T10:00:00Z",
        specialist=rng.choice(("opt", "arch", "data")),
        parent_exp=f"{max(0, number - rng.randint(1, 20)):06d}" if number else "",
        baseline_exp="000000",
        domain="drone-router",
        hypothesis=f"raise the learning rate to {rng.uniform(1e-5, 1e-2):.2e}{quoted}",
        expected_delta="+0.01",
        status=status,
        core_metric=metric,
        val_bpb=metric,
        delta_vs_best=None if metric is None else round(rng.uniform(-0.1, 0.01), 6),
        train_s=round(rng.uniform(60, 600), 2),
        total_s=round(rng.uniform(90, 900), 2),
        job_name=f"job-{number}",
        snapshot_path="",
        notes="",
    )


def median_s(rounds: int, action: Callable[[], Any]) -> float:
    """Return the median wall time of an action in seconds."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def measure(rounds: int, root: Path, n_trials: int, module: Any) -> list[float]:
    """Return the seconds of each action in ACTIONS by a module that has the names of tools.lineage."""
    rng = random.Random(0)
    rows = [_as_row_of(module, make_trial(n_trials + number, rng)) for number in range(2 * rounds)]
    warm = module.LineageStore(root)
    warm.render_prompt("opt")

    def append_and_render() -> None:
        warm.append(rows.pop())
        warm.render_prompt("opt")

    return [
        median_s(rounds, lambda: module.LineageStore(root).all_trials()),
        median_s(rounds, lambda: module.LineageStore(root).render_prompt("opt")),
        median_s(rounds, append_and_render),
        median_s(rounds, lambda: warm.append(rows.pop())),
    ]


def _as_row_of(module: Any, trial: Trial) -> Any:
    values: dict[str, Any] = {name: getattr(trial, name) for name in Trial.header()}
    return module.Trial(**values | {"status": module.FailureLabel(trial.status.value)})


def find_peer() -> Any | None:
    """Return fieldkit.lineage, or None where it is not installed."""
    try:
        return importlib.import_module("fieldkit.lineage")
    except ImportError:
        return None


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    peer, rng = find_peer(), random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = (encode_row(make_trial(number, rng)) for number in range(given.trials))
        file = Path(folder, LineageStore.RESULTS_FILENAME)
        file.write_bytes(encode_header() + b"".join(rows))
        print(f"{given.trials} trials, {file.stat().st_size / 1e6:.1f} MB, median of {given.rounds}")
        ours_s = measure(given.rounds, Path(folder), given.trials, tools.lineage)
        theirs_s = None
        if peer is None:
            print("fieldkit is not installed, so there is nothing to compare with: pip install fieldkit")
        else:
            prompts = [module.LineageStore(folder).render_prompt("opt") for module in (tools.lineage, peer)]
            print(f"same Markdown: {prompts[0].rendered_prompt == prompts[1].rendered_prompt}")
            theirs_s = measure(given.rounds, Path(folder), given.trials, peer)
        print(f"{'':26}{'bakehouse':>12}{'fieldkit':>12}{'ratio':>8}")
        for index, what in enumerate(ACTIONS):
            ours = ours_s[index]
            shown, ratio = "absent", ""
            if theirs_s is not None:
                shown, ratio = f"{theirs_s[index] * 1e3:.1f} ms", f"{theirs_s[index] / ours:.2f}x"
            print(f"{what:26}{ours * 1e3:>9.1f} ms{shown:>12}{ratio:>8}")
        print("An append here is on disk when it returns (fsync); fieldkit's is with the operating system.")


if __name__ == "__main__":
    main()
