"""How often the verdict is wrong, and how often it sees a real gain.

    python benchmarks/verdict_rates.py                  some ten minutes on one core
    python benchmarks/verdict_rates.py --reps 300       a first look

Simulated recipes of known worth are scored, compared and ruled on by the project's own code:

1. False keeps: candidates that are the incumbent once more, by nothing but noise. Beside the
   verdict stands the rule `score > best`, which keeps whatever scores higher.
2. Coverage: how often the true gain lies outside the interval, on either side.
3. Power: how often a true gain is kept, of three candidates tried.

Every rate has to stay at or below its promise, within three standard errors of the
simulation; the exit code is 1 where one does not. No promise is made where seeds differ and one
was trained, nor where their scores spread by more than 5 points: those rows show what further
seeds buy, and how far the promise carries.

The model: an item is solved by everyone or by no one, or it is *contested* (every answer to it
is an even coin, tilted by the luck of its training seed), or *gained* (only the candidate
solves it), or *lost* (only the base does). The true gain is the share gained less that lost.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from tools.comparison import Scores, compare, corrected_level
from tools.verdict import Verdict, reach_verdict

LEVEL = 0.95
MOST_LUCK = 0.05
CANDIDATES = (1, 2, 4, 8)


@dataclass(frozen=True)
class World:
    """What is simulated."""

    n_items: int
    n_seeds: int
    contested: float
    luck: float = 0.0
    """Standard deviation of a seed's mean score over all items there are, before `simulate` cuts it."""
    quiet_base: bool = False
    """Whether only the candidate's seeds differ."""
    gained: float = 0.0
    lost: float = 0.0
    graded: bool = False

    @property
    def true_gain(self) -> float:
        return self.gained - self.lost

    @property
    def is_promised(self) -> bool:
        """Whether the verdict answers for its error rates in this world."""
        return self.luck <= (MOST_LUCK if self.n_seeds > 1 else 0.0)

    def label(self) -> str:
        kind, side = "graded" if self.graded else "0/1", "*" if self.quiet_base else " "
        return (
            f"{self.n_items:5d} {self.n_seeds:5d} {100 * self.contested:9.0f}% {100 * self.luck:5.0f}{side}"
            f"{100 * self.gained:6.0f} {100 * self.lost:4.0f} {kind:>6}"
        )


HEAD = "items seeds  contested  luck gained lost scores"
NOTE = "luck, gained and lost in points; *: the luck of the candidate's seeds only"


@dataclass(frozen=True)
class Rate:
    """A share of simulations, with the most that was promised of it (None: nothing was)."""

    hits: int
    reps: int
    promise: float | None

    @property
    def is_kept(self) -> bool:
        if self.promise is None:
            return True
        slack = 3 * math.sqrt(self.promise * (1 - self.promise) / self.reps)
        return self.hits / self.reps <= self.promise + slack

    def __str__(self) -> str:
        mark = " " if self.promise is None else ("." if self.is_kept else "!")
        return f"{100 * self.hits / self.reps:6.2f}{mark}"


def simulate(world: World, n_candidates: int, rng: random.Random) -> tuple[Scores, list[Scores]]:
    """Return the scores of a base and of its candidates on one draw of the items."""
    shares = (world.contested, world.gained, world.lost)
    kinds = rng.choices(
        ("contested", "gained", "lost", "settled"), (*shares, 1 - sum(shares)), k=world.n_items
    )
    values = {"gained": (0.0, 1.0), "lost": (1.0, 0.0), "settled": (1.0, 1.0)}
    names = tuple(f"item-{number}" for number in range(world.n_items))
    seeds = tuple(range(world.n_seeds))

    def score(side: int) -> Scores:
        rows = []
        for _ in seeds:
            lucky = world.luck > 0 and not (world.quiet_base and side == 0)
            tilt = rng.gauss(0.0, world.luck / world.contested) if lucky else 0.0
            # Cut evenly on both sides, so that the coin stays even on average.
            even = 0.5 + max(-0.5, min(0.5, tilt))
            rows.append(
                tuple(
                    _answer(rng, even, world.graded) if k == "contested" else values[k][side] for k in kinds
                )
            )
        return Scores(names, seeds, tuple(rows))

    return score(0), [score(1) for _ in range(n_candidates)]


