"""Run the contenders of a bakeoff benchmark, each in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.bakeoff_work import ABSENT, Job, Measured, Recipe, Work

__all__ = ["Peers", "Run", "Runner", "prepare", "work_of"]

HERE: Final = Path(__file__).resolve().parent
# What the engine's own worker sets: waiting threads go to sleep after some microseconds, so that
# a machine with other work on it does not slow all of them down. The same for everyone.
SPIN: Final = "2000"


@dataclass(frozen=True)
class Peers:
    """Where the peers' packages are."""

    python: str


@dataclass(frozen=True)
class Run:
    """One process, from start to end."""

    wall_s: float
    cpu_s: float
    """Processor time of the whole process, imports and loading included."""
    measured: Measured | None
    absent: str | None = None
    """Why it could not run."""


class Runner:
    """Runs contenders on one work."""

    def __init__(self, work: Work, peers: Peers, folder: Path, threads: int) -> None:
        self._work = work
        self._peers = peers
        self._folder = folder
        self._environment = environment_for(work.device, threads)
        self._count = 0

    def run(self, contender: str, recipes: Sequence[int], *, script: str | None = None) -> Run:
        """Run one process and wait for it; its files are removed again.

        Raises:
            subprocess.CalledProcessError: it failed for another reason than missing packages.
        """
        self._count += 1
        folder = self._folder / f"run-{self._count}"
        job = Job(self._work, contender, tuple(recipes), str(folder)).write()
        ours = contender.startswith("bakehouse")
        name = script or ("bakeoff_ours.py" if ours else "bakeoff_peers.py")
        argv = [sys.executable if ours else self._peers.python, str(HERE / name), str(job)]
        started, used = time.perf_counter(), _children_s()
        done = subprocess.run(argv, env=self._environment, capture_output=True, text=True, check=False)
        wall_s, cpu_s = time.perf_counter() - started, _children_s() - used
        if done.returncode == ABSENT:
            return Run(wall_s, cpu_s, None, done.stderr.strip().splitlines()[-1])
        done.check_returncode()
        measured = Measured(**json.loads((folder / "measured.json").read_text(encoding="utf-8")))
        shutil.rmtree(folder)
        return Run(wall_s, cpu_s, measured)

    def ceiling(self) -> float | None:
        """Return the FLOP/s of a large matrix product on CUDA; None on a CPU."""
        if self._work.device != "cuda":
            return None
        job = Job(self._work, "ceiling", (), str(self._folder / "ceiling")).write()
        argv = [sys.executable, str(HERE / "bakeoff_ours.py"), str(job)]
        done = subprocess.run(argv, env=self._environment, capture_output=True, text=True, check=True)
        return float(json.loads(done.stdout.splitlines()[-1])["flops"])


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def environment_for(device: str, threads: int) -> dict[str, str]:
    """Return the environment that every contender gets."""
    more = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    if device == "cpu":
        more |= {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": SPIN, "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **more}


def prepare(model: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Make the model and the rows, untimed, and return what they are."""
    request = {
        "folder": str(folder),
        "shape": None if options.model_dir else model,
        "model": options.model_dir,
        "device": options.device,
        "rows": options.rows,
        "n_rows": options.rows_per_step * options.steps,
        "rows_tokens": options.rows_tokens,
        "spread": options.spread,
        "supervised_share": options.supervised_share,
        "system_prompt": options.system_prompt,
        "dev": options.dev if options.decision else None,
        "n_dev": options.dev_rows,
    }
    path = folder / "request.json"
    path.write_text(json.dumps(request), encoding="utf-8")
    argv = [sys.executable, str(HERE / "bakeoff_prepare.py"), str(path)]
    subprocess.run(
        argv,
        env=environment_for(options.device, options.threads),
        capture_output=True,
        text=True,
        check=True,
    )
    facts = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))
    assert isinstance(facts, dict)
    return facts


def work_of(facts: dict[str, Any], options: argparse.Namespace, recipes: tuple[Recipe, ...]) -> Work:
    """Return the work on what was prepared."""
    return Work(
        model=facts["model"],
        rows=facts["rows"],
        tokens=facts["tokens"],
        device=options.device,
        rows_per_step=options.rows_per_step,
        steps=options.steps,
        warm_steps=options.warm_steps,
        recipes=recipes,
        system_prompt=options.system_prompt,
        dev=facts["dev"],
        dev_tokens=facts["dev_tokens"],
    )
