"""A worker that stays: what it keeps between specs and what it puts back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny import save_tiny_base, tiny_model, tiny_tokenizer
from tools.engine import keeper as keeper_module
from tools.engine.keeper import BaseKeeper
from tools.engine.lora import LoraShape
from tools.engine.memory import is_memory_short
from tools.engine.process_state import ProcessState
from tools.errors import ModelError
from tools.evaluation.scorers import get_scorer
from tools.hardware.machine import Memory


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny_base(tmp_path / "base")
    return tmp_path / "base"


class Asker:
    """The other end of a resident worker's socket."""

    def __init__(self, tmp_path: Path, *options: str) -> None:
        self.folder = tmp_path
        self.link, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tools.engine", "--resident", *options],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self.replies = self.link.makefile("r", encoding="utf-8")

    def ask(self, spec: dict[str, Any]) -> None:
        path = self.folder / "spec.json"
        path.write_text(json.dumps(spec))
        line = json.dumps({"spec": str(path), "folder": str(self.folder)}).encode()
        with (self.folder / "log").open("ab") as log, (self.folder / "lock").open("ab") as lock:
            socket.send_fds(self.link, [line], [log.fileno(), lock.fileno()])
        # A request may come in pieces.
        self.link.sendall(b"\n")

    def reply(self) -> dict[str, Any]:
        found = json.loads(self.replies.readline())
        assert isinstance(found, dict)
        return found

    def close(self) -> None:
        self.replies.close()
        self.link.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def asker(tmp_path: Path) -> Iterator[Asker]:
    asker = Asker(tmp_path)
    yield asker
    asker.close()


def test_a_request_is_answered_at_its_beginning_and_at_its_end(asker: Asker) -> None:
    asker.ask({"kind": "bake"})
    assert asker.reply() == {"begun": str(asker.folder / "spec.json")}
    assert asker.reply() == {"exit_code": 1, "stays": True}
    assert "'bake'" in (asker.folder / "log").read_text()
    asker.link.shutdown(socket.SHUT_WR)
    assert asker.process.wait(60) == 0


def test_sigterm_ends_an_idle_worker_at_once(asker: Asker) -> None:
    asker.ask({"kind": "bake"})
    asker.reply()
    asker.reply()
    asker.process.send_signal(signal.SIGTERM)
    assert asker.process.wait(60) == 143


def test_an_idle_worker_leaves_by_itself(tmp_path: Path) -> None:
    asker = Asker(tmp_path, "--idle", "0.2")
    assert asker.process.wait(60) == 0
    asker.close()


def test_code_of_a_spec_does_not_read_the_requests(asker: Asker, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "scorer.py").write_text(
        "import sys\ndef score(expected, actual): return len(sys.stdin.read())"
    )
    (tmp_path / "rows.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    asker.ask(
        {
            "kind": "evaluate",
            "base_model": str(folder),
            "torch_dtype": "float32",
            "adapters": [{"trial_id": "base", "seed": 0, "adapter_dir": None}],
            "splits": {"dev": str(tmp_path / "rows.jsonl")},
            "scorer": {"name": "custom", "scorer_file": str(tmp_path / "scorer.py")},
            "max_new_tokens": 2,
            "scores_dir": str(tmp_path / "scores"),
            "result_path": str(tmp_path / "result.json"),
        }
    )
    asker.reply()
    assert asker.reply() == {"exit_code": 0, "stays": True}
    (adapter,) = json.loads((tmp_path / "result.json").read_text())["adapters"]
    assert (adapter["error"], adapter["splits"]["dev"]["mean"]) == (None, 0.0)


