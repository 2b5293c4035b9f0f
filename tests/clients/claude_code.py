"""Claude Code itself against the server, led by a Messages API on loopback that plays the model.

    python -P tests/clients/claude_code.py CLAUDE WORKSPACE SERVER_COMMAND...

The scripted model validates and starts the training of the recipe. Then Claude Code is killed, and
its server with it, while the training runs. A second Claude Code finds the job, polls it to its end,
scores the untrained base and the adapter, compares them and asks for the decision; each step is
taken from the last answer.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tools.jobs import list_jobs
from tools.models import cache_root
from tools.workspace import Workspace

NAME = "bakehouse"
MAX_POLLS = 150
LIMIT_S = 1500.0
Steps = Iterator[tuple[str, dict[str, Any]]]


class Model:
    """What a model would do, as a plain program over the tools' answers."""

    def __init__(self, steps: Callable[[Model], Steps]) -> None:
        self.answers: list[str] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.problems: list[str] = []
        self.at_rest = threading.Event()
        """Set while the last call is not answered yet and it is one that takes long."""
        self._plan = steps(self)

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

    def start_training(self) -> Steps:
        """Validate, train, and look until it is under way."""
        yield "validate_recipe", {}
        assert re.search(r'"ok": ?true', self.answers[-1]), self.answers[-1]
        yield "train", {"idempotency_key": "claude-code"}
        job_id = self.job_id()
        while not re.search(r'"step": ?[1-9]', self.answers[-1]):
            yield "poll", {"job_id": job_id, "wait_s": 1 + len(self.calls) / 100}
            assert re.search(r'"ended": ?false', self.answers[-1]), self.answers[-1]
        self.at_rest.set()
        yield "poll", {"job_id": job_id, "wait_s": 50}

    def finish(self, expected: str) -> Steps:
        """Find the training that the first client started, and say whether it helped."""
        yield "poll", {"wait_s": 0}
        trained = self.job_id()
        assert trained == expected, f"found {trained}, not {expected}"
        assert re.search(r'"kind": ?"train"', self.answers[-1]), self.answers[-1]
        yield from self._until_ended(trained)
        jobs = []
        for adapter in ("", trained):
            yield "evaluate", {"split": "selection", "adapter": adapter}
            jobs.append(self.job_id())
            yield from self._until_ended(jobs[-1])
        yield "compare", {"base": jobs[0], "candidate": jobs[1]}
        assert re.search(r'"n_items": ?120', self.answers[-1]), self.answers[-1]
        yield "decide", {"question": "train_backend", "optimize_for": "wall_clock"}

    def job_id(self) -> str:
        found = re.search(r"\d{8}T\d{12}Z-[a-z]+-[0-9a-f]{6}", self.answers[-1])
        assert found is not None, self.answers[-1]
        return found[0]

    def _until_ended(self, job_id: str) -> Steps:
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
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        if not self.path.startswith("/v1/messages") or "count_tokens" in self.path:
            self._send(200, "application/json", json.dumps({"input_tokens": 1}).encode())
            return
        try:
            content, reason = self._reply(body)
        except (AssertionError, KeyError) as err:
            self.model.problems.append(repr(err))
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


class Claude:
    """One Claude Code, with a home of its own and a model that plays a script."""

    def __init__(self, program: str, workspace: str, command: list[str], home: Path, model: Model) -> None:
        self._model = model
        self._api = ThreadingHTTPServer(("127.0.0.1", 0), type("Led", (Api,), {"model": model}))
        threading.Thread(target=self._api.serve_forever, daemon=True).start()
        config = home / "mcp.json"
        entry = {"type": "stdio", "command": command[0], "args": command[1:]}
        config.write_text(json.dumps({"mcpServers": {NAME: entry}}), encoding="utf-8")
        self.process = subprocess.Popen(
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
            env=self._environment(home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self) -> str:
        """Wait for its end and return what it said."""
        said, _ = self.process.communicate(timeout=LIMIT_S)
        assert not self._model.problems, f"{self._model.problems} {said[-1500:]}"
        assert self.process.returncode == 0, said[-1500:]
        assert '"result":"DONE"' in said.replace(" ", ""), said[-1500:]
        return said

    def kill(self) -> None:
        """End it as a power cut would, and the server that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def _environment(self, home: Path) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{self._api.server_address[1]}",
            "ANTHROPIC_API_KEY": "scripted",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            # The script answers at once: the server must be there, and its tools in the first request.
            "MCP_CONNECTION_NONBLOCKING": "0",
            "ENABLE_TOOL_SEARCH": "false",
            # HOME is another one here, and the base model lies in the user's cache.
            "BAKEHOUSE_CACHE": str(cache_root()),
        }


def start_and_kill(program: str, workspace: str, command: list[str], home: Path) -> str:
    """Let a first Claude Code start the training, kill it while it waits, and return the job's id."""
    model = Model(Model.start_training)
    first = Claude(program, workspace, command, home, model)
    try:
        deadline = time.monotonic() + LIMIT_S
        while not model.at_rest.wait(timeout=1):
            assert first.process.poll() is None, first.process.communicate()[0][-1500:]
            assert time.monotonic() < deadline, f"the training is not under way: {model.answers[-1:]}"
    finally:
        first.kill()
    say(f"killed after {[name for name, _ in model.calls]}")
    (job,) = list_jobs(Workspace(Path(workspace)).jobs_dir)
    assert job.status == "running", job
    return job.id


def main() -> int:
    program, workspace, *command = sys.argv[1:]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        job_id = start_and_kill(program, workspace, command, Path(home))
        model = Model(lambda model: model.finish(job_id))
        second = Claude(program, workspace, command, Path(home), model)
        try:
            said = second.finish()
        finally:
            second.kill()
    names = [name for name, _ in model.calls]
    say(f"then {names}\n{model.answers[-2]}\n{said[-600:]}")
    assert names[-2:] == ["compare", "decide"], names
    return 0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
