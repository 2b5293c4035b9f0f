"""Claude Code itself against the server, led by a Messages API on loopback that plays the model.

    python -P tests/clients/claude_code.py CLAUDE WORKSPACE SERVER_COMMAND...

The scripted model validates, starts a smoke training, polls it to its end, scores the base and the
trained adapter, compares them and asks for the decision; each step is taken from the last answer.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tools.models import cache_root

NAME = "bakehouse"
MAX_POLLS = 60


class Model:
    """What a model would do, as a plain program over the tools' answers."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._plan = self._steps()

    def next_call(self, answers: list[str]) -> tuple[str, dict[str, Any]] | None:
        """Return the next tool call, or None when the work is done.

        A conversation that is asked about twice, as in a retry, gets the same call twice.
        """
        if len(answers) < len(self.calls):
            return self.calls[len(answers)]
        self.answers = answers
        try:
            call = next(self._plan)
        except StopIteration:
            return None
        self.calls.append(call)
        return call

    def _steps(self) -> Any:
        yield "validate_recipe", {}
        assert re.search(r'"ok": ?true', self.answers[-1]), self.answers[-1]
        yield "train", {"mode": "smoke", "idempotency_key": "claude-code"}
        trained = self._job_id()
        yield from self._until_ended(trained)
        jobs = []
        for adapter in ("", trained):
            yield "evaluate", {"split": "selection", "adapter": adapter}
            jobs.append(self._job_id())
            yield from self._until_ended(jobs[-1])
        yield "compare", {"base": jobs[0], "candidate": jobs[1]}
        yield "decide", {"question": "train_backend", "optimize_for": "wall_clock"}

    def _job_id(self) -> str:
        found = re.search(r"\d{8}T\d{12}Z-[a-z]+-[0-9a-f]{6}", self.answers[-1])
        assert found is not None, self.answers[-1]
        return found[0]

    def _until_ended(self, job_id: str) -> Any:
        for number in range(MAX_POLLS):
            # No two calls are alike, so that each has an id of its own.
            yield "poll", {"job_id": job_id, "wait_s": 20 + number / 100}
            if re.search(r'"ended": ?true', self.answers[-1]):
                assert "succeeded" in self.answers[-1], self.answers[-1]
                return
        raise AssertionError(f"job {job_id} does not end: {self.answers[-1]}")


class Api(BaseHTTPRequestHandler):
    """As much of the Messages API as Claude Code needs."""

    model: Model
    problems: list[str]
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        if not self.path.startswith("/v1/messages") or "count_tokens" in self.path:
            self._send(200, "application/json", json.dumps({"input_tokens": 1}).encode())
            return
        try:
            content, reason = self._reply(body)
        except (AssertionError, KeyError) as err:
            self.problems.append(repr(err))
            content, reason = [{"type": "text", "text": f"FAILED {err}"}], "end_turn"
        if body.get("stream"):
            self._send(200, "text/event-stream", b"".join(events(content, reason, body["model"])))
        else:
            self._send(200, "application/json", json.dumps(message(content, reason, body["model"])).encode())

    def _reply(self, body: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
        names = {tool["name"] for tool in body.get("tools", ())}
        if not any(name.startswith(f"mcp__{NAME}__") for name in names):
            return [{"type": "text", "text": "ok"}], "end_turn"
        with self.lock:
            call = self.model.next_call(tool_answers(body["messages"]))
        if call is None:
            return [{"type": "text", "text": "DONE"}], "end_turn"
        name, arguments = call
        block = {
            "type": "tool_use",
            "id": f"toolu_{self.model.calls.index(call):04d}",
            "name": f"mcp__{NAME}__{name}",
            "input": arguments,
        }
        return [block], "tool_use"

    def do_GET(self) -> None:
        self._send(200, "application/json", b'{"data": []}')

    do_HEAD = do_GET

    def _send(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Stay quiet."""


def tool_answers(messages: list[dict[str, Any]]) -> list[str]:
    """Return the texts of all tool results, the oldest first."""
    found: list[str] = []
    for entry in messages:
        for block in entry["content"] if isinstance(entry["content"], list) else ():
            if block.get("type") == "tool_result":
                content = block["content"]
                parts = content if isinstance(content, list) else [{"text": content}]
                found.append("".join(part.get("text", "") for part in parts))
    return found


def message(content: list[dict[str, Any]], reason: str | None, model: str) -> dict[str, Any]:
    return {
        "id": "msg_scripted",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }


def events(content: list[dict[str, Any]], reason: str, model: str) -> Any:
    """Yield a reply as the stream of events that the API sends."""

    def event(kind: str, **data: Any) -> bytes:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode()

    yield event("message_start", message=message([], None, model))
    for index, block in enumerate(content):
        if block["type"] == "text":
            yield event("content_block_start", index=index, content_block={"type": "text", "text": ""})
            delta = {"type": "text_delta", "text": block["text"]}
        else:
            yield event("content_block_start", index=index, content_block={**block, "input": {}})
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        yield event("content_block_delta", index=index, delta=delta)
        yield event("content_block_stop", index=index)
    yield event(
        "message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage={"output_tokens": 1}
    )
    yield event("message_stop")


def main() -> int:
    program, workspace, *command = sys.argv[1:]
    Api.model, Api.problems = Model(), []
    api = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=api.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as home:
        config = Path(home) / "mcp.json"
        entry = {"type": "stdio", "command": command[0], "args": command[1:]}
        config.write_text(json.dumps({"mcpServers": {NAME: entry}}), encoding="utf-8")
        done = subprocess.run(
            [
                program,
                "-p",
                "Train the recipe and tell me whether it helped.",
                "--mcp-config",
                str(config),
                "--strict-mcp-config",
                "--allowedTools",
                f"mcp__{NAME}",
                "--output-format",
                "json",
                "--model",
                "claude-sonnet-5-5",
            ],
            cwd=workspace,
            env={
                "PATH": os.environ["PATH"],
                "HOME": home,
                "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{api.server_address[1]}",
                "ANTHROPIC_API_KEY": "scripted",
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                # The script answers at once: the server must be there, and its tools in the first request.
                "MCP_CONNECTION_NONBLOCKING": "0",
                "ENABLE_TOOL_SEARCH": "false",
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
                # HOME is another one here, and the base model lies in the user's cache.
                "BAKEHOUSE_CACHE": str(cache_root()),
            },
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    names = [name for name, _ in Api.model.calls]
    sys.stdout.write(f"{names}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}\n{Api.problems}\n")
    good = done.returncode == 0 and not Api.problems and '"result":"DONE"' in done.stdout.replace(" ", "")
    return 0 if good and names[-2:] == ["compare", "decide"] else 1


if __name__ == "__main__":
    sys.exit(main())