@pytest.mark.parametrize("arguments", [[], ["--resident"], ["--resident", "spec.json"], ["--what"]])
def test_a_worker_that_is_started_wrongly_says_so(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tools.engine", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert ("Unix socket" if arguments == ["--resident"] else "usage") in done.stderr


def test_a_base_is_loaded_once_and_comes_back_as_it_was_loaded(folder: Path) -> None:
    keeper = BaseKeeper()
    base = keeper(str(folder), "float32")
    weights = {name: value.clone() for name, value in base.model.named_parameters()}
    drawn = torch.rand(3)
    base.stack.new_adapter("a", LoraShape(4, 8, ("q_proj", "down_proj")), device=base.device)
    assert any("StackedLinear" in type(module).__name__ for module in base.model.modules())
    assert keeper.tidy()
    again = keeper(str(folder), "float32")
    assert again.model is base.model
    assert (base.load_s > 0, again.load_s) == (True, 0.0)
    # What is drawn after loading is drawn again: a warm base leaves no trace in random numbers.
    assert torch.equal(torch.rand(3), drawn)
    found = dict(again.model.named_parameters())
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    linears = [module for name, module in again.model.named_modules() if name.endswith("_proj")]
    assert linears
    assert all(type(module) is nn.Linear for module in linears)


def test_another_base_takes_the_place_of_the_one_held(folder: Path, tmp_path: Path) -> None:
    keeper = BaseKeeper()
    first = keeper(str(folder), "float32").model
    assert keeper(str(folder), "bfloat16").model.dtype == torch.bfloat16
    second = keeper(str(folder), "float32").model
    assert second is not first
    # The same name with other files in it is another base.
    shutil.rmtree(folder)
    tiny_model(seed=1).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    third = keeper(str(folder), "float32").model
    assert not torch.equal(third.lm_head.weight, second.lm_head.weight)
    with pytest.raises(ModelError):
        keeper(str(tmp_path / "nothing"), "float32")
    assert keeper(str(folder), "float32").load_s > 0


def test_a_base_is_let_go_when_memory_is_short(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = BaseKeeper()
    keeper(str(folder), "float32")
    keeper.drop_if_short()
    assert keeper(str(folder), "float32").load_s == 0.0
    monkeypatch.setattr(keeper_module, "is_memory_short", lambda _: True)
    keeper.drop_if_short()
    assert keeper(str(folder), "float32").load_s > 0


def test_memory_is_short_below_a_sixteenth_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for available, is_short in ((7, False), (6, True)):
        monkeypatch.setattr(
            "tools.engine.memory.read_memory", lambda free=available: Memory(total=100, available=free)
        )
        assert is_memory_short(cpu) is is_short


def test_a_process_that_lost_its_device_does_not_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = BaseKeeper()
    keeper(str(folder), "float32")
    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.full((1,), float("nan")))
    assert not keeper.tidy()


def test_what_a_scorer_did_to_its_process_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEPT", "1")
    monkeypatch.chdir(tmp_path)
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / "helper.py").write_text("VALUE = 0.25\n")
    (workspace / "scorer.py").write_text(
        "import os, sys, torch\n"
        "sys.path.insert(0, os.path.dirname(__file__))\n"
        "import helper\n"
        "def score(expected, actual):\n"
        "    os.environ['ADDED'] = '1'; os.environ.pop('KEPT', None); os.chdir('/')\n"
        "    torch.manual_seed(7); torch.set_num_threads(3)\n"
        "    return helper.VALUE\n"
    )
    # Scorers that other tests of this process loaded leave first.
    ProcessState.capture().restore(str(tmp_path))
    state = ProcessState.capture()
    drawn = torch.rand(3)
    before = (dict(os.environ), list(sys.path), torch.get_num_threads())
    loaded = set(sys.modules)
    assert get_scorer("custom", scorer_file=workspace / "scorer.py")("a", "a").score == 0.25
    assert "helper" in sys.modules
    state.restore(str(tmp_path))
    assert (dict(os.environ), list(sys.path), torch.get_num_threads()) == before
    # Libraries loaded on the way may stay, all that was there does, and nothing of the workspace.
    assert loaded <= set(sys.modules)
    files = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
    assert not [file for file in files if str(file).startswith(str(workspace))]
    assert Path.cwd() == tmp_path
    assert torch.equal(torch.rand(3), drawn)
    # The module beside the scorer is read anew, as a process of its own would.
    (workspace / "helper.py").write_text("VALUE = 0.125  # changed\n")
    assert get_scorer("custom", scorer_file=workspace / "scorer.py")("a", "a").score == 0.125
    state.restore(str(tmp_path))
