"""What a flywheel loses when it is killed: real runs, SIGKILL at random moments, resumed until done.

    python benchmarks/kill_rounds.py                       ten rounds
    python benchmarks/kill_rounds.py --rounds 100 --seed 2

A reference run on a tiny model is left alone. Each round then does the same work in a repository of
its own, is killed again and again, either the flywheel alone, so that its workers and git outlive it,
or with all of its children, and is started again with the same command until the work is done. What
it ends with must be what the reference ended with: the same trials with the same scores, each once;
the same commits, each once and whole; a sound repository; a clean worktree; the user's own checkout
as it was; a budget of what the reference spent, and not a trial more, spent to the last one. The exit
code is 1 where anything was lost, doubled or left behind.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.kill_checks import (  # noqa: E402
    ENVIRONMENT,
    check_ground,
    compare,
    git,
    read_ending,
    user_state,
)
from tests.agent.bench import make_workspace, write_base, write_plan  # noqa: E402
from tools.clock import utc_now  # noqa: E402
from tools.journal import Journal  # noqa: E402
from tools.recipe import TrainRecipe  # noqa: E402
from tools.workspace import Workspace  # noqa: E402

PATCHES = (
    {
        "learning_rate": 0.01,
        "lora_rank": 16,
        "lora_alpha": 32,
        "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "epochs": 4,
    },
    {"learning_rate": 2e-4},
    {"lora_alpha": 8},
    {"weight_decay": 0.1},
)
# As short as the gate can be and still pass: a step that is cut short has as many places to die in.
_SMOKE = {"rows": 4, "steps": 20, "learning_rate": 0.02}
_DEV_ROWS = 8
_MOST_STARTS = 60
_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Moment:
    """A step of the reference, and how long it took there."""

    iteration: str
    step: str
    wall_s: float


@dataclass
class Round:
    """One round: where it was killed, how often it was started, and what is wrong."""

    killed_in: list[str] = field(default_factory=list)
    starts: int = 0
    refusals: list[str] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: float = 0.0
    faults: list[str] = field(default_factory=list)


def prepare(root: Path, base: Path, *, seeds: Sequence[int], trials: int | None = None) -> Workspace:
    """Write the workspace of a round; checkpoints are frequent, so that a kill finds half-done runs.

    Args:
        trials: The budget: a trial that were charged twice would leave none for the last.
    """
    root.mkdir(parents=True)
    workspace = make_workspace(root, base, seeds=list(seeds), smoke=_SMOKE, budget={"trials": trials})
    recipe = TrainRecipe.from_yaml(workspace.recipe_file).replace(save_interval=3)
    recipe.to_yaml(workspace.recipe_file)
    dev = root / "data" / "dev.jsonl"
    dev.write_text("".join(dev.read_text(encoding="utf-8").splitlines(keepends=True)[:_DEV_ROWS]))
    git(root, "commit", "-q", "-m", "Save often, score dev shortly", "--", "recipe.yaml", "data/dev.jsonl")
    write_plan(root.with_name(f"{root.name}.plan.yaml"), *PATCHES)
    return workspace


def start(workspace: Workspace, iterations: int) -> subprocess.Popen[str]:
    plan = workspace.root.with_name(f"{workspace.root.name}.plan.yaml")
    command = [sys.executable, "-P", "-m", "agent", "flywheel", "--workspace", str(workspace.root)]
    command += ["--iters", str(iterations), "--plan", str(plan), "--json"]
    log = workspace.root.with_name(f"{workspace.root.name}.log").open("a", encoding="utf-8")
    with log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, text=True, start_new_session=True, env=os.environ | ENVIRONMENT
        )


def is_over(workspace: Workspace) -> bool:
    """Return whether the flywheel has come to its end; a kill after that costs nothing."""
    return Journal(workspace.journal_file, clock=utc_now).last("run_end") is not None


def kill(child: subprocess.Popen[str], *, whole_tree: bool) -> None:
    """Kill the flywheel, alone or with all that it has started."""
    family: list[psutil.Process] = []
    if whole_tree:
        try:
            family = psutil.Process(child.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
    child.send_signal(signal.SIGKILL)
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    child.wait()


def place_of(workspace: Workspace) -> str:
    """Return the step that was under way, by the last line of the journal."""
    events = Journal(workspace.journal_file, clock=utc_now).tail(1)
    if not events:
        return "before the first step"
    last = events[0]
    return str(last.step) if last.event == "start" else f"after {last.step or last.event}"


def read_moments(workspace: Workspace) -> list[Moment]:
    """Return every step that a finished flywheel went through, in order."""
    begun: dict[tuple[str, str], str] = {}
    found = []
    for event in Journal(workspace.journal_file, clock=utc_now).events():
        if event.step is not None and event.event == "start":
            begun[event.key, event.step] = event.at
        elif event.step is not None and event.event == "done":
            took = datetime.fromisoformat(event.at) - datetime.fromisoformat(begun[event.key, event.step])
            # The journal's clock has seconds, and a short step is under way for less than one.
            found.append(Moment(event.key, event.step, max(0.3, took.total_seconds())))
    return found


def wait_for(child: subprocess.Popen[str], workspace: Workspace, moment: Moment, luck: random.Random) -> None:
    """Wait until a step is under way, at a random place in it, or until the flywheel has ended.

    Raises:
        TimeoutExpired: the moment has come, and the flywheel runs.
    """
    journal = Journal(workspace.journal_file, clock=utc_now)
    before = journal.attempts(moment.step, moment.iteration)
    while journal.attempts(moment.step, moment.iteration) == before:
        if child.poll() is not None or journal.is_done(moment.step, moment.iteration):
            break
        time.sleep(0.02)
    child.wait(timeout=luck.uniform(0.0, moment.wall_s))


def run_round(
    workspace: Workspace,
    *,
    wanted: int,
    kills: int,
    luck: random.Random,
    moments: Sequence[Moment] = (),
) -> Round:
    """Start the flywheel until its work is done, and kill the first starts at random moments.

    A moment is a place in a random step, so that short steps get their share, or, but for the first,
    a random time.
    """
    found, began = Round(), time.monotonic()
    span_s = sum(moment.wall_s for moment in moments)
    aims = sorted(luck.sample(range(len(moments)), k=min(kills, len(moments))))
    while not is_over(workspace) and found.starts < _MOST_STARTS:
        journal = Journal(workspace.journal_file, clock=utc_now)
        aims = [i for i in aims if not journal.is_done(moments[i].step, moments[i].iteration)]
        child = start(workspace, wanted)
        found.starts += 1
        try:
            if not aims:
                child.wait()
            elif found.killed_in and luck.random() < 0.3:
                child.wait(timeout=luck.uniform(0.0, span_s))
            else:
                wait_for(child, workspace, moments[aims[0]], luck)
            code = child.wait()
        except subprocess.TimeoutExpired:
            kill(child, whole_tree=luck.random() < 0.5)
            found.killed_in.append(place_of(workspace))
            aims.pop(0)
            continue
        if code:
            # A refusal is no loss, but a person would meet it: it is told, and tried again.
            log = workspace.root.with_name(f"{workspace.root.name}.log").read_text(encoding="utf-8")
            found.refusals.append(log.strip().splitlines()[-1][:300])
            if len(found.refusals) > kills + 2:
                break
            time.sleep(1.0)
    found.wall_s = time.monotonic() - began
    return found


def leave_out_pictures(folder: Path) -> None:
    """Let the flywheels find no matplotlib, whose loading takes longer than all else in a commit."""
    folder.mkdir()
    (folder / "matplotlib.py").write_text("raise ImportError('left out')\n", encoding="utf-8")
    others = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *([others] if others else [])])


def adopt_orphans() -> None:
    """Have what a killed flywheel leaves behind handed to this process, which can then say what it took."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children_cpu_s() -> float:
    """Return the CPU time of all children that have ended, orphans included. None may be waited for."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=2, help="of each flywheel")
    parser.add_argument("--kills", type=int, default=3, help="at most, in a round")
    parser.add_argument("--training-seeds", type=int, nargs="+", default=[17, 29])
    parser.add_argument("--pictures", action="store_true", help="draw report.png too: 6 s of CPU a round")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--keep", type=Path, help="work here and leave everything lying")
    asked = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="kill-rounds-", dir=asked.keep))
    try:
        return _run(asked, folder)
    finally:
        if asked.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def _run(asked: argparse.Namespace, folder: Path) -> int:
    if not asked.pictures:
        leave_out_pictures(folder / "without pictures")
    base = write_base(folder / "base")
    luck = random.Random(asked.seed)
    reference = prepare(folder / "reference", base, seeds=asked.training_seeds)
    adopt_orphans()
    alone = run_round(reference, wanted=asked.iterations, kills=0, luck=luck)
    alone.cpu_s = cpu_before = children_cpu_s()
    expected = read_ending(reference)
    print(
        f"left alone: {len(expected.trials)} trials, {len(expected.iterations)} commits, "
        f"{alone.wall_s:.0f} s ({alone.cpu_s:.0f} s of CPU)"
        + "".join(f"\n  {text}" for text in alone.refusals)
    )
    if alone.refusals or len(expected.iterations) != asked.iterations:
        print("the reference itself did not end in order; nothing can be compared with it")
        return 1
    moments = read_moments(reference)
    places: collections.Counter[str] = collections.Counter()
    broken, took = 0, [0.0, 0.0]
    for number in range(1, asked.rounds + 1):
        workspace = prepare(
            folder / f"round-{number}", base, seeds=asked.training_seeds, trials=len(expected.debited)
        )
        before = user_state(workspace.root)
        found = run_round(workspace, wanted=asked.iterations, kills=asked.kills, luck=luck, moments=moments)
        found.faults += check_ground(workspace, before) + compare(expected, read_ending(workspace))
        cpu_after = children_cpu_s()
        found.cpu_s, cpu_before = cpu_after - cpu_before, cpu_after
        places.update(found.killed_in)
        broken += bool(found.faults)
        took = [took[0] + found.wall_s, took[1] + found.cpu_s]
        _print_round(number, found)
        if asked.keep is None:
            shutil.rmtree(workspace.root, ignore_errors=True)
    print(f"{sum(places.values())} kills: " + ", ".join(f"{place} {n}" for place, n in places.most_common()))
    print(f"a round took {took[0] / asked.rounds:.0f} s, {took[1] / asked.rounds:.0f} s of CPU on average")
    print(f"{broken} of {asked.rounds} rounds lost, doubled or left something")
    return 1 if broken else 0


def _print_round(number: int, found: Round) -> None:
    state = "nothing lost, nothing doubled" if not found.faults else f"{len(found.faults)} FAULT(S)"
    where = ", ".join(found.killed_in) or "nowhere"
    print(
        f"round {number}: {state}; {found.starts} starts, {found.wall_s:.0f} s ({found.cpu_s:.0f} s of CPU), "
        f"killed in: {where}",
        flush=True,
    )
    for text in found.refusals:
        print(f"  refused once: {text}", flush=True)
    for text in found.faults:
        print(f"  {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
