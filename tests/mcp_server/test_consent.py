"""Expensive and destructive steps: a person is asked where the client can, the operator decides elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.client.session import ClientRequestContext
from mcp_types import ElicitRequestParams, ElicitResult, TextContent

from agent.launch import option_of
from tests.mcp_server.conftest import Serve
from tools.files import write_json_atomic
from tools.jobs import cancel_job, list_jobs
from tools.recipe import TrainRecipe
from tools.workspace import Workspace

pytestmark = pytest.mark.anyio
ERAS = ["legacy", "auto"]


class Person:
    """Answers every question alike and remembers what was asked."""

    def __init__(self, action: str, approve: bool = True) -> None:
        self.asked: list[str] = []
        self._answer = ElicitResult(
            action=action,  # type: ignore[arg-type]
            content={"approve": approve} if action == "accept" else None,
        )

    async def __call__(self, ctx: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        self.asked.append(params.message)
        return self._answer


def text_of(result: Any) -> str:
    block = result.content[0]
    assert isinstance(block, TextContent)
    return block.text


def stop_all(workspace: Workspace) -> int:
    jobs = list_jobs(workspace.jobs_dir)
    for job in jobs:
        cancel_job(workspace.jobs_dir, job.id, grace_s=1)
    return len(jobs)


@pytest.mark.parametrize("era", ERAS)
async def test_a_long_training_starts_once_a_person_agreed(
    serve: Serve, workspace: Workspace, era: str
) -> None:
    person = Person("accept")
    async with Client(serve(free_rows=10), mode=era, elicitation_callback=person) as client:
        result = await client.call_tool("train", {})
        assert not result.is_error, text_of(result)
        smoke = await client.call_tool("train", {"mode": "smoke"})
        assert not smoke.is_error
    assert person.asked == ["This training may see 32 rows, more than the 10 that need no consent."]
    assert stop_all(workspace) == 2


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("person", [Person("decline"), Person("cancel"), Person("accept", approve=False)])
async def test_a_no_starts_nothing(serve: Serve, workspace: Workspace, era: str, person: Person) -> None:
    async with Client(serve(free_rows=10), mode=era, elicitation_callback=person) as client:
        for tool in ("train", "start_bakeoff"):
            result = await client.call_tool(tool, {})
            assert result.is_error
            assert "the person said no" in text_of(result)
    assert stop_all(workspace) == 0


@pytest.mark.parametrize("era", ERAS)
async def test_a_client_that_cannot_ask_needs_the_operators_flag(
    serve: Serve, workspace: Workspace, era: str
) -> None:
    async with Client(serve(free_rows=10), mode=era) as client:
        result = await client.call_tool("train", {})
        assert result.is_error
        assert "--allow-expensive" in text_of(result)
    assert stop_all(workspace) == 0
    async with Client(serve(free_rows=10, allow_expensive=True), mode=era) as client:
        result = await client.call_tool("train", {})
        assert not result.is_error, text_of(result)
    assert stop_all(workspace) == 1


async def test_a_bakeoff_under_the_tasks_own_cap_needs_no_consent(serve: Serve, workspace: Workspace) -> None:
    with workspace.task_file.open("a", encoding="utf-8") as file:
        file.write("budget: {wall_s: 600}\n")
    async with Client(serve(free_rows=10)) as client:
        result = await client.call_tool("start_bakeoff", {"iterations": 1})
        assert not result.is_error, text_of(result)
    assert stop_all(workspace) == 1


@pytest.mark.parametrize("era", ERAS)
async def test_an_export_is_not_replaced_without_a_yes(serve: Serve, workspace: Workspace, era: str) -> None:
    (workspace.root / ".bakehouse" / "runs" / "merged-hf-bf16").mkdir(parents=True)
    person = Person("decline")
    async with Client(serve(), mode=era, elicitation_callback=person) as client:
        assert (await client.call_tool("merge", {})).is_error
    assert person.asked == [".bakehouse/runs/merged-hf-bf16 is there already and would be replaced."]
    assert stop_all(workspace) == 0


async def test_a_call_that_is_repeated_with_its_key_asks_nobody_again(
    serve: Serve, workspace: Workspace
) -> None:
    person = Person("accept")
    async with Client(serve(free_rows=10), elicitation_callback=person) as client:

        async def start(tool: str) -> str:
            result = await client.call_tool(tool, {"idempotency_key": tool})
            assert not result.is_error, text_of(result)
            assert result.structured_content is not None
            return str(result.structured_content["job_id"])

        for tool in ("train", "merge"):
            first = await start(tool)
            (workspace.root / ".bakehouse" / "runs" / "merged-hf-bf16").mkdir(parents=True, exist_ok=True)
            assert await start(tool) == first
            shutil.rmtree(workspace.root / ".bakehouse" / "runs" / "merged-hf-bf16")
    assert len(person.asked) == 1
    assert stop_all(workspace) == 2


async def test_a_trial_is_merged_and_scored_from_its_own_run(serve: Serve, workspace: Workspace) -> None:
    trial = "i0001-c1-s17"
    workspace.load_recipe().to_yaml(workspace.lineage_dir / trial / "recipe.yaml")
    run_dir = workspace.runs_dir / trial / "runs-full"
    (run_dir / "iter_0000008").mkdir(parents=True)
    config = {"base_model_name_or_path": workspace.load_recipe().base_model}
    write_json_atomic(run_dir / "iter_0000008" / "adapter_config.json", config)
    (run_dir / "latest_checkpointed_iteration.txt").write_text("8", encoding="utf-8")
    person = Person("accept")
    async with Client(serve(), elicitation_callback=person) as client:
        for _ in range(2):
            result = await client.call_tool("merge", {"recipe": trial})
            assert not result.is_error, text_of(result)
            (workspace.runs_dir / trial / "merged-hf-bf16").mkdir(exist_ok=True)
        result = await client.call_tool("evaluate", {"adapter": trial})
        assert not result.is_error, text_of(result)
        unknown = await client.call_tool("merge", {"recipe": "i0009-c1-s17"})
        assert "a trial's id from `lineage`" in text_of(unknown)
    assert person.asked == [f".bakehouse/runs/{trial}/merged-hf-bf16 is there already and would be replaced."]
    merge, again, score = list_jobs(workspace.jobs_dir)
    stop_all(workspace)
    frozen = TrainRecipe.from_yaml(option_of(merge, "--recipe") or "")
    assert Path(frozen.output_dir) == (workspace.runs_dir / trial).resolve()
    assert again.argv == merge.argv
    assert option_of(score, "--adapter") == str((run_dir / "iter_0000008").resolve())
