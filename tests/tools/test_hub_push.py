"""Pushes to a hub on the loopback: real requests by huggingface_hub, answered by a small server."""

from __future__ import annotations

import base64
import json
import logging
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tools.errors import MergeExportError
from tools.hub_push import files_to_push, push_folder

TOKEN = "hf_" + "LoopbackOnly0123456789abcdefghij"


class Hub(ThreadingHTTPServer):
    """A hub with one user. It keeps what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.tokens: set[str | None] = set()
        self.refuse: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self._take()
        if match := re.match(r"/api/models/([^/]+/[^/?]+)", self.path):
            if match[1] not in self.server.repos:
                self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            else:
                info = {"id": match[1], "private": self.server.repos[match[1]], "siblings": [], "tags": []}
                self._answer(200, info)
        else:
            self._answer(404, {"error": "not here"})

    def do_POST(self) -> None:
        body = self._take()
        if self.server.refuse:
            self._answer(self.server.refuse, {"error": f"refused {self.headers['Authorization']}"})
        elif self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = (
                f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
            )
            status = 409 if name in self.server.repos else 200
            private = wanted.get("private", wanted.get("visibility") == "private")
            self.server.repos.setdefault(name, bool(private))
            self._answer(status, {"url": f"{self.server.url}/{name}", "name": name})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self._answer(200, {"files": modes})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                part = json.loads(line)
                if part["key"] == "file":
                    self.server.files[part["value"]["path"]] = base64.b64decode(part["value"]["content"])
                elif part["key"] == "header":
                    self.server.commits.append(part["value"]["summary"])
            answer = {"success": True, "commitOid": "f" * 40, "commitUrl": f"{self.server.url}/x/y/commit/f"}
            self._answer(200, answer)
        else:
            self._answer(200, {})

    def _take(self) -> bytes:
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        return found

    def _answer(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "merged"
    (folder / "sub").mkdir(parents=True)
    for name, text in {
        "config.json": '{"model_type": "llama"}',
        "model.safetensors": "weights" * 1000,
        "sub/odd [name]*.txt": "kept",
        ".standardize.json": "stays here",
        ".git": "stays here",
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_a_folder_is_pushed_privately_in_one_commit(hub, model, caplog):
    caplog.set_level(logging.DEBUG)
    done = push_folder(model, "acme/router", message="First model", endpoint=hub.url)
    assert (done.repo, done.private, done.commit) == ("acme/router", True, "f" * 40)
    assert hub.repos == {"acme/router": True}
    assert hub.commits == ["First model"]
    wanted = {name: (model / name).read_bytes() for name in done.files}
    assert sorted(wanted) == ["config.json", "model.safetensors", "sub/odd [name]*.txt"]
    assert hub.files == wanted
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in caplog.text


def test_a_public_repository_is_made_only_when_asked_for(hub, model):
    assert not push_folder(model, "acme/open", private=False, endpoint=hub.url).private
    hub.files.clear()
    with pytest.raises(MergeExportError, match="is public; nothing was uploaded"):
        push_folder(model, "acme/open", endpoint=hub.url)
    assert hub.files == {}


def test_a_refusal_is_told_without_the_token(hub, model):
    hub.refuse = 403
    with pytest.raises(MergeExportError, match=r"push: .*403") as caught:
        push_folder(model, "acme/router", endpoint=hub.url)
    assert TOKEN not in str(caught.value)
    assert caught.value.__cause__ is None
    assert hub.files == {}


def test_a_hub_that_is_not_there_is_an_error_of_ours(hub, model):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(MergeExportError, match="push:"):
        push_folder(model, "acme/router", endpoint=hub.url)


def test_nothing_is_sent_without_a_token(hub, model, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(MergeExportError, match="no token"):
        push_folder(model, "acme/router", endpoint=hub.url)
    assert hub.tokens == set()


def test_what_must_not_leave_the_house_does_not(hub, model, tmp_path):
    (model / "notes.txt").write_text(f"token: {TOKEN}", encoding="utf-8")
    with pytest.raises(MergeExportError, match=r"notes\.txt:1: Hugging Face token") as caught:
        push_folder(model, "acme/router", endpoint=hub.url)
    assert TOKEN not in str(caught.value)
    (model / "notes.txt").unlink()
    (model / "link").symlink_to(tmp_path)
    with pytest.raises(MergeExportError, match="is a link"):
        push_folder(model, "acme/router", endpoint=hub.url)
    assert hub.tokens == set()


def test_a_folder_that_is_not_whole_is_refused(model, tmp_path):
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}), encoding="utf-8")
    with pytest.raises(MergeExportError, match=r"missing: \['gone\.safetensors'\]"):
        files_to_push(model)
    index.write_text("torn", encoding="utf-8")
    with pytest.raises(MergeExportError, match="cannot be read"):
        files_to_push(model)
    index.unlink()
    (model / "model.safetensors").unlink()
    with pytest.raises(MergeExportError, match="no weights"):
        files_to_push(model)
    with pytest.raises(MergeExportError, match="no folder"):
        files_to_push(tmp_path / "none")


@pytest.mark.parametrize("repo", ["router", "a/b/c", "../x", "acme/", "acme/router\n", "http://x/y"])
def test_a_repository_is_named_in_full(hub, model, repo):
    with pytest.raises(MergeExportError, match="name/model"):
        push_folder(model, repo, endpoint=hub.url)
    assert hub.tokens == set()
