"""An OpenAI-compatible server on this machine, for tests: it thinks, counts, stalls and refuses on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answered:
    """What the server sends for one request."""

    text: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    finish: str = "stop"
    reasoning: str | None = None
    usage: bool = True

    def body(self, request: dict[str, Any]) -> bytes:
        if self.status != 200:
            return json.dumps({"error": {"message": f"status {self.status}"}}).encode()
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        reply: dict[str, Any] = {"choices": [{"message": message, "finish_reason": self.finish}]}
        if self.usage:
            asked = sum(len(turn["content"].split()) for turn in request["messages"])
            reply["usage"] = {"prompt_tokens": asked, "completion_tokens": len((self.text or "").split())}
        return json.dumps(reply).encode()


class ChatServer:
    """Keeps the requests, and how many were in flight at once."""

    def __init__(self, answer: Callable[[dict[str, Any]], Answered]) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self.url = ""
        self._at_once = 0
        self._lock = threading.Lock()

    def take(self, headers: dict[str, str], request: dict[str, Any]) -> Answered:
        with self._lock:
            self.requests.append(request)
            self.headers.append(headers)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return self.answer(request)
        finally:
            with self._lock:
                self._at_once -= 1


@contextmanager
def serve_chat(answer: Callable[[dict[str, Any]], Answered]) -> Iterator[ChatServer]:
    """Serve answers on a free port for the length of the block."""
    server = ChatServer(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            headers = {key.lower(): value for key, value in self.headers.items()}
            reply = server.take(headers, request)
            body = reply.body(request)
            self.send_response(reply.status)
            for name, value in {
                **reply.headers,
                "Content-Length": str(len(body)),
                "Connection": "close",
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    listening = Server(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{listening.server_address[1]}/v1"
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()
