"""Long work: jobs that outlive the client and the server, found again and told truthfully."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp_types import TextContent

from tests.mcp_server.conftest import Serve
from tools.child import started_at
from tools.jobs import list_jobs, start_job
from tools.workspace import Workspace

pytestmark = pytest.mark.anyio


async def facts(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    block = result.content[0]
    assert isinstance(block, TextContent)
    assert not result.is_error, block.text
    assert result.structured_content is not None
    return result.structured_content


async def until_ended(client: Client, job_id: str, limit_s: float = 200.0) -> dict[str, Any]:
    deadline = time.monotonic() + limit_s
    while True:
        found = await facts(client, "poll", job_id=job_id, wait_s=20)
        if found["ended"]:
            return found
        assert time.monotonic() < deadline, found


def sleeper(workspace: Workspace, *, seconds: float = 1000, key: str | None = None) -> str:
    program = f"import time; print('hello', flush=True); time.sleep({seconds})"
    argv = [sys.executable, "-c", program]
    return start_job(workspace.jobs_dir, "merge", argv, cwd=workspace.root, idempotency_key=key).id


@pytest.mark.timeout(900)
async def test_a_client_that_dies_loses_nothing_and_the_next_one_goes_on(
    over_stdio: StdioServerParameters, workspace: Workspace
) -> None:
    # The first client: a process that is killed, with its server, once it has its job.
    program = """
import json, os, sys, anyio
from mcp import Client, StdioServerParameters
async def main():
    server = StdioServerParameters(command=sys.argv[1], args=json.loads(sys.argv[2]), env=dict(os.environ))
    async with Client(server) as client:
        await client.list_tools()
        began = __import__("time").monotonic()
        result = await client.call_tool("train", {"idempotency_key": "night"})
        took_s = __import__("time").monotonic() - began
        print(json.dumps([result.structured_content, took_s]), flush=True)
        os.killpg(0, 9)
anyio.run(main)
"""
    first = subprocess.run(
        [sys.executable, "-P", "-c", program, over_stdio.command, json.dumps(over_stdio.args)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        check=False,
    )
    assert first.returncode == -signal.SIGKILL
    started, took_s = json.loads(first.stdout)
    assert took_s < 5

    async with Client(over_stdio) as client:
        found = await facts(client, "poll", wait_s=0)
        assert found["job_id"] == started["job_id"]
        assert found["jobs"] == [f"{started['job_id']}: {found['status']}, colours"]
        again = await facts(client, "train", idempotency_key="night")
        assert again["job_id"] == started["job_id"]
        trained = await until_ended(client, started["job_id"])
        assert trained["status"] == "succeeded", trained
        assert trained["step"] == trained["total_steps"] == 8
        assert (workspace.root / trained["adapter"] / "adapter_config.json").is_file()

        names = []
        for adapter in ("", started["job_id"]):
            job = await facts(client, "evaluate", adapter=adapter, idempotency_key=f"e-{adapter}")
            scored = await until_ended(client, job["job_id"])
            assert scored["status"] == "succeeded", scored
            assert "32 items" in scored["result"]
            names.append(job["job_id"])
        compared = await facts(client, "compare", base=names[0], candidate=names[1])
        assert compared["n_items"] == 32
        assert compared["verdict"] in ("keep", "discard", "inconclusive")
        assert compared["low"] <= compared["gain"] <= compared["high"]

        merged = await until_ended(client, (await facts(client, "merge"))["job_id"])
        assert merged["status"] == "succeeded", merged
        told, parity = merged["result"].split("; ", 1)
        assert "parity on" in parity
        assert "export 0, same choice" in parity
        export = told.rpartition(" ")[2]
        assert (workspace.root / export / "model.safetensors").is_file()
        assert (await facts(client, "standardize", path=export))["changes"] == []
    assert len(list_jobs(workspace.jobs_dir)) == 4


async def test_cancel_ends_a_job_and_says_so(serve: Serve, workspace: Workspace) -> None:
    job_id = sleeper(workspace)
    async with Client(serve()) as client:
        assert (await facts(client, "poll", job_id=job_id, wait_s=0))["status"] == "running"
        assert (await facts(client, "cancel", job_id=job_id))["status"] == "cancelled"
        found = await facts(client, "poll", job_id=job_id)
        assert (found["status"], found["ended"]) == ("cancelled", True)
        assert "poll_again_s" not in found


async def test_cancel_ends_all_processes_of_a_job_and_keeps_what_it_saves(
    serve: Serve, workspace: Workspace
) -> None:
    program = """
import pathlib, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
def save(*_):
    pathlib.Path("saved.txt").write_text("step 7")
    raise SystemExit(0)
