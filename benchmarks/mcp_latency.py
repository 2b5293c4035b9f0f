"""What the MCP server costs: its start, its memory, a poll beside the SDK's own echo, many polls at once.

    python -P benchmarks/mcp_latency.py [--calls 300] [--parallel 200] [--rounds 5]

The echo is a server of the SDK alone, one tool that returns its argument, started and asked in
turn with ours in the same run: on a busy machine only the differences and ratios mean something.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio
import psutil
from mcp import Client, StdioServerParameters

from tools.jobs import cancel_job, start_job

ECHO = """
from mcp.server.mcpserver import MCPServer
server = MCPServer("echo", log_level="WARNING")
@server.tool()
def echo(text: str) -> str:
    return text
server.run("stdio")
"""


def ours(root: Path) -> StdioServerParameters:
    """Return the server as clients start it."""
    arguments = ["-P", "-m", "mcp_server", "--root", str(root)]
    return StdioServerParameters(command=sys.executable, args=arguments, env=dict(os.environ))


def echo() -> StdioServerParameters:
    """Return the SDK's server with one tool."""
    return StdioServerParameters(command=sys.executable, args=["-P", "-c", ECHO], env=dict(os.environ))


async def measure_start(server: StdioServerParameters) -> float:
    """Return the seconds from the start of the process to its list of tools."""
    began = time.perf_counter()
    async with Client(server) as client:
        await client.list_tools()
        return time.perf_counter() - began


async def measure_calls(client: Client, tool: str, arguments: dict[str, Any], n: int) -> list[float]:
    """Return the milliseconds of each of n calls, one after the other."""
    found: list[float] = []
    for _ in range(n):
        began = time.perf_counter()
        result = await client.call_tool(tool, arguments)
        found.append(1e3 * (time.perf_counter() - began))
        assert not result.is_error, result
    return found


async def measure_parallel(client: Client, arguments: dict[str, Any], n: int) -> tuple[float, int]:
    """Return the seconds that n polls at once take together, and how many were answered."""
    answers: list[bool] = []

    async def ask() -> None:
        answers.append(not (await client.call_tool("poll", arguments)).is_error)

    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(n):
            group.start_soon(ask)
    return time.perf_counter() - began, sum(answers)


def memory_mib(marker: str) -> float:
    """Return the resident memory of the child whose command line holds marker."""
    for child in psutil.Process().children():
        if marker in " ".join(child.cmdline()):
            return float(child.memory_info().rss / 2**20)
    raise SystemExit(f"no child {marker!r}")


async def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "task.yaml").write_text("name: bench\n", encoding="utf-8")
        jobs_dir = root / ".bakehouse" / "jobs"
        argv = [sys.executable, "-c", "import time; time.sleep(10000)"]
        job = start_job(jobs_dir, "merge", argv, cwd=root)
        try:
            starts = {"bakehouse": list[float](), "echo": list[float]()}
            for _ in range(options.rounds):
                starts["bakehouse"].append(await measure_start(ours(root)))
                starts["echo"].append(await measure_start(echo()))
            await report(options, root, {"job_id": job.id, "wait_s": 0}, starts)
        finally:
            cancel_job(jobs_dir, job.id, grace_s=1)


async def report(
    options: argparse.Namespace, root: Path, poll: dict[str, Any], starts: dict[str, list[float]]
) -> None:
    """Ask both servers in turn and print what it took."""
    mine, other = statistics.median(starts["bakehouse"]), statistics.median(starts["echo"])
    print(f"start to first tools/list   {mine:6.2f} s   (SDK's echo {other:.2f} s, ratio {mine / other:.2f})")
    async with Client(ours(root)) as client, Client(echo()) as plain:
        await client.list_tools()
        await plain.list_tools()
        print(
            f"idle memory                 {memory_mib('mcp_server'):6.0f} MiB "
            f"(SDK's echo {memory_mib('MCPServer'):.0f} MiB)"
        )
        polls: list[float] = []
        echoes: list[float] = []
        for _ in range(options.rounds):
            polls += await measure_calls(client, "poll", poll, options.calls // options.rounds)
            echoes += await measure_calls(plain, "echo", {"text": "x"}, options.calls // options.rounds)
        mine, other = statistics.median(polls), statistics.median(echoes)
        print(
            f"poll over stdio, median     {mine:6.2f} ms  (SDK's echo {other:.2f} ms, "
            f"{mine - other:+.2f} ms, ratio {mine / other:.2f})"
        )
        took_s, answered = await measure_parallel(client, poll, options.parallel)
        print(
            f"{options.parallel} polls at once           {took_s:6.2f} s   ({answered} answered, "
            f"{1e3 * took_s / options.parallel:.2f} ms each)"
        )


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--parallel", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    anyio.run(run, parser.parse_args())


if __name__ == "__main__":
    main()
