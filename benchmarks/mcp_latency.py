"""What the MCP server costs: start, memory, a poll beside the SDK's own echo, polls beside a training.

    python -P benchmarks/mcp_latency.py [--calls 250] [--parallel 200] [--rounds 7] [--base MODEL] [--json]

The echo is a server of the SDK alone, one tool that returns its argument, started and asked in turn
with ours in the same run: on a busy machine only differences, ratios and processor time mean
something. The training is a real one, of the local lane, started through the server's own `train`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import anyio
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.mcp_servers import Asked, echo, ours, over_http, over_stdio
from tests.agent.bench import make_workspace, write_base
from tools.jobs import cancel_job, start_job
from tools.workspace import Workspace

Numbers = dict[str, Any]
ECHO_ARGUMENTS: Final = {"text": "x"}
OWNER_KEY: Final = "mcp/default/benchmark"
GOALS: Final = {
    "start_s": 1.0,
    "idle_mib": 120.0,
    "poll_over_echo_ms": 2.0,
}


async def measure_start(command: list[str], tool: str) -> tuple[float, float, float]:
    """Return the seconds from the start of the process to its list of tools, its CPU seconds and its MiB."""
    began = time.perf_counter()
    async with over_stdio(command, tool, {}) as server:
        return time.perf_counter() - began, server.cpu_s(), server.memory_mib()


async def measure_starts(root: Path, rounds: int) -> Numbers:
    """Start both servers in turn."""
    found = {"bakehouse": list[tuple[float, ...]](), "echo": list[tuple[float, ...]]()}
    for _ in range(rounds):
        found["bakehouse"].append(await measure_start(ours(root), "poll"))
        found["echo"].append(await measure_start(echo(), "echo"))
    names = ("start_s", "start_cpu_s", "idle_mib")
    return {
        who: dict(zip(names, map(median, zip(*rows, strict=True)), strict=True))
        for who, rows in found.items()
    }


async def measure_polls(mine: Asked, other: Asked, calls: int) -> Numbers:
    """Ask both servers in turn, call for call."""
    took = {"bakehouse": list[float](), "echo": list[float]()}
    cpu_s = {"bakehouse": mine.cpu_s(), "echo": other.cpu_s()}
    for _ in range(calls):
        for who, server in (("bakehouse", mine), ("echo", other)):
            began = time.perf_counter()
            await server.ask()
            took[who].append(1e3 * (time.perf_counter() - began))
    found = {
        who: {**quantiles(took[who]), "cpu_ms": 1e3 * (server.cpu_s() - cpu_s[who]) / calls}
        for who, server in (("bakehouse", mine), ("echo", other))
    }
    return {**found, "over_echo_ms": found["bakehouse"]["p50"] - found["echo"]["p50"]}


async def measure_wave(server: Asked, n: int) -> tuple[list[float], list[Any]]:
    """Ask n times at once; return the milliseconds that each took, and the answers."""
    took: list[float] = []
    answers: list[Any] = []

    async def ask() -> None:
        began = time.perf_counter()
        answers.append(await server.ask())
        took.append(1e3 * (time.perf_counter() - began))

    async with anyio.create_task_group() as group:
        for _ in range(n):
            group.start_soon(ask)
    return took, answers


async def measure_beside_training(root: Path, parallel: int, waves: int) -> Numbers:
    """Start a training through the server, poll it from many sides at once, and count the answers."""
    async with over_stdio(ours(root, "--allow-expensive"), "train", {}) as starter:
        began = time.perf_counter()
        started = (await starter.ask()).structured_content
        train_reply_s = time.perf_counter() - began
        job_id = started["job_id"]
        server = Asked(starter.client, starter.process, "poll", {"job_id": job_id, "wait_s": 0})
        async with over_stdio(echo(), "echo", ECHO_ARGUMENTS) as other:
            try:
                first = await until_it_steps(server)
                took, echoes, answers = list[float](), list[float](), list[Any]()
                for _ in range(waves):
                    wave, found = await measure_wave(server, parallel)
                    took, answers = took + wave, answers + found
                    echoes += (await measure_wave(other, parallel))[0]
                last = (await server.ask()).structured_content
            finally:
                cancel_job(Workspace(root).jobs_dir, job_id, grace_s=5)
            end = (await server.ask()).structured_content
    right = [one for one in answers if one.structured_content["job_id"] == job_id]
    return {
        "train_reply_s": train_reply_s,
        "asked": parallel * waves,
        "answered": len(right),
        "parallel": parallel,
        "poll_ms": quantiles(took),
        "echo_ms": quantiles(echoes),
        "steps_meanwhile": last["step"] - first["step"],
        "still_running_after": last["status"] == "running",
        "ended_as": end["status"],
    }


async def until_it_steps(server: Asked) -> Any:
    """Poll until the training is under way."""
    with anyio.fail_after(180):
        while True:
            found = (await server.ask()).structured_content
            assert not found["ended"], found
            if found.get("step"):
                return found
            await anyio.sleep(0.2)


def quantiles(values: Sequence[float]) -> Numbers:
    """Return the middle and the upper end of a sample."""
    ordered = sorted(values)
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in at.items()}


async def run(options: argparse.Namespace) -> Numbers:
    """Measure everything, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "bench"
        root.mkdir()
        base = options.base or str(write_base(root / "base"))
        workspace = make_workspace(root, Path(base))
        recipe = workspace.recipe_file
        recipe.write_text(recipe.read_text("utf-8").replace("epochs: 1", "epochs: 2000"), encoding="utf-8")
        sleeping = [sys.executable, "-c", "import time; time.sleep(10000)"]
        # The key makes it a job of the principal that asks over HTTP.
        job = start_job(workspace.jobs_dir, "merge", sleeping, cwd=root, idempotency_key=OWNER_KEY)
        poll = {"job_id": job.id, "wait_s": 0}
        try:
            found: Numbers = {"load_1m": psutil.getloadavg()[0]}
            found["start"] = await measure_starts(root, options.rounds)
            async with (
                over_stdio(ours(root), "poll", poll) as mine,
                over_stdio(echo(), "echo", ECHO_ARGUMENTS) as other,
            ):
                found["stdio"] = await measure_polls(mine, other, options.calls)
            async with (
                over_http(lambda port: ours(root, "--http", f"127.0.0.1:{port}"), "poll", poll) as mine,
                over_http(lambda port: [*echo(), str(port)], "echo", ECHO_ARGUMENTS) as other,
            ):
                # The rate that a principal has bounds how often it may be asked in one go.
                found["http"] = await measure_polls(mine, other, min(options.calls, 300))
        finally:
            cancel_job(workspace.jobs_dir, job.id, grace_s=1)
        found["training"] = await measure_beside_training(root, options.parallel, options.waves)
    return {**found, "goals": judge(found)}


