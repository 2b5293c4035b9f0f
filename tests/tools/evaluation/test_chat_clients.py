"""Chat clients against a real server on this machine."""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tools.errors import EndpointBusyError, EvaluationError, JudgeError
from tools.evaluation import AnthropicClient, Judge, OpenAICompatibleClient
from tools.evaluation.chat_clients import ChatReply

KEY = "sk-test-0123456789"
MESSAGES = [{"role": "system", "content": "Grade."}, {"role": "user", "content": "x"}]


@dataclass
class Reply:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    trickle_s: float = 0.0
    cut: bool = False


def completion(text: Any) -> Reply:
    return Reply(200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode())


class Endpoint:
    """A server that gives its replies in turn, the last one for ever, and keeps the requests."""

    def __init__(self) -> None:
        self.replies = [completion("ok")]
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {key.lower(): value for key, value in self.headers.items()}
                endpoint.requests.append((self.path, headers, json.loads(body)))
                reply = endpoint.replies.pop(0) if len(endpoint.replies) > 1 else endpoint.replies[0]
                self.send_response(reply.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(reply.body) + (10 if reply.cut else 0)))
                self.send_header("Connection", "close")
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    for byte in [reply.body] if not reply.trickle_s else [bytes([b]) for b in reply.body]:
                        self.wfile.write(byte)
                        time.sleep(reply.trickle_s)
                except OSError:
                    pass  # the client has gone
                self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


def client(endpoint: Endpoint, **options: Any) -> OpenAICompatibleClient:
    options = {"timeout_s": 10.0, "sleep": lambda _: None} | options
    return OpenAICompatibleClient(f"{endpoint.url}/v1/", "tiny", **options)


def test_a_judge_asks_a_real_server(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
    endpoint.replies = [completion('{"score": 4, "rationale": "close"}')]
    judge = Judge.builtin(client(endpoint, api_key_env="JUDGE_KEY", extra_body={"seed": 7}), "correctness")
    result = judge.grade(question="q", prediction="p ✓", reference="r")
    assert (result.score, result.rationale) == (4.0, "close")
    path, headers, body = endpoint.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["max_tokens"], body["temperature"], body["seed"]) == ("tiny", 160, 0.0, 7)
    assert "p ✓" in body["messages"][1]["content"]


def test_no_key_and_no_temperature_are_sent_unless_asked_for(endpoint: Endpoint) -> None:
    assert client(endpoint, send_temperature=False).chat(MESSAGES, temperature=0.0) == "ok"
    _, headers, body = endpoint.requests[0]
    assert "authorization" not in headers
    assert body == {"model": "tiny", "messages": MESSAGES}


def test_a_busy_server_is_asked_again_after_the_time_it_names(endpoint: Endpoint) -> None:
    endpoint.replies = [
        Reply(429, b"busy", {"Retry-After": "7"}),
        Reply(503, b"", {"Retry-After": "soon"}),
        Reply(500, b"", {"Retry-After": "99999"}),
        completion("at last"),
    ]
    waits: list[float] = []
    assert client(endpoint, sleep=waits.append).chat(MESSAGES) == "at last"
    assert waits == [7.0, 1.0, 60.0]


def test_a_cut_connection_is_tried_again(endpoint: Endpoint) -> None:
    cut = completion("half")
    cut.cut = True
    endpoint.replies = [cut, completion("whole")]
    assert client(endpoint).chat(MESSAGES) == "whole"
    assert len(endpoint.requests) == 2


def test_a_server_that_stays_busy_is_given_up(endpoint: Endpoint) -> None:
    endpoint.replies = [Reply(503, b"loading model")]
    with pytest.raises(JudgeError, match="no reply in 3 attempts; the last: HTTP 503: loading model"):
        client(endpoint, max_attempts=3).chat(MESSAGES)
    assert len(endpoint.requests) == 3


