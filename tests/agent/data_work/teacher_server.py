"""A teacher on this machine: a real HTTP server that speaks both protocols and misbehaves as told."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Says:
    """One reply."""

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    usage: tuple[int, int] | None = (100, 50)
    delay_s: float = 0.0
    cut: bool = False
    """Announce more than is sent."""


@dataclass(frozen=True)
class Asked:
    """One request, in the terms of both protocols."""

    number: int
    """From 1, in the order in which requests came."""
    path: str
    system: str
    question: str
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def count(self) -> int:
        """How many rows are asked for."""
        found = re.search(r"Write (\d+) new rows", self.question)
        assert found, self.question
        return int(found[1])


Answer = Callable[[Asked], Says]


class TeacherServer:
    """Serves until closed; keeps every request and how many were under way at once."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked = server._enter(self.path, body, dict(self.headers.items()))
                try:
                    says = server.answer(asked)
                    time.sleep(says.delay_s)
                finally:
                    server._leave()
                self._send(says)

            def _send(self, says: Says) -> None:
                data = json.dumps(reply_body(self.path, says)).encode()
                self.close_connection = True
                try:
                    self.send_response(says.status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data) + (10 if says.cut else 0)))
                    self.send_header("Connection", "close")
                    for name, value in says.headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass  # whoever asked has gone

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def everything_said(self) -> str:
        """All that ever reached the teacher."""
        return "\n".join(asked.system + "\n" + asked.question for asked in self.asked)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def _enter(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Asked:
        system, question = parts_of(body)
        with self._lock:
            asked = Asked(len(self.asked) + 1, path, system, question, body, headers)
            self.asked.append(asked)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        return asked

    def _leave(self) -> None:
        with self._lock:
            self._at_once -= 1


def parts_of(body: dict[str, Any]) -> tuple[str, str]:
    if "system" in body:
        return "".join(block["text"] for block in body["system"]), body["messages"][0]["content"]
    return body["messages"][0]["content"], body["messages"][1]["content"]


def reply_body(path: str, says: Says) -> dict[str, Any]:
    if says.status != 200:
        return {"type": "error", "error": {"type": "api_error", "message": says.text or "busy"}}
    if path.endswith("/chat/completions"):
        usage = says.usage and {"prompt_tokens": says.usage[0], "completion_tokens": says.usage[1]}
        return {"choices": [{"message": {"role": "assistant", "content": says.text}}], "usage": usage}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "teacher",
        "content": [{"type": "text", "text": says.text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": (says.usage or (0, 0))[0], "output_tokens": (says.usage or (0, 0))[1]},
    }
