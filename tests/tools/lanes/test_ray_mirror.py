"""A run folder and its other half, both on this machine, with files as a trainer would write them."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tools.errors import TrainError
from tools.lanes.ray.mirror import Mirror
from tools.lanes.ray.node import NodeSide
from tools.poll import poll_run_progress, read_progress


class Direct:
    """The node's side in this process, with something to happen in front of a call."""

    made: ClassVar[list[Direct]] = []

    def __init__(self, root: Path) -> None:
        job = root / "jobs" / f"job-{len(list(root.glob('jobs/*')))}"
        job.mkdir(parents=True)
        self.run = job / "run"
        lock = os.open(job / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self.side = NodeSide(root, job, lock)
        self.before: Callable[[str], None] = lambda name: None
        Direct.made.append(self)

    def call(self, name: str, *arguments: Any) -> Any:
        self.before(name)
        return self.side.call(name, *arguments)

    def save(self, step: int, weights: bytes = b"w", *, best: int | None = None) -> None:
        """Write a checkpoint as the engine does."""
        target = self.run / f"iter_{step:07d}"
        partial = self.run / ".partial"
        partial.mkdir()
        (partial / "adapter").write_bytes(weights)
        (partial / "state").write_text(str(step), encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        (self.run / "latest_checkpointed_iteration.txt").write_text(f"{step}\n", encoding="utf-8")
        if best is not None:
            (self.run / "best_checkpointed_iteration.txt").write_text(f"{best}\n", encoding="utf-8")

    def log(self, text: str) -> None:
        with (self.run / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(text)


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def none_stays() -> Iterator[None]:
    """One that nobody asks any more ends its process after a while, which here is the tests' own."""
    yield
    while Direct.made:
        Direct.made.pop().side.leave()


@pytest.fixture
def node(tmp_path) -> Direct:
    return Direct(tmp_path / "cache")


def test_what_a_trainer_writes_comes_home(node, home):
    mirror = Mirror(home, node)
    assert mirror.update().wanted == {}
    assert read_progress(home).step is None
    node.log('{"step": 1}\n{"step": 2, "lo')
    mirror.update()
    assert (home / "metrics.jsonl").read_text(encoding="utf-8") == '{"step": 1}\n'
    node.log('ss": 0.5}\n')
    node.save(2, best=2)
    mirror.update()
    progress = read_progress(home)
    assert (progress.step, progress.loss, progress.latest_iter, progress.best_iter) == (2, 0.5, 2, 2)
    assert (home / "iter_0000002" / "adapter").read_bytes() == b"w"
    assert list((node.run.parent / "outbox").iterdir()) == []


def test_what_is_rotated_away_there_goes_here_but_never_what_is_named(node, home):
    mirror = Mirror(home, node)
    for step in (1, 2, 3):
        node.save(step)
    mirror.update()
    assert poll_run_progress(home) == (3, [1, 2, 3])
    shutil.rmtree(node.run / "iter_0000001")
    shutil.rmtree(node.run / "iter_0000003")
    mirror.update()
    assert poll_run_progress(home) == (3, [2, 3])


def test_a_checkpoint_that_vanishes_while_it_is_looked_at_costs_nothing(node, home):
    mirror = Mirror(home, node)
    node.save(1)
    node.save(2)

    def rotate(name: str) -> None:
        if name == "hold" and (node.run / "iter_0000001").exists():
            shutil.rmtree(node.run / "iter_0000001")

    node.before = rotate
    mirror.update()
    assert poll_run_progress(home) == (2, [2])


def test_a_checkpoint_that_is_written_again_is_fetched_again(node, home):
    mirror = Mirror(home, node)
    node.save(2, b"first")
    mirror.update()
    node.save(2, b"second")
    mirror.update()
    assert (home / "iter_0000002" / "adapter").read_bytes() == b"second"
    assert sorted(path.name for path in home.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("moment", ["hold", "read", "drop"])
def test_killed_at_any_call_the_folder_here_names_only_what_is_whole(node, home, tmp_path, moment):
    mirror = Mirror(home, node)
    node.save(1)
    mirror.update()
    node.save(2)
    node.log('{"step": 2}\n')

    class KilledError(Exception):
        pass

    def kill(name: str) -> None:
        if name == moment:
            raise KilledError

    node.before = kill
    with pytest.raises(KilledError):
        mirror.update()
    assert poll_run_progress(home) == (1, [1])

    # The next driver, on another node, which gets what is whole and no more.
    other = Direct(tmp_path / "other")
    again = Mirror(home, other)
    assert again.send_state(3) == 1
    assert poll_run_progress(other.run) == (1, [1])
    assert (other.run / "metrics.jsonl").read_bytes() == (home / "metrics.jsonl").read_bytes()
    assert [path.name for path in home.iterdir() if path.name.startswith(".")] == []
    other.save(2)
    again.update()
    assert poll_run_progress(home) == (2, [1, 2])


@pytest.mark.parametrize("harm", [lambda data: b"", lambda data: data[:-1] + b"?", lambda data: data + b"?"])
def test_a_transfer_that_is_torn_is_an_error_and_no_checkpoint(node, home, harm):
    class Torn:
        def call(self, name: str, *arguments: Any) -> Any:
            found = node.call(name, *arguments)
            return harm(found) if name == "read" else found

    node.save(1, b"weights")
    with pytest.raises(TrainError, match="arrived torn"):
        Mirror(home, Torn()).update()
    assert poll_run_progress(home) == (0, [])


def test_a_folder_that_a_kill_left_aside_is_put_back(node, home):
    node.save(1)
    Mirror(home, node).update()
    (home / "iter_0000001").rename(home / ".aside-iter_0000001")
    assert Mirror(home, Direct(home.parent / "other")).send_state(3) == 1
    assert poll_run_progress(home) == (1, [1])


def test_of_many_checkpoints_those_are_sent_that_a_resume_can_use(node, home, tmp_path):
    mirror = Mirror(home, node)
    for step in (1, 2, 3, 4):
        node.save(step, best=1)
    mirror.update()
    # Past the tracker: a save whose name never came.
    shutil.copytree(home / "iter_0000004", home / "iter_0000005")
    for keep, sent in ((2, [1, 3, 4]), (-1, [1, 4])):
        other = Direct(tmp_path / f"keeps{keep}")
        assert Mirror(home, other).send_state(keep) == 4
        assert poll_run_progress(other.run) == (4, sent)
    assert poll_run_progress(home)[1] == [1, 2, 3, 4]


def test_a_folder_without_a_tracker_has_nothing_to_send(node, home):
    (home / "iter_0000003").mkdir()
    assert Mirror(home, node).send_state(3) is None
    assert list(node.run.iterdir()) == []