def test_a_refusal_is_not_tried_again_and_does_not_show_the_key(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    endpoint.replies = [Reply(401, f"bad key {KEY}".encode())]
    asked = client(endpoint, api_key_env="JUDGE_KEY")
    with pytest.raises(JudgeError, match="HTTP 401: bad key") as caught:
        asked.chat(MESSAGES)
    assert KEY not in str(caught.value)
    assert KEY not in repr(asked)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("status", [302, 307, 308])
def test_a_redirect_does_not_take_the_key_elsewhere(
    status: int, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    endpoint.replies = [Reply(status, b"", {"Location": f"{endpoint.url}/other"}), completion("stolen")]
    with pytest.raises(JudgeError, match=f"HTTP {status}"):
        client(endpoint, api_key_env="JUDGE_KEY").chat(MESSAGES)
    assert len(endpoint.requests) == 1


def test_a_server_that_trickles_is_not_waited_for(endpoint: Endpoint) -> None:
    slow = completion("x" * 400)
    slow.trickle_s = 0.05
    endpoint.replies = [slow]
    started = time.monotonic()
    with pytest.raises(JudgeError, match=r"no whole reply in 0\.3 s"):
        client(endpoint, timeout_s=0.3, max_attempts=2).chat(MESSAGES)
    assert time.monotonic() - started < 10


def test_a_closed_port_is_an_error(endpoint: Endpoint) -> None:
    gone = client(endpoint, max_attempts=2)
    endpoint.server.server_close()
    with pytest.raises(JudgeError, match="no reply in 2 attempts"):
        gone.chat(MESSAGES)


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    assert client(endpoint, max_attempts=1).chat(MESSAGES) == "ok"


@pytest.mark.parametrize(
    ("content", "text"), [(None, ""), ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab")]
)
def test_other_shapes_of_content_are_read(content: Any, text: str, endpoint: Endpoint) -> None:
    endpoint.replies = [completion(content)]
    assert client(endpoint).chat(MESSAGES) == text


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"choices": []}', b'{"choices": 4}', b"[" * 100_000])
def test_a_reply_that_is_no_completion_is_an_error(body: bytes, endpoint: Endpoint) -> None:
    endpoint.replies = [Reply(200, body)]
    with pytest.raises(JudgeError, match="no chat completion"):
        client(endpoint).chat(MESSAGES)


def test_a_number_for_content_is_an_error(endpoint: Endpoint) -> None:
    endpoint.replies = [completion(4)]
    with pytest.raises(JudgeError, match="content is int"):
        client(endpoint).chat(MESSAGES)


def test_an_endless_reply_is_not_read_to_its_end(endpoint: Endpoint) -> None:
    endpoint.replies = [Reply(200, b" " * 8_000_001)]
    with pytest.raises(JudgeError, match="above 8000000 bytes"):
        client(endpoint).chat(MESSAGES)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://x/v1", "localhost:8000", "http://k:s@x/v1", "https://x/v1?key=1", ""]
)
def test_an_address_that_is_no_plain_endpoint_is_refused(url: str) -> None:
    with pytest.raises(EvaluationError, match="base_url"):
        OpenAICompatibleClient(url, "m")


@pytest.mark.parametrize("value", [None, "", "a\nb"])
def test_a_variable_without_a_usable_key_is_an_error(
    value: str | None, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(JudgeError, match="JUDGE_KEY") as caught:
        client(endpoint, api_key_env="JUDGE_KEY").chat(MESSAGES)
    assert "a\nb" not in str(caught.value)
    assert endpoint.requests == []


# Anthropic.


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anthropic", None)
    with pytest.raises(ImportError, match=r"pip install 'bakehouse\[anthropic\]'"):
        AnthropicClient("claude").chat(MESSAGES)
    with pytest.raises(JudgeError, match="anthropic"):
        Judge(AnthropicClient("claude")).grade(prediction="x")


def claude(*blocks: dict[str, Any]) -> Reply:
    body = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": list(blocks),
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }
    return Reply(200, json.dumps(body).encode())


@pytest.fixture
def anthropic_client(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> AnthropicClient:
    pytest.importorskip("anthropic")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    return AnthropicClient("claude", "JUDGE_KEY", endpoint.url, timeout_s=10.0, max_attempts=1)


def test_a_judge_asks_claude(endpoint: Endpoint, anthropic_client: AnthropicClient) -> None:
    endpoint.replies = [claude({"type": "text", "text": '{"score": '}, {"type": "text", "text": "1}"})]
    assert Judge.builtin(anthropic_client, "relevance").grade(question="q", prediction="p").score == 1.0
    path, headers, body = endpoint.requests[0]
    assert path == "/v1/messages"
    assert KEY in headers.get("x-api-key", headers.get("authorization", ""))
    assert body["max_tokens"] == 160
    assert "temperature" not in body
    assert body["system"].startswith("Grade")
    assert [message["role"] for message in body["messages"]] == ["user"]


def test_claudes_refusals_are_errors_without_the_key(
    endpoint: Endpoint, anthropic_client: AnthropicClient
) -> None:
    refusal = {"type": "error", "error": {"type": "authentication_error", "message": "invalid x-api-key"}}
    endpoint.replies = [Reply(401, json.dumps(refusal).encode())]
    with pytest.raises(JudgeError, match="AuthenticationError") as caught:
        anthropic_client.chat(MESSAGES)
    assert KEY not in str(caught.value)


def test_claude_gets_a_temperature_on_request(endpoint: Endpoint, anthropic_client: AnthropicClient) -> None:
    endpoint.replies = [claude({"type": "text", "text": "ok"})]
    asked = dataclasses.replace(anthropic_client, send_temperature=True)
    assert asked.chat(MESSAGES, temperature=0.5, extra_body={"top_k": 3}) == "ok"
    body = endpoint.requests[0][2]
    assert (body["temperature"], body["top_k"], body["max_tokens"]) == (0.5, 3, 1024)


def test_a_redirect_does_not_take_claudes_key_elsewhere(
    endpoint: Endpoint, anthropic_client: AnthropicClient
) -> None:
    endpoint.replies = [Reply(307, b"", {"Location": f"{endpoint.url}/other"}), claude()]
    with pytest.raises(JudgeError):
        anthropic_client.chat(MESSAGES)
    assert len(endpoint.requests) == 1


# What a reply cost, and whether asking again may help.


def test_a_reply_tells_its_cost_and_whether_it_was_cut_off(endpoint: Endpoint) -> None:
    body = {
        "choices": [{"message": {"content": "half a"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 3},
    }
    endpoint.replies = [Reply(200, json.dumps(body).encode())]
    assert client(endpoint).reply(MESSAGES) == ChatReply("half a", 12, 3, cut_off=True)


@pytest.mark.parametrize("usage", [None, [], {"prompt_tokens": -5, "completion_tokens": "many"}])
def test_a_cost_that_makes_no_sense_is_unknown(usage: Any, endpoint: Endpoint) -> None:
    body = {"choices": [{"message": {"content": "ok"}}], "usage": usage}
    endpoint.replies = [Reply(200, json.dumps(body).encode())]
    assert client(endpoint).reply(MESSAGES) == ChatReply("ok")


def test_a_busy_endpoint_is_told_from_one_that_refuses(endpoint: Endpoint) -> None:
    endpoint.replies = [Reply(429, b"busy", {"Retry-After": "7"}), Reply(404, b"no such model")]
    with pytest.raises(EndpointBusyError) as caught:
        client(endpoint, max_attempts=1).reply(MESSAGES)
    assert caught.value.wait_s == 7.0
    with pytest.raises(JudgeError) as refused:
        client(endpoint, max_attempts=1).reply(MESSAGES)
    assert not isinstance(refused.value, EndpointBusyError)


def test_claudes_reply_tells_its_cost(endpoint: Endpoint, anthropic_client: AnthropicClient) -> None:
    endpoint.replies = [claude({"type": "text", "text": "ok"})]
    assert anthropic_client.reply(MESSAGES) == ChatReply("ok", 1, 1)


@pytest.mark.parametrize("status", [429, 500, 529])
def test_claude_may_be_busy(status: int, endpoint: Endpoint, anthropic_client: AnthropicClient) -> None:
    endpoint.replies = [Reply(status, b'{"type": "error"}', {"Retry-After": "3"})]
    with pytest.raises(EndpointBusyError) as caught:
        anthropic_client.reply(MESSAGES)
    assert caught.value.wait_s == 3.0


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"content": 4}', b"[]", b'{"type": "message"}'])
def test_a_reply_of_claudes_endpoint_that_is_no_message_is_an_error(
    body: bytes, endpoint: Endpoint, anthropic_client: AnthropicClient
) -> None:
    endpoint.replies = [Reply(200, body)]
    with pytest.raises(JudgeError):
        anthropic_client.reply(MESSAGES)
