"""Resources: pages, not floods; completions for every id."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import ResourceTemplateReference

from mcp_server.resources import PAGE_BYTES
from tests.mcp_server.conftest import Serve
from tests.mcp_server.test_long_work import sleeper
from tools.jobs import start_job, wait_job
from tools.lineage import FailureLabel, LineageStore, Trial
from tools.workspace import Workspace

pytestmark = pytest.mark.anyio


async def read(client: Client, uri: str) -> Any:
    (contents,) = (await client.read_resource(uri)).contents
    text = contents.text
    return json.loads(text) if contents.mime_type == "application/json" else text


def add_trial(workspace: Workspace, exp_id: str) -> None:
    cells = dict.fromkeys(Trial.header(), "") | {"status": FailureLabel.KEEP.value, "core_metric": "0.5"}
    LineageStore(workspace.lineage_dir, lower_is_better=False).append(
        Trial.from_row(cells | {"exp_id": exp_id})
    )
    workspace.load_recipe().to_yaml(workspace.lineage_dir / exp_id / "recipe.yaml")


async def test_a_long_log_comes_in_pages_that_join_to_the_whole(serve: Serve, workspace: Workspace) -> None:
    program = "for i in range(5000): print(f'line {i} é')"
    job = start_job(workspace.jobs_dir, "merge", [sys.executable, "-c", program], cwd=workspace.root)
    wait_job(workspace.jobs_dir, job.id, timeout_s=60)
    text, offset, pages = "", 0, 0
    async with Client(serve()) as client:
        while offset is not None:
            page = await read(client, f"job://{job.id}/log?offset={offset}")
            assert len(page["text"].encode()) <= PAGE_BYTES
            text, offset, pages = text + page["text"], page["next_offset"], pages + 1
        with pytest.raises(MCPError, match="no position"):
            await read(client, f"job://{job.id}/log?offset=-1")
    assert pages > 3
    assert text == "".join(f"line {i} é\n" for i in range(5000))


async def test_metrics_come_in_pages(serve: Serve, workspace: Workspace) -> None:
    argv = [sys.executable, "-c", "pass", "--recipe", str(workspace.recipe_file)]
    job = start_job(workspace.jobs_dir, "train", argv, cwd=workspace.root)
    wait_job(workspace.jobs_dir, job.id, timeout_s=60)
    run_dir = workspace.root / ".bakehouse" / "runs" / "runs-full"
    run_dir.mkdir(parents=True)
    lines = [json.dumps({"step": step}) for step in range(150)]
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    async with Client(serve()) as client:
        first = await read(client, f"job://{job.id}/metrics")
        second = await read(client, f"job://{job.id}/metrics?line={first['next_line']}")
    assert first["lines"] + second["lines"] == lines
    assert second["next_line"] is None


async def test_recipes_lineage_decisions_and_reports_can_be_read(serve: Serve, workspace: Workspace) -> None:
    add_trial(workspace, "i0001-c1-s17")
    report = workspace.reports_dir / "i0001" / "report.html"
    report.parent.mkdir(parents=True)
    report.write_text("<h1>kept</h1>", encoding="utf-8")
    async with Client(serve()) as client:
        templates = (await client.list_resource_templates()).resource_templates
        assert len(templates) == 7
        assert "lora_rank: 2" in await read(client, "recipe://colours/current")
        assert "lora_rank: 2" in await read(client, "recipe://colours/i0001-c1-s17")
        assert "i0001-c1-s17" in await read(client, "lineage://colours")
        assert await read(client, "report://colours/i0001") == "<h1>kept</h1>"
        entry = await read(client, "decide://2026-05-22-paired-bakeoff")
        assert "findings:" in entry["yaml"]
        for uri in ("recipe://colours/nope", "decide://nope", "report://colours/nope", "job://nope", "x://y"):
            with pytest.raises(MCPError):
                await read(client, uri)
        for uri in ("recipe://colours/..%2F..%2Fx.yaml", "report://colours/..%2Fi0001", "lineage://..%2F.."):
            with pytest.raises(MCPError):
                await read(client, uri)


async def test_every_id_can_be_completed(serve: Serve, workspace: Workspace) -> None:
    add_trial(workspace, "i0001-c1-s17")
    job_id = sleeper(workspace, seconds=0)
    async with Client(serve()) as client:

        async def complete(uri: str, name: str, value: str) -> list[str]:
            ref = ResourceTemplateReference(type="ref/resource", uri=uri)
            return (await client.complete(ref, {"name": name, "value": value})).completion.values

        assert await complete("job://{job}", "job", "20") == [job_id]
        assert await complete("recipe://{workspace}/{recipe}", "workspace", "col") == ["colours"]
        assert await complete("recipe://{workspace}/{recipe}", "recipe", "i0") == ["i0001-c1-s17"]
        assert await complete("decide://{entry}", "entry", "2026-05-22-p") == ["2026-05-22-paired-bakeoff"]
        assert await complete("decide://{entry}", "entry", "zzz") == []