def _answer(rng: random.Random, even: float, graded: bool) -> float:
    share = rng.random()
    if graded:
        return min(1.0, max(0.0, even + 0.2 * (share - 0.5)))
    return float(share < even)


def keeps(base: Scores, candidates: Sequence[Scores]) -> bool:
    """Say whether the verdict keeps one of the candidates or more."""
    level = corrected_level(LEVEL, len(candidates))
    rulings = (reach_verdict(compare(base, candidate, level=level)) for candidate in candidates)
    return any(ruling.verdict is Verdict.KEEP for ruling in rulings)


def false_keeps(world: World, reps: int, seed: int) -> list[tuple[Rate, Rate]]:
    """Return, for each number of candidates, the rates of the verdict and of `score > best`."""
    rates = []
    for n_candidates in CANDIDATES:
        rng = random.Random(f"{seed} {world} {n_candidates}")
        kept = higher = 0
        for _ in range(reps):
            base, candidates = simulate(world, n_candidates, rng)
            ahead = [candidate for candidate in candidates if candidate.mean > base.mean]
            higher += bool(ahead)
            # One that is not even ahead cannot be kept; its interval need not be computed.
            level_candidates = ahead + [base] * (n_candidates - len(ahead))
            kept += bool(ahead) and keeps(base, level_candidates)
        promise = (1 - LEVEL) / 2 if world.is_promised else None
        rates.append((Rate(kept, reps, promise), Rate(higher, reps, None)))
    return rates


def misses(world: World, reps: int, seed: int) -> tuple[Rate, Rate, float]:
    """Return how often the interval lies above and below the true gain, and its mean half-width."""
    rng = random.Random(f"{seed} {world} coverage")
    above = below = 0
    width = 0.0
    for _ in range(reps):
        base, (candidate,) = simulate(world, 1, rng)
        found = compare(base, candidate, level=LEVEL)
        above += found.low > world.true_gain
        below += found.high < world.true_gain
        width += (found.high - found.low) / 2
    return Rate(above, reps, None), Rate(below, reps, None), width / reps


def power(world: World, reps: int, seed: int) -> Rate:
    """Return how often one candidate of three, all as good, is kept: the share of single keeps."""
    rng = random.Random(f"{seed} {world} power")
    level = corrected_level(LEVEL, 3)
    kept = 0
    for _ in range(reps):
        base, (candidate,) = simulate(world, 1, rng)
        kept += reach_verdict(compare(base, candidate, level=level)).verdict is Verdict.KEEP
    return Rate(kept, reps, None)


def noise_worlds() -> list[World]:
    """Return worlds in which no candidate is better."""
    shapes = (
        World(0, 0, contested=0.05),
        World(0, 0, contested=0.4),
        World(0, 0, contested=0.4, luck=0.02),
        World(0, 0, contested=0.25, luck=0.05),
        World(0, 0, contested=0.25, luck=0.05, quiet_base=True),
    )
    return [replace(shape, n_items=n, n_seeds=s) for n in (40, 120) for shape in shapes for s in (1, 2, 3)]


