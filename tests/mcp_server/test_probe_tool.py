"""The tool `probe`, end to end: a real model is asked, before and after a real training, and compared."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mcp import Client, StdioServerParameters
from mcp_types import TextContent

from tests.agent.bench import COLOURS
from tests.mcp_server.conftest import edit_recipe
from tests.mcp_server.test_long_work import facts, until_ended
from tests.mcp_server.test_surface import leaves
from tools.jobs import list_jobs
from tools.workspace import Workspace

pytestmark = pytest.mark.anyio


def write_lines(workspace: Workspace, name: str, lines: list[dict[str, Any]]) -> str:
    path = workspace.root / "data" / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return f"data/{name}"


async def compare_probes(client: Client, base: str, candidate: str) -> dict[str, Any]:
    """Compare two probe jobs; what a program and a reader are told is the same."""
    result = await client.call_tool("compare", {"base": base, "candidate": candidate, "split": "probe"})
    (block,) = result.content
    assert isinstance(block, TextContent)
    assert not result.is_error, block.text
    assert result.structured_content is not None
    for key, value in result.structured_content.items():
        assert f"{key}: " in block.text
        for leaf in leaves(value):
            assert leaf in block.text
    return result.structured_content


async def probe(client: Client, **arguments: Any) -> str:
    started = await facts(client, "probe", **arguments)
    found = await until_ended(client, started["job_id"])
    assert found["status"] == "succeeded", found
    assert found["kind"] == "probe"
    assert found["next"].endswith("split='probe')")
    return str(started["job_id"])


@pytest.mark.timeout(900)
async def test_what_a_training_taught_is_seen_by_a_probe_of_knowledge(
    over_stdio: StdioServerParameters, workspace: Workspace
) -> None:
    edit_recipe(workspace, learning_rate=0.02, lora_rank=8, lora_alpha=16, epochs=12)
    asked = [(f"{size} {colour}", f"cmd {colour[0]}") for size in range(2) for colour in COLOURS]
    facts_known = [{"question": question, "ideal": ideal} for question, ideal in asked]
    write_lines(workspace, "probe.jsonl", facts_known)
    async with Client(over_stdio) as client:
        base = await probe(client, idempotency_key="before")
        assert (await facts(client, "probe", idempotency_key="before"))["job_id"] == base
        trained = (await facts(client, "train"))["job_id"]
        assert (await until_ended(client, trained))["status"] == "succeeded"
        after = await probe(client, adapter=trained)
        assert len({job.id for job in list_jobs(workspace.jobs_dir)}) == 3

        learned = await compare_probes(client, base, after)
        assert learned["verdict"] == "held"
        assert learned["n_items"] == 8
        assert learned["base_mean"] < learned["candidate_mean"]
        assert learned["low"] <= learned["gain"] <= learned["high"]
        assert learned["reason"].startswith("knowledge: ")
        forgotten = await compare_probes(client, after, base)
        assert forgotten["verdict"] == "fell"
        assert forgotten["gain"] == pytest.approx(-learned["gain"])
        refused = await client.call_tool("compare", {"base": trained, "candidate": after, "split": "probe"})
        assert refused.is_error
        assert "no probe report" in refused.content[0].text  # type: ignore[union-attr]

        questions = [{"qid": f"q{i}", "category": "law", "question": f"go to {i}"} for i in range(3)]
        puzzles = write_lines(workspace, "puzzles.jsonl", questions)
        reasoned = await probe(client, questions=puzzles)
        itself = await compare_probes(client, reasoned, reasoned)
        assert (itself["verdict"], itself["n_items"]) == ("held", 3)
        assert "nothing of it that could be lost" in itself["reason"]
        mixed = await client.call_tool("compare", {"base": base, "candidate": reasoned, "split": "probe"})
        assert mixed.is_error
        assert "the other knowledge" in mixed.content[0].text  # type: ignore[union-attr]
