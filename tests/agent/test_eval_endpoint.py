"""`bakehouse eval --endpoint` against a server on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.bench import make_workspace
from tests.chat_server import Answered, ChatServer, serve_chat
from tests.git_project import isolate_git
from tools.child import child_environment
from tools.dataset import load_dataset
from tools.evaluation.scores import read_scores


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        isolate_git(patch)
        root = tmp_path_factory.mktemp("endpoint") / "workspace"
        root.mkdir()
        make_workspace(root, root / "no model is needed")
    return root


@pytest.fixture
def server(workspace: Path) -> Iterator[ChatServer]:
    """A model that knows every answer but those to questions with `blue` in them."""
    answers = {row.prompt[-1].content: row.expected for row in load_dataset(workspace / "data" / "dev.jsonl")}

    def answer(request: dict[str, Any]) -> Answered:
        text = request["messages"][-1]["content"]
        return Answered(answers.get(text, "{}") if "blue" not in text else "no idea")

    with serve_chat(answer) as running:
        yield running


def evaluate(workspace: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "agent", "eval", *arguments],
        cwd=workspace,
        env=child_environment(environment),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_served_model_is_scored_like_a_trained_one(workspace, server):
    options = ("--endpoint", server.url, "--model", "served", "--api-key-env", "MY_KEY")
    more = ("--body", '{"repeat_penalty": 1.0}', "--json")
    done = evaluate(workspace, *options, *more, MY_KEY="sk-kept-0123456789")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    rows = read_scores(workspace / ".bakehouse" / "scores" / facts["scores"] / "dev.jsonl")
    blue = sum("blue" in str(row.prompt) for row in rows)
    assert 0 < blue < len(rows) == facts["n"]
    assert facts["mean"] == pytest.approx(1 - blue / len(rows))
    assert (facts["unanswered"], facts["cut_off"]) == (0, 0)
    assert facts["output_tokens"] > 0
    first = server.requests[0]
    assert (first["model"], first["max_tokens"], first["temperature"]) == ("served", 12, 0.0)
    assert first["repeat_penalty"] == 1.0
    assert server.headers[0]["authorization"] == "Bearer sk-kept-0123456789"
    assert "sk-kept" not in done.stdout + done.stderr


def test_a_mean_over_some_of_the_rows_ends_with_an_error_that_names_the_rest(workspace):
    def answer(request: dict[str, Any]) -> Answered:
        return Answered(status=400) if "blue" in request["messages"][-1]["content"] else Answered("{}")

    with serve_chat(answer) as running:
        done = evaluate(workspace, "--endpoint", running.url, "--model", "m", "--json")
    assert done.returncode == 1
    facts = json.loads(done.stdout)
    assert facts["unanswered"] > 0
    assert f"{facts['unanswered']} of {facts['n'] + facts['unanswered']} rows got no answer" in " ".join(
        done.stderr.split()
    )


def test_an_endpoint_that_is_not_there_is_an_error_and_no_score(workspace):
    done = evaluate(workspace, "--endpoint", "http://127.0.0.1:9/v1", "--model", "m", "--concurrency", "64")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "rows got an answer from m at http://127.0.0.1:9/v1" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--model", "m"), "give that too"),
        (("--endpoint", "http://h/v1"), "needs --model"),
        (("--endpoint", "http://h/v1", "--model", "m", "--adapter", "x"), "takes no --adapter"),
        (("--endpoint", "http://u:p@h/v1", "--model", "m"), "holds a key or a query"),
        (("--endpoint", "http://h/v1", "--model", "m", "--body", "{"), "is no JSON"),
        (("--endpoint", "http://h/v1", "--model", "m", "--body", '{"model": "x"}'), "without `model`"),
        (("--endpoint", "http://h/v1", "--model", "m", "--split", "test"), "allowed: dev, selection"),
    ],
)
def test_options_that_contradict_each_other_are_refused(workspace, arguments, reason, capsys):
    from agent.cli.app import app
    from tools.errors import BakehouseError

    with pytest.raises(BakehouseError, match=reason):
        app(["eval", "--workspace", str(workspace), *arguments], standalone_mode=False)
