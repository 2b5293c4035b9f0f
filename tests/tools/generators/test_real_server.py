"""llama.cpp's server on a real model, beside the engine on the same weights.

`BAKEHOUSE_LLAMA_PYTHON` is an interpreter with `llama-cpp-python[server]`; `BAKEHOUSE_SERVED_GGUF`
is a model in float32 or float16 and `BAKEHOUSE_SERVED_MODEL` the same model as a folder.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.evaluation.chat_clients import OpenAICompatibleClient
from tools.generators.endpoint import EndpointGenerator
from tools.generators.engine import open_engine_generator
from tools.probe.generator import Sampling
from tools.rows import Message

pytestmark = pytest.mark.slow

SETTINGS = ("BAKEHOUSE_LLAMA_PYTHON", "BAKEHOUSE_SERVED_GGUF", "BAKEHOUSE_SERVED_MODEL")
QUESTIONS = (
    "What is the capital of France?",
    "Say hello.",
    "Count from one to five.",
    "Which colour is the sky?",
    "Name three fruits.",
    "What is two plus two?",
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the model on a free port."""
    if any(name not in os.environ for name in SETTINGS):
        pytest.skip(f"{', '.join(SETTINGS)} say what to serve")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [os.environ["BAKEHOUSE_LLAMA_PYTHON"], "-m", "llama_cpp.server", "--host", "127.0.0.1"]
    command += ["--model", os.environ["BAKEHOUSE_SERVED_GGUF"], "--port", str(port), "--n_threads", "1"]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with log.open("wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield _ready(f"http://127.0.0.1:{port}/v1", server, log)
    finally:
        server.terminate()
        server.wait(60)


def _ready(address: str, server: subprocess.Popen[bytes], log: Path) -> str:
    for _ in range(600):
        assert server.poll() is None, log.read_text(encoding="utf-8", errors="replace")
        try:
            with urllib.request.urlopen(f"{address}/models", timeout=5):
                return address
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"the server did not answer; see {log}")


def test_a_real_server_gives_the_engines_answers(url):
    conversations = [
        (Message("system", "You are a helpful assistant."), Message("user", text)) for text in QUESTIONS
    ]
    sampling = Sampling(24, temperature=0.0)
    # The server's own default is 1.1, which no temperature undoes.
    client = OpenAICompatibleClient(url, "served", timeout_s=240.0, extra_body={"repeat_penalty": 1.0})
    served = EndpointGenerator(client, sampling, concurrency=2).generate(conversations)
    engine = open_engine_generator(os.environ["BAKEHOUSE_SERVED_MODEL"], sampling=sampling, dtype="float32")
    here = engine.generate(conversations)
    assert [one.error for one in served] == [None] * len(QUESTIONS)
    assert [one.input_tokens for one in served] == [one.input_tokens for one in here]
    same = [(a.text or "").strip() == (b.text or "").strip() for a, b in zip(served, here, strict=True)]
    # Two programs round differently: an answer may fork where two tokens are all but equally likely.
    assert sum(same) >= len(QUESTIONS) - 1, list(zip(served, here, strict=True))
