"""What a bakeoff benchmark found, as a table and as JSON."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from statistics import mean, median
from typing import Any, Final

from benchmarks.bakeoff_run import Run
from benchmarks.bakeoff_work import Work, n_cores

__all__ = ["Outcome", "print_report", "report_as_json"]

# A LoRA step: forward and the gradient of the activations; frozen weights have none of their own.
FLOP_PER_PARAMETER: Final = 4


@dataclass
class Outcome:
    """The runs of all contenders on one model."""

    model: str
    facts: dict[str, Any]
    work: Work
    ceiling_flops: float | None = None
    runs: dict[str, list[Run]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    apart_s: dict[str, float] = field(default_factory=dict)
    """Wall of one process a recipe."""
    notes: list[str] = field(default_factory=list)

    def take(self, contender: str, run: Run) -> None:
        """Note a run, or why there is none."""
        if run.measured is None:
            self.absent[contender] = run.absent or "it did not run"
        else:
            self.runs.setdefault(contender, []).append(run)

    @property
    def reference(self) -> str:
        """The TRL setting that ran fastest; the peft loop, or ourselves, where there is none."""
        trl = [name for name in self.runs if name.startswith("trl")]
        others = [name for name in self.runs if name == "peft loop"]
        return max(trl or others or list(self.runs), key=self.speed)

    def speed(self, contender: str) -> float:
        return median(run.measured.tokens_per_s for run in self.runs[contender] if run.measured)

    def cpu_speed(self, contender: str) -> float:
        return median(run.measured.tokens_per_cpu_s for run in self.runs[contender] if run.measured)

    def wall_s(self, contender: str) -> float:
        return median(run.wall_s for run in self.runs[contender])

    def cpu_s(self, contender: str) -> float:
        return median(run.cpu_s for run in self.runs[contender])

    def peak_mib(self, contender: str) -> float:
        return median(run.measured.peak_bytes for run in self.runs[contender] if run.measured) / 2**20

    def loss(self, contender: str) -> float:
        first = self.runs[contender][0].measured
        assert first is not None
        return mean(first.losses.values())

    def versions(self) -> dict[str, str]:
        """Return every package's version; where two environments differ, the peers' one counts."""
        found: dict[str, str] = {}
        for runs in reversed(self.runs.values()):
            assert runs[0].measured is not None
            found |= runs[0].measured.versions
        return found


def print_report(outcome: Outcome) -> None:
    """Print the table of one model."""
    facts, work = outcome.facts, outcome.work
    repeats = max((len(runs) for runs in outcome.runs.values()), default=0)
    print(
        f"\n{outcome.model}, {facts['n_params'] / 1e6:.0f}M parameters, bfloat16 on {work.device}: "
        f"{len(work.recipes)} recipes x {work.steps} steps x {work.rows_per_step} rows of "
        f"{facts['mean_tokens']:.0f} tokens ({100 * facts['supervised']:.0f}% learned, "
        f"{facts['shared_prefix']} shared by all); median of {repeats}"
    )
    print("  " + ", ".join(f"{name} {version}" for name, version in sorted(outcome.versions().items())))
    first = outcome.reference
    share = "" if outcome.ceiling_flops is None else f" {'ceiling':>8}"
    print(
        f"{'':26} {'tokens/s':>9} {'ratio':>7} {'/cpu-s':>7} {'ratio':>7} {'cold s':>8} "
        f"{'ratio':>7} {'cpu s':>7} {'apart s':>8} {'peak MiB':>9} {'loss':>7}{share}"
    )
    for name in outcome.runs:
        speed, wall_s = outcome.speed(name), outcome.wall_s(name)
        apart = f"{outcome.apart_s[name]:8.1f}" if name in outcome.apart_s else f"{'':8}"
        line = (
            f"{name:26} {speed:9.0f} {speed / outcome.speed(first):6.2f}x "
            f"{outcome.cpu_speed(name):7.0f} {outcome.cpu_speed(name) / outcome.cpu_speed(first):6.2f}x "
            f"{wall_s:8.1f} {outcome.wall_s(first) / wall_s:6.2f}x {outcome.cpu_s(name):7.1f} {apart} "
            f"{outcome.peak_mib(name):9.0f} {outcome.loss(name):7.3f}"
        )
        if outcome.ceiling_flops is not None:
            flops = FLOP_PER_PARAMETER * facts["n_params"] * speed
            line += f" {100 * flops / outcome.ceiling_flops:7.1f}%"
        print(line)
    for name, reason in outcome.absent.items():
        print(f"{name:26} absent: {reason}")
    print(f"ratios are to {first}" + _against_apart(outcome))
    for note in outcome.notes:
        print(note)


def _against_apart(outcome: Outcome) -> str:
    apart_s = outcome.apart_s.get(outcome.reference)
    best = min(
        (outcome.wall_s(name) for name in outcome.runs if name.startswith("bakehouse")),
        default=None,
    )
    if apart_s is None or best is None:
        return ""
    return f"; over one process a recipe of it, the whole bakeoff is {apart_s / best:.2f}x faster here"


def report_as_json(outcome: Outcome) -> dict[str, Any]:
    """Return all that was measured, as plain values."""
    return {
        "when": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": n_cores()},
        "model": outcome.model,
        "facts": {
            name: value for name, value in outcome.facts.items() if name not in ("model", "rows", "tokens")
        },
        "recipes": [asdict(recipe) for recipe in outcome.work.recipes],
        "steps": outcome.work.steps,
        "rows_per_step": outcome.work.rows_per_step,
        "ceiling_flops": outcome.ceiling_flops,
        "reference": outcome.reference,
        "contenders": {
            name: {
                "tokens_per_s": outcome.speed(name),
                "tokens_per_cpu_s": outcome.cpu_speed(name),
                "cold_wall_s": outcome.wall_s(name),
                "cold_cpu_s": outcome.cpu_s(name),
                "apart_wall_s": outcome.apart_s.get(name),
                "peak_bytes": outcome.peak_mib(name) * 2**20,
                "loss": outcome.loss(name),
                "runs": [asdict(run) for run in runs],
            }
            for name, runs in outcome.runs.items()
        },
        "absent": outcome.absent,
        "notes": outcome.notes,
    }
