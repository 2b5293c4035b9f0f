"""A Messages API on loopback that says what a test scripted, over the wire as a real server does."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {
    "input_tokens": 100,
    "output_tokens": 20,
    "cache_read_input_tokens": 900,
    "cache_creation_input_tokens": 50,
}


@dataclass(frozen=True)
class Reply:
    """One answer of the server: content blocks, or an error status."""

    blocks: tuple[dict[str, Any], ...] = ()
    stop_reason: str = "end_turn"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    error: str = "scripted"
    cut_after: int | None = None
    """Close the connection after so many events of the stream."""
    stream_error: str | None = None
    """Send this kind of error in the middle of the stream."""
    raw: bytes | None = None
    """Send these bytes instead of a stream."""
    pings: int = 0
    """Send so many pings, one each hundredth of a second, before anything else."""


def say(text: str, stop_reason: str = "end_turn") -> Reply:
    return Reply(({"type": "text", "text": text},), stop_reason)


def call(*calls: tuple[str, dict[str, Any]], text: str = "") -> Reply:
    said = [{"type": "text", "text": text}] if text else []
    uses = [
        {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": given}
        for number, (name, given) in enumerate(calls)
    ]
    return Reply((*said, *uses), "tool_use")


def submit(*patches: dict[str, Any], gain: float | None = 0.05, **more: Any) -> Reply:
    proposals = [
        {"patch": patch, "hypothesis": f"try {sorted(patch)}", "expected_gain": gain} for patch in patches
    ]
    return call(
        ("submit_plan", {"hypothesis": "the rate is too low", "proposals": proposals, **more}),
        text="Thinking.",
    )


def refuse(status: int, **headers: str) -> Reply:
    return Reply(status=status, headers={name.replace("_", "-"): value for name, value in headers.items()})


@dataclass
class MessagesApi:
    """The server's address, what it will say and what it was asked."""

    url: str = ""
    script: list[Reply] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        with self.lock:
            self.requests.append(body)
            self.headers.append(headers)
            if not self.script:
                return Reply(status=400, error="the script is over")
            return self.script.pop(0) if len(self.script) > 1 or not self.repeats else self.script[0]

    repeats: bool = False
    """Say the last reply of the script for ever."""

    @property
    def tool_results(self) -> list[dict[str, Any]]:
        """The results of tools that the last request carried, newest message only."""
        content = self.requests[-1]["messages"][-1]["content"]
        return [block for block in content if block["type"] == "tool_result"]


@contextmanager
def serve_messages(*script: Reply, repeats: bool = False) -> Iterator[MessagesApi]:
    """Run the server on a free port of this machine."""
    api = MessagesApi(script=list(script), repeats=repeats)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = api.answer(body, {name.lower(): value for name, value in self.headers.items()})
            if self.path.partition("?")[0] != "/v1/messages" or not body.get("stream"):
                reply = Reply(status=404, error=f"{self.path} is not scripted")
            if reply.status != 200:
                self._send_error(reply)
            else:
                self._send_stream(reply)

        def _send_error(self, reply: Reply) -> None:
            told = {"type": "error", "error": {"type": "scripted_error", "message": reply.error}}
            data = json.dumps(told).encode()
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _send_stream(self, reply: Reply) -> None:
            self.close_connection = True
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            if reply.cut_after is not None:
                # A body that ends before its announced length is a lost connection.
                self.send_header("Content-Length", "1000000")
            self.end_headers()
            if reply.raw is not None:
                self.wfile.write(reply.raw)
                return
            with suppress(OSError):
                for _ in range(reply.pings):
                    self.wfile.write(b'event: ping\ndata: {"type": "ping"}\n\n')
                    time.sleep(0.01)
                self._send_events(reply)

        def _send_events(self, reply: Reply) -> None:
            for number, event in enumerate(events(reply)):
                if number == reply.cut_after:
                    return
                if reply.stream_error and number == 2:
                    told = {
                        "type": "error",
                        "error": {"type": reply.stream_error, "message": "in the stream"},
                    }
                    self.wfile.write(f"event: error\ndata: {json.dumps(told)}\n\n".encode())
                    return
                self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def events(reply: Reply) -> Iterator[dict[str, Any]]:
    """The events of a streamed message, its text and tool input in pieces."""
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "scripted", "content": []}
    start = {**message, "stop_reason": None, "stop_sequence": None, "usage": {**USAGE, "output_tokens": 1}}
    yield {"type": "message_start", "message": start}
    for index, block in enumerate(reply.blocks):
        is_text = block["type"] == "text"
        empty = {**block, "text": ""} if is_text else {**block, "input": {}}
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        whole = block["text"] if is_text else json.dumps(block["input"])
        half = len(whole) // 2
        for part in (whole[:half], whole[half:]):
            delta = (
                {"type": "text_delta", "text": part}
                if is_text
                else {"type": "input_json_delta", "partial_json": part}
            )
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": reply.stop_reason, "stop_sequence": None},
        "usage": USAGE,
    }
    yield {"type": "message_stop"}
