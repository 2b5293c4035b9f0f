"""What a client is shown: few tools, small schemas, typed answers in both forms."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp_types import CallToolResult, TextContent

from mcp_server.settings import READ_ONLY_TOOLS, TOOL_NAMES, Settings
from mcp_server.slim_schema import slim
from tests.mcp_server.conftest import Serve
from tools.errors import McpError
from tools.workspace import Workspace

pytestmark = pytest.mark.anyio


def plain(tool: Any) -> dict[str, Any]:
    return tool.model_dump(mode="json", by_alias=True, exclude_none=True)


def text_of(result: CallToolResult) -> str:
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


def leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for entry in value.values():
            yield from leaves(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from leaves(entry)
    else:
        yield value if isinstance(value, str) else json.dumps(value)


async def test_the_whole_list_of_tools_costs_less_than_4000_tokens(serve: Serve) -> None:
    async with Client(serve()) as client:
        tools = (await client.list_tools()).tools
    assert tuple(tool.name for tool in tools) == TOOL_NAMES
    text = json.dumps([plain(tool) for tool in tools], separators=(",", ":"))
    # Tokenizers make 3.9 to 4.5 characters of such JSON a token; 3.5 errs on the dear side.
    assert len(text) / 3.5 < 4000


async def test_schemas_are_flat_typed_closed_objects(serve: Serve) -> None:
    async with Client(serve()) as client:
        tools = (await client.list_tools()).tools
    for tool in tools:
        assert tool.annotations is not None, tool.name
        assert tool.annotations.read_only_hint is (tool.name in READ_ONLY_TOOLS)
        assert tool.annotations.open_world_hint is False
        assert tool.output_schema is not None
        for schema in (tool.input_schema, tool.output_schema):
            assert schema["type"] == "object"
            assert schema["additionalProperties"] is False
            assert not {"oneOf", "anyOf", "allOf", "$ref", "$defs"} & set(schema)
            for name, field in schema["properties"].items():
                assert "type" in field, (tool.name, name)
                assert "anyOf" not in field
                assert "title" not in field
        assert len(tool.description or "") > 60
        assert "\n" not in (tool.description or "")


async def test_text_and_structured_content_hold_the_same_facts(serve: Serve) -> None:
    async with Client(serve()) as client:
        for name, arguments in (
            ("validate_recipe", {}),
            ("lineage", {}),
            ("refresh", {"freshness_days": 0}),
            ("decide", {"question": "train_backend", "optimize_for": "wall_clock"}),
        ):
            result = await client.call_tool(name, arguments)
            assert not result.is_error, text_of(result)
            assert result.structured_content
            text = text_of(result)
            for key in result.structured_content:
                assert f"{key}:" in text
            for leaf in leaves(result.structured_content):
                assert leaf in text


async def test_an_argument_that_a_tool_does_not_have_is_an_error(serve: Serve) -> None:
    async with Client(serve()) as client:
        result = await client.call_tool("validate_recipe", {"recipes": "x"})
    assert result.is_error
    assert "recipes" in text_of(result)


async def test_an_error_holds_its_remedy(serve: Serve) -> None:
    async with Client(serve()) as client:
        for name, arguments, remedy in (
            ("poll", {"job_id": "nope"}, "poll without a job_id"),
            ("train", {"recipe": "i0009-c1-s17"}, "a trial's id from `lineage`"),
            ("train", {"workspace": "other"}, "allowed: ['colours']"),
            ("compare", {"base": "base", "candidate": "i0001-c1"}, "`evaluate` scores an adapter"),
            ("decide", {"question": "train_backend", "optimize_for": "beauty"}, "available"),
            ("evaluate", {"adapter": "data"}, "iter_NNNNNNN"),
        ):
            result = await client.call_tool(name, arguments)
            assert result.is_error
            assert remedy in text_of(result)


async def test_validation_says_what_is_wrong_as_an_answer(serve: Serve, workspace: Workspace) -> None:
    recipe = workspace.recipe_file
    recipe.write_text(recipe.read_text("utf-8").replace("lora_rank: 2", "lora_rank: 0"), encoding="utf-8")
    async with Client(serve()) as client:
        result = await client.call_tool("validate_recipe", {})
    assert result.structured_content is not None
    assert result.structured_content["ok"] is False
    assert "lora_rank" in result.structured_content["problem"]


async def test_the_operator_chooses_the_tools_and_prompts_follow(serve: Serve) -> None:
    async with Client(serve(read_only=True)) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == READ_ONLY_TOOLS
        assert {prompt.name for prompt in (await client.list_prompts()).prompts} == {
            "review_last_night",
            "why_no_gain",
        }
        refused = await client.call_tool("train", {})
        assert refused.is_error
    async with Client(serve(tools=("poll", "train"))) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["train", "poll"]
    async with Client(serve()) as client:
        prompts = {prompt.name for prompt in (await client.list_prompts()).prompts}
        assert prompts == {"first_run", "overnight_bakeoff", "review_last_night", "why_no_gain"}
        found = await client.get_prompt("overnight_bakeoff", {"iterations": "3", "workspace": "colours"})
        block = found.messages[0].content
        assert isinstance(block, TextContent)
        assert "in the workspace colours for 3 iterations" in block.text


def test_settings_that_serve_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(McpError, match="unknown tools"):
        Settings(roots=(tmp_path,), tools=("shell",))
    with pytest.raises(McpError, match="no tool is left"):
        Settings(roots=(tmp_path,), read_only=True, tools=("train",))
    with pytest.raises(McpError, match="no folder"):
        Settings(roots=(tmp_path / "nothing",))


def test_a_slim_schema_has_neither_titles_nor_unions_with_null() -> None:
    fat = {
        "title": "X",
        "type": "object",
        "properties": {
            "title": {"title": "Title", "type": "string"},
            "n": {
                "anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}],
                "default": None,
                "title": "N",
            },
        },
        "required": ["title"],
    }
    assert slim(fat) == {
        "type": "object",
        "properties": {"title": {"type": "string"}, "n": {"type": "integer", "minimum": 0}},
        "required": ["title"],
    }


def test_serving_loads_no_torch(workspace: Workspace, base: Path) -> None:
    code = """
import sys, anyio
from pathlib import Path
from mcp import Client
from mcp_server.app import build_server
from mcp_server.settings import Settings
async def main():
    server = build_server(Settings(roots=(Path(sys.argv[1]),), model_dirs=(Path(sys.argv[2]),)))
    async with Client(server) as client:
        for name, arguments in (("validate_recipe", {}), ("lineage", {}), ("refresh", {}),
                                ("compare", {"base": "a", "candidate": "b"}), ("poll", {})):
            await client.call_tool(name, arguments)
anyio.run(main)
print(sorted({"torch", "transformers", "peft", "optuna", "numpy", "matplotlib"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(workspace.root), str(base.parent)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
