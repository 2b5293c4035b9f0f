"""The server over the usual app factory, with what the conformance suite asks a server to have.

python -P tests/clients/fixture_server.py ROOT PORT
"""

from __future__ import annotations

import asyncio
import base64
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.shared.exceptions import MCPError
from mcp_types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    AudioContent,
    CallToolResult,
    ClientCapabilities,
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    EmbeddedResource,
    ImageContent,
    InputRequiredResult,
    ListRootsRequest,
    MissingRequiredClientCapabilityErrorData,
    PromptMessage,
    SamplingMessage,
    TextContent,
    TextResourceContents,
)

from mcp_server.app import build_server
from mcp_server.replies import Started, to_result
from mcp_server.settings import Settings
from tools.jobs import start_job
from tools.workspace import Workspace

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SILENCE = base64.b64encode(
    b"RIFF$\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0@\x1f\0\0@\x1f\0\0\1\0\x08\0data\0\0\0\0"
).decode()


def text(words: str) -> TextContent:
    return TextContent(type="text", text=words)


def image() -> ImageContent:
    return ImageContent(type="image", data=PIXEL, mime_type="image/png")


def embedded(uri: str, words: str, mime: str = "text/plain") -> EmbeddedResource:
    return EmbeddedResource(
        type="resource", resource=TextResourceContents(uri=uri, text=words, mime_type=mime)
    )


def ask(message: str, field: str, kind: str = "string") -> ElicitRequest:
    schema = {"type": "object", "properties": {field: {"type": kind}}, "required": [field]}
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def sample(words: str) -> CreateMessageRequest:
    message = SamplingMessage(role="user", content=text(words))
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=[message], max_tokens=100))


def test_simple_text() -> TextContent:
    """Return a text."""
    return text("This is a simple text response for testing.")


def test_image_content() -> ImageContent:
    """Return an image."""
    return image()


def test_audio_content() -> AudioContent:
    """Return a sound."""
    return AudioContent(type="audio", data=SILENCE, mime_type="audio/wav")


def test_embedded_resource() -> EmbeddedResource:
    """Return a resource."""
    return embedded("test://embedded-resource", "This is an embedded resource content.")


def test_multiple_content_types() -> list[TextContent | ImageContent | EmbeddedResource]:
    """Return several kinds."""
    mixed = embedded("test://mixed-content-resource", '{"test":"data","value":123}', "application/json")
    return [text("Multiple content types test:"), image(), mixed]


def test_error_handling() -> TextContent:
    """Fail."""
    raise ToolError("This tool intentionally returns an error for testing")


async def test_tool_with_progress(ctx: Context[Any, Any]) -> TextContent:
    """Report progress."""
    for progress in (0, 50, 100):
        await ctx.report_progress(progress, 100)
        await asyncio.sleep(0.05)
    return text("done")


def test_logging_tool() -> TextContent:
    """Log nothing: logging was taken out of the protocol."""
    return text("done")


async def test_trigger_tool_change(ctx: Context[Any, Any]) -> TextContent:
    """Tell of a change of the tools."""
    await ctx.notify_tools_changed()
    return text("told")


async def test_trigger_prompt_change(ctx: Context[Any, Any]) -> TextContent:
    """Tell of a change of the prompts."""
    await ctx.notify_prompts_changed()
    return text("told")


def test_missing_capability(ctx: Context[Any, Any]) -> TextContent:
    """Need sampling."""
    declared = ctx.client_capabilities
    if declared is None or declared.sampling is None:
        needed = MissingRequiredClientCapabilityErrorData(
            required_capabilities=ClientCapabilities(sampling={})
        )
        raise MCPError(
            MISSING_REQUIRED_CLIENT_CAPABILITY,
            "sampling is needed",
            needed.model_dump(by_alias=True, exclude_none=True),
        )
    return text("sampling is there")


def one_question(name: str, key: str, request: Callable[[], Any], state: str | None = None) -> Tool:
    """Return a tool that asks once and is content with any answer."""

    async def tool(ctx: Context[Any, Any]) -> TextContent | InputRequiredResult:
        answers = ctx.input_responses or {}
        if key not in answers or (state is not None and ctx.request_state != state):
            return InputRequiredResult(input_requests={key: request()}, request_state=state)
        return text(f"state-ok {answers[key].model_dump_json()}")

    return Tool.from_function(tool, name=name, description="Ask the client.")


async def test_input_required_result_multiple_inputs(
    ctx: Context[Any, Any],
) -> TextContent | InputRequiredResult:
    """Ask three things at once."""
    wanted = {
        "user_name": ask("What is your name?", "name"),
        "greeting": sample("Generate a greeting"),
        "client_roots": ListRootsRequest(),
    }
    if wanted.keys() <= (ctx.input_responses or {}).keys():
        return text("all answers came")
    return InputRequiredResult(input_requests=wanted, request_state="several")