def judge(found: Numbers) -> Numbers:
    """Return each goal with what was measured."""
    start, training = found["start"]["bakehouse"], found["training"]
    measured = {
        "start_s": start["start_s"],
        "idle_mib": start["idle_mib"],
        "poll_over_echo_ms": found["stdio"]["over_echo_ms"],
    }
    goals: Numbers = {
        name: {"at_most": goal, "measured": measured[name], "met": measured[name] <= goal}
        for name, goal in GOALS.items()
    }
    lost = training["asked"] - training["answered"]
    goals["polls_lost"] = {
        "at_most": 0,
        "measured": lost,
        "met": lost == 0 and training["still_running_after"],
    }
    return goals


def describe(found: Numbers) -> str:
    """Return what was measured as lines for a reader."""
    start, echoed, training = found["start"]["bakehouse"], found["start"]["echo"], found["training"]
    lines = [
        f"load of the machine         {found['load_1m']:6.2f}",
        _beside("start to first tools/list", start["start_s"], echoed["start_s"], "s"),
        _beside("  CPU of it", start["start_cpu_s"], echoed["start_cpu_s"], "s"),
        _beside("idle memory", start["idle_mib"], echoed["idle_mib"], "MiB"),
    ]
    for way in ("stdio", "http"):
        mine, other = found[way]["bakehouse"], found[way]["echo"]
        lines += [
            _beside(f"poll over {way}, median", mine["p50"], other["p50"], "ms"),
            _beside("  CPU of it", mine["cpu_ms"], other["cpu_ms"], "ms"),
        ]
    lines += [
        f"train answers after         {training['train_reply_s']:6.2f} s",
        f"{training['parallel']} polls at once beside a training, {training['steps_meanwhile']} steps "
        f"meanwhile: {training['answered']} of {training['asked']} answered",
    ]
    for who, sample in (("poll", training["poll_ms"]), ("SDK's echo", training["echo_ms"])):
        shown = ", ".join(f"{name} {value:.0f}" for name, value in sample.items())
        lines.append(f"  {who + ', ms:':16} {shown}")
    missed = [f"{name} ({goal['measured']:.2f})" for name, goal in found["goals"].items() if not goal["met"]]
    return "\n".join([*lines, f"goals missed: {', '.join(missed) or 'none'}"])


def _beside(what: str, mine: float, other: float, unit: str) -> str:
    return f"{what:27} {mine:6.2f} {unit:3} (SDK's echo {other:.2f}, {mine - other:+.2f})"


def main() -> None:
    """Read the options, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=250, help="polls, one after the other")
    parser.add_argument("--parallel", type=int, default=200, help="polls at once")
    parser.add_argument("--waves", type=int, default=5, help="how often so many at once")
    parser.add_argument("--rounds", type=int, default=7, help="starts")
    parser.add_argument("--base", help="base model of the training; a tiny one by default")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = anyio.run(partial(run, options))
    sys.stdout.write((json.dumps(found, indent=2) if options.json else describe(found)) + "\n")


if __name__ == "__main__":
    main()
