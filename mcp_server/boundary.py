"""The boundary between the protocol and the handlers: typed answers, errors with a remedy, consent."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Awaitable, Callable
from inspect import Parameter, Signature
from typing import Annotated, Any, Final

from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.elicitation import AcceptedElicitation, ElicitationResult
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.resolve import Elicit, Resolve
from mcp.server.mcpserver.tools import Tool
from mcp_types import CallToolResult, ToolAnnotations
from pydantic import BaseModel, ConfigDict, Field

from mcp_server.replies import Reply, hide_secrets, to_result
from mcp_server.slim_schema import slim
from tools.errors import BakehouseError, DatasetError

_LOG = logging.getLogger(__name__)
LOCAL: Final = "local"
MAX_ARGUMENT_CHARS: Final = 4096
_MAX_ERROR_CHARS: Final = 4000

Handler = Callable[..., Reply | Awaitable[Reply]]
Question = Callable[..., str | None]


class Consent(BaseModel):
    """A person's answer."""

    approve: bool = Field(description="Go on with it?")


def principal() -> str:
    """Return who makes the current request: a token's name over HTTP, the local user over stdio."""
    token = get_access_token()
    return LOCAL if token is None else token.client_id


def make_tool(
    handler: Handler, annotations: ToolAnnotations, *, asks: Question | None = None, allowed: bool = False
) -> Tool:
    """Return the tool that serves a handler.

    Args:
        handler: Takes the arguments, returns a Reply. Its docstring is the description.
        annotations: What clients are told of its effects.
        asks: Takes the arguments, or some of them, and returns what a person must agree to
            first, or None.
        allowed: The operator agreed beforehand.
    """
    tool = Tool.from_function(
        _serve(handler, None if asks is None else _resolver(asks, allowed)),
        name=handler.__name__,
        description=" ".join(inspect.cleandoc(handler.__doc__ or "").split()),
        annotations=annotations,
        structured_output=True,
    )
    return _strict(tool)


def explain(err: BakehouseError) -> str:
    """Return an error as a client may read it: no judged row's text, no secret, no flood."""
    text = str(err)
    if isinstance(err, DatasetError) and len(text) > _MAX_ERROR_CHARS:
        text = "\n".join(err.problems[:20])
    shown = str(hide_secrets(text))
    return shown if len(shown) <= _MAX_ERROR_CHARS else shown[:_MAX_ERROR_CHARS] + " ..."


def _serve(handler: Handler, resolver: Callable[..., Any] | None) -> Callable[..., Any]:
    """Wrap a handler: its errors become a tool's, its reply a result, its consent is looked at."""
    signature = inspect.signature(handler, eval_str=True)

    @functools.wraps(handler)
    async def served(**arguments: Any) -> CallToolResult:
        _check_consent(arguments.pop("consent", None))
        try:
            _check_sizes(arguments)
            if inspect.iscoroutinefunction(handler):
                return to_result(await handler(**arguments))
            return to_result(await _in_thread(functools.partial(handler, **arguments)))
        except BakehouseError as err:
            raise ToolError(explain(err)) from err
        except OSError as err:
            _LOG.warning("%s failed: %s", handler.__name__, err)
            raise ToolError(f"the disk refused: {err.strerror}; free space or mend the folder") from err

    parameters = list(signature.parameters.values())
    if resolver is not None:
        asked = Annotated[ElicitationResult[Consent], Resolve(resolver)]
        parameters.append(Parameter("consent", Parameter.KEYWORD_ONLY, annotation=asked))
    answer = Annotated[CallToolResult, signature.return_annotation]
    return _declare(served, parameters, answer)


def _resolver(asks: Question, allowed: bool) -> Callable[..., Any]:
    """Return what fills the parameter `consent`: a question where one is needed, else a yes."""
    signature = inspect.signature(asks, eval_str=True)

    def resolve(**arguments: Any) -> Any:
        ctx = arguments.pop("ctx")
        try:
            _check_sizes(arguments)
            question = asks(**arguments)
        except BakehouseError as err:
            raise ToolError(explain(err)) from err
        if question is None or allowed:
            return Consent(approve=True)
        if not _can_ask(ctx):
            raise ToolError(
                f"{question} This needs a person's consent and this client cannot ask for it; the operator "
                "can start the server with --allow-expensive"
            )
        return Elicit(question, Consent)

    resolve.__qualname__ = resolve.__name__ = f"consent_to_{asks.__name__}"
    context = Parameter("ctx", Parameter.KEYWORD_ONLY, annotation=Context)
    return _declare(resolve, [*signature.parameters.values(), context], Any)


def _declare(fn: Callable[..., Any], parameters: list[Parameter], returns: Any) -> Callable[..., Any]:
    """Give fn the signature by which the SDK makes its schema and calls it."""
    fn.__signature__ = Signature(parameters, return_annotation=returns)  # type: ignore[attr-defined]
    fn.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": returns}
    fn.__dict__.pop("__wrapped__", None)
    return fn


def _strict(tool: Tool) -> Tool:
    """Refuse arguments that the tool does not have, and shorten its schemas."""
    metadata = tool.fn_metadata
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    metadata.arg_model = type(metadata.arg_model.__name__, (metadata.arg_model,), {"model_config": config})
    metadata.output_schema = slim(metadata.output_schema or {})
    return tool.model_copy(update={"parameters": slim(metadata.arg_model.model_json_schema())})


def _check_consent(outcome: Any) -> None:
    if outcome is None or (isinstance(outcome, AcceptedElicitation) and outcome.data.approve):
        return
    raise ToolError("the person said no; nothing was done. Ask them what they would rather have")


def _check_sizes(arguments: dict[str, Any]) -> None:
    for name, value in arguments.items():
        texts = (
            [value]
            if isinstance(value, str)
            else [*value, *value.values()]
            if isinstance(value, dict)
            else []
        )
        if any(len(text) > MAX_ARGUMENT_CHARS for text in texts) or len(texts) > 64:
            raise ToolError(f"{name} is too large; a text of {MAX_ARGUMENT_CHARS} characters is the most")


def _can_ask(ctx: Context[Any, Any]) -> bool:
    capabilities = ctx.client_capabilities
    return capabilities is not None and capabilities.elicitation is not None


async def _in_thread(fn: Callable[[], Any]) -> Any:
    from anyio.to_thread import run_sync

    return await run_sync(fn)