async def test_input_required_result_multi_round(ctx: Context[Any, Any]) -> TextContent | InputRequiredResult:
    """Ask twice, one after the other."""
    if ctx.request_state == "two" and "step2" in (ctx.input_responses or {}):
        return text("both answers came")
    if ctx.request_state == "one" and "step1" in (ctx.input_responses or {}):
        step2 = ask("Step 2: What is your favorite color?", "color")
        return InputRequiredResult(input_requests={"step2": step2}, request_state="two")
    step1 = ask("Step 1: What is your name?", "name")
    return InputRequiredResult(input_requests={"step1": step1}, request_state="one")


async def test_input_required_result_capabilities(
    ctx: Context[Any, Any],
) -> TextContent | InputRequiredResult:
    """Ask only what the client can answer."""
    declared = ctx.client_capabilities
    wanted: dict[str, Any] = {}
    if declared is not None and declared.sampling is not None:
        wanted["greeting"] = sample("Generate a greeting")
    if declared is not None and declared.elicitation is not None:
        wanted["user_name"] = ask("What is your name?", "name")
    return InputRequiredResult(input_requests=wanted) if wanted else text("nothing can be asked")


def greet(name: str) -> TextContent:
    """Greet, at once."""
    return text(f"Hello, {name}!")


def computing(root: Path) -> list[Tool]:
    """Return tools that start real jobs, which the tasks extension serves as tasks."""

    def start(program: str) -> CallToolResult:
        argv = [sys.executable, "-c", program]
        job = start_job(Workspace(root).jobs_dir, "compute", argv, cwd=root)
        return to_result(Started(job_id=job.id, status=job.status, next="poll"))

    def slow_compute(seconds: float, label: str = "") -> Annotated[CallToolResult, Started]:
        """Compute for some seconds."""
        return start(f"import time; time.sleep({seconds})")

    def failing_job() -> Annotated[CallToolResult, Started]:
        """Fail."""
        return start("raise SystemExit('this job fails')")

    return [Tool.from_function(slow_compute), Tool.from_function(failing_job)]


def fixtures(root: Path) -> list[Tool]:
    functions: list[Callable[..., Any]] = [
        test_simple_text,
        test_image_content,
        test_audio_content,
        test_embedded_resource,
        test_multiple_content_types,
        test_error_handling,
        test_tool_with_progress,
        test_logging_tool,
        test_missing_capability,
        test_trigger_tool_change,
        test_trigger_prompt_change,
        test_input_required_result_multiple_inputs,
        test_input_required_result_multi_round,
        test_input_required_result_capabilities,
    ]

    def name() -> ElicitRequest:
        return ask("What is your name?", "name")

    return [
        *(Tool.from_function(function) for function in (*functions, greet)),
        *computing(root),
        one_question("test_input_required_result_elicitation", "user_name", name),
        one_question("test_streaming_elicitation", "user_name", name),
        one_question(
            "test_input_required_result_sampling",
            "capital_question",
            lambda: sample("What is the capital of France?"),
        ),
        one_question("test_input_required_result_list_roots", "client_roots", ListRootsRequest),
        *(
            one_question(tool, "confirm", lambda: ask("Please confirm", "ok", "boolean"), "held")
            for tool in (
                "test_input_required_result_request_state",
                "test_input_required_result_tampered_state",
            )
        ),
    ]


def add_resources(server: MCPServer[Any]) -> None:
    @server.resource("test://static-text", mime_type="text/plain")
    def static_text() -> str:
        return "This is the content of the static text resource."

    @server.resource("test://static-binary", mime_type="image/png")
    def static_binary() -> bytes:
        return base64.b64decode(PIXEL)

    @server.resource("test://template/{id}/data", mime_type="application/json")
    def template(id: str) -> str:
        return f'{{"id": "{id}", "templateTest": true, "data": "Data for ID: {id}"}}'


def add_prompts(server: MCPServer[Any]) -> None:
    def say(*contents: Any) -> list[Any]:
        return [PromptMessage(role="user", content=content).model_dump() for content in contents]

    @server.prompt()
    def test_simple_prompt() -> str:
        """Test prompt."""
        return "This is a simple prompt for testing."

    @server.prompt()
    def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
        """Test prompt."""
        return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"

    @server.prompt()
    def test_prompt_with_embedded_resource(resourceUri: str) -> list[Any]:
        """Test prompt."""
        resource = embedded(resourceUri, "Embedded resource content for testing.")
        return say(resource, text("Please process the embedded resource above."))

    @server.prompt()
    def test_prompt_with_image() -> list[Any]:
        """Test prompt."""
        return say(image(), text("Please analyze the image above."))

    @server.prompt()
    async def test_input_required_result_prompt(ctx: Context[Any, Any]) -> Any:
        """Test prompt."""
        if "user_context" in (ctx.input_responses or {}):
            return "The context came."
        question = ask("What context should the prompt use?", "context")
        return InputRequiredResult(input_requests={"user_context": question})


def main() -> None:
    root, port = Path(sys.argv[1]), int(sys.argv[2])
    server = build_server(
        Settings(roots=(root,)),
        extra_tools=fixtures(root),
        extra_starters=["slow_compute", "failing_job"],
        extra_subscribable=["test://watched-resource"],
    )
    add_resources(server)
    add_prompts(server)
    app = server.streamable_http_app(host="127.0.0.1")
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


if __name__ == "__main__":
    main()