def coverage_worlds() -> list[World]:
    """Return worlds with and without a gain, with few and many items that differ."""
    one_seed = (
        World(0, 1, contested=0.02),
        World(0, 1, contested=0.5),
        World(0, 1, contested=0.1, gained=0.1, lost=0.1),
        World(0, 1, contested=0.2, gained=0.4, lost=0.02),
        World(0, 1, contested=0.0, gained=0.95),
        World(0, 1, contested=0.0, lost=0.02),
        World(0, 1, contested=0.8, lost=0.02, graded=True),
    )
    some_seeds = [
        World(0, n_seeds, contested=contested, luck=luck, gained=gained, quiet_base=quiet)
        for contested, gained in ((0.5, 0.0), (0.25, 0.2))
        for luck, quiet in ((0.0, False), (0.02, False), (0.05, False), (0.05, True), (0.08, False))
        for n_seeds in (2, 3)
    ]
    return [replace(shape, n_items=n) for n in (40, 120) for shape in (*one_seed, *some_seeds)]


def power_worlds() -> list[World]:
    """Return worlds with a true gain, on the demonstration's 120 items."""
    return [
        World(120, n_seeds, contested=0.25, luck=luck, gained=gain)
        for luck in (0.0, 0.02, 0.05)
        for n_seeds in (1, 2, 3)
        for gain in (0.02, 0.05, 0.1, 0.2, 0.3)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description="Error rates and power of the verdict.")
    parser.add_argument("--reps", type=int, default=2000, help="simulations per cell (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=17, help="of the simulation (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    args = parser.parse_args(argv)
    print(f"{args.reps} simulations per cell; rates in percent; {NOTE}")
    print("a dot: within the promise; an exclamation mark: beyond it; nothing: no promise is made")
    with ProcessPoolExecutor(args.workers) as pool:
        kept = [
            _print_false_keeps(pool, args.reps, args.seed),
            _print_coverage(pool, args.reps, args.seed),
        ]
        _print_power(pool, args.reps, args.seed)
    print("\nevery promise is kept" if all(kept) else "\na promise is broken: see the exclamation marks")
    return 0 if all(kept) else 1


def _print_false_keeps(pool: ProcessPoolExecutor, reps: int, seed: int) -> bool:
    worlds = noise_worlds()
    print(f"\n1. False keeps on pure noise; promised: at most {100 * (1 - LEVEL) / 2:.1f}")
    print(f"   tried: {CANDIDATES}; the verdict left, `score > best` right\n{HEAD}")
    kept = True
    for world, rates in zip(
        worlds, pool.map(partial(false_keeps, reps=reps, seed=seed), worlds), strict=True
    ):
        ours, peers = zip(*rates, strict=True)
        kept &= all(rate.is_kept for rate in ours)
        print(f"{world.label()}  {' '.join(map(str, ours))} | {' '.join(map(str, peers))}", flush=True)
    return kept


def _print_coverage(pool: ProcessPoolExecutor, reps: int, seed: int) -> bool:
    worlds = coverage_worlds()
    print(f"\n2. The true gain outside the {LEVEL:.0%} interval; promised: at most {100 * (1 - LEVEL):.1f}")
    print(f"{HEAD}   outside | interval above, below | half-width in points")
    kept = True
    for world, found in zip(worlds, pool.map(partial(misses, reps=reps, seed=seed), worlds), strict=True):
        above, below, width = found
        outside = Rate(above.hits + below.hits, reps, 1 - LEVEL if world.is_promised else None)
        kept &= outside.is_kept
        print(f"{world.label()}  {outside} | {above} {below} | {100 * width:6.1f}", flush=True)
    return kept


def _print_power(pool: ProcessPoolExecutor, reps: int, seed: int) -> None:
    worlds = power_worlds()
    print("\n3. True gains kept, at the level corrected for three candidates")
    print("items seeds  luck | true gain: kept")
    cells = zip(worlds, pool.map(partial(power, reps=reps, seed=seed), worlds), strict=True)
    line: list[str] = []
    for world, rate in cells:
        line.append(f"{100 * world.gained:3.0f}: {str(rate).strip()}")
        if world.gained == power_worlds()[-1].gained:
            print(
                f"{world.n_items:5d} {world.n_seeds:5d} {100 * world.luck:5.0f} | {'   '.join(line)}",
                flush=True,
            )
            line = []


if __name__ == "__main__":
    sys.exit(main())