signal.signal(signal.SIGTERM, save)
pathlib.Path("child.txt").write_text(str(child.pid))
time.sleep(1000)
"""
    argv = [sys.executable, "-c", program]
    job = start_job(workspace.jobs_dir, "merge", argv, cwd=workspace.root)
    written = workspace.root / "child.txt"
    with anyio.fail_after(60):
        while not written.is_file() or not written.read_text("utf-8"):
            await anyio.sleep(0.05)
    async with Client(serve()) as client:
        await facts(client, "cancel", job_id=job.id)
        found = await until_ended(client, job.id)
    assert found["status"] == "cancelled"
    assert (workspace.root / "saved.txt").read_text("utf-8") == "step 7"
    with anyio.fail_after(30):
        while started_at(int(written.read_text("utf-8"))) is not None:
            await anyio.sleep(0.05)


async def test_a_job_whose_processes_were_killed_is_told_as_lost(serve: Serve, workspace: Workspace) -> None:
    job_id = sleeper(workspace)
    record = json.loads((workspace.jobs_dir / job_id / "process.json").read_text("utf-8"))
    os.kill(record["supervisor_pid"], signal.SIGKILL)
    os.killpg(record["pid"], signal.SIGKILL)
    async with Client(serve()) as client:
        found = await until_ended(client, job_id)
    assert found["status"] == "lost"
    assert "reboot" in found["error"]


async def test_poll_waits_no_longer_than_it_was_asked_to(serve: Serve, workspace: Workspace) -> None:
    job_id = sleeper(workspace)
    async with Client(serve()) as client:
        began = time.monotonic()
        found = await facts(client, "poll", job_id=job_id, wait_s=0.6)
        assert 0.5 < time.monotonic() - began < 5
        assert found["poll_again_s"] > 0
        too_long = await client.call_tool("poll", {"job_id": job_id, "wait_s": 51})
        assert too_long.is_error
        await facts(client, "cancel", job_id=job_id)


async def test_progress_is_told_only_when_it_grows(serve: Serve, workspace: Workspace) -> None:
    steps = iter([3, 3, 2, 5])
    job_id = sleeper(workspace)
    told: list[float] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        told.append(progress)

    server = serve()
    from mcp_server import owned_jobs
    from mcp_server.job_tools import JobTools

    look = JobTools._look

    def counted(self: JobTools, name: str, where: str) -> Any:
        return look(self, name, where).model_copy(update={"step": next(steps, 5), "total_steps": 9})

    assert owned_jobs is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JobTools, "_look", counted)
        async with Client(server) as client:
            await client.call_tool("poll", {"job_id": job_id, "wait_s": 2.2}, progress_callback=note)
    assert told == [3, 5]
    async with Client(server) as client:
        await facts(client, "cancel", job_id=job_id)


async def test_a_listener_to_a_job_hears_of_its_end(serve: Serve, workspace: Workspace) -> None:
    job_id = sleeper(workspace)
    server = serve()
    async with Client(server) as client:
        uri = f"job://{job_id}"
        with anyio.fail_after(30):
            async with client.listen(resource_subscriptions=[uri]) as events:
                # The watch has looked once before the job ends.
                await anyio.sleep(1.5)
                await facts(client, "cancel", job_id=job_id)
                async for event in events:
                    assert event.uri == uri
                    break
        (contents,) = (await client.read_resource(uri)).contents
        assert json.loads(contents.text)["status"] == "cancelled"


async def test_200_parallel_polls_are_all_answered(
    over_stdio: StdioServerParameters, workspace: Workspace
) -> None:
    job_id = sleeper(workspace)
    answers: list[str] = []

    async with Client(over_stdio) as client:

        async def ask() -> None:
            answers.append((await facts(client, "poll", job_id=job_id, wait_s=1))["job_id"])

        async with anyio.create_task_group() as group:
            for _ in range(200):
                group.start_soon(ask)
        await facts(client, "cancel", job_id=job_id)
    assert answers == [job_id] * 200


async def test_no_more_jobs_are_started_than_a_machine_bears(serve: Serve, workspace: Workspace) -> None:
    running = [sleeper(workspace) for _ in range(4)]
    async with Client(serve()) as client:
        refused = await client.call_tool("train", {})
        assert refused.is_error
        assert running[0] in refused.content[0].text  # type: ignore[union-attr]
        for job_id in running:
            await facts(client, "cancel", job_id=job_id)


async def test_training_on_judged_rows_fails_and_shows_none_of_them(
    serve: Serve, workspace: Workspace
) -> None:
    recipe = workspace.recipe_file
    text = recipe.read_text("utf-8").replace("data/train.jsonl", "data/selection.jsonl")
    recipe.write_text(text, encoding="utf-8")
    async with Client(serve()) as client:
        job = await facts(client, "train")
        found = await until_ended(client, job["job_id"])
    assert found["status"] == "failed"
    assert "train row 'selection-" in found["log_tail"]
    assert "not shown here" in found["log_tail"]
    assert "blue" not in found["log_tail"]
