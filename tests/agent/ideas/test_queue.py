"""The queue of ideas: whole lines, one number once, and no state that a kill could leave between two."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.ideas.idea import Idea, Reference
from agent.ideas.queue import IdeaQueue
from agent.plan import DataRequest
from tools.errors import IdeaError
from tools.patch import patch_from_mapping


def idea(rate: float = 1e-3, **changes: Any) -> Idea:
    given: dict[str, Any] = {
        "hypothesis": "the rate is too low",
        "expected_gain": 0.02,
        "patch": patch_from_mapping({"learning_rate": rate}),
        "references": (Reference(kind="paper", ref="arXiv:2106.09685"),),
    }
    return Idea(**{**given, **changes})


def wish(focus: str, n: int = 20) -> Idea:
    return Idea(hypothesis="rows are missing", data_request=DataRequest(focus=focus, rows=n))


@pytest.fixture
def queue(tmp_path: Path) -> IdeaQueue:
    return IdeaQueue(tmp_path / "state" / "ideas.jsonl", clock=lambda: "2026-01-01T00:00:00Z")


def test_an_idea_waits_is_taken_and_is_done(queue: IdeaQueue) -> None:
    item = queue.add(idea(), author="ideator/tiny")
    assert item is not None
    assert (item.id, item.state) == ("q0001", "queued")
    queue.take("q0001", "i0003")
    assert queue.waiting() == ()
    queue.finish(
        "q0001", iteration="i0003", candidate="c2", trials=["t"], verdict="keep", gain=0.1, reason="it won"
    )
    queue.finish("q0001", reason="said again after a kill")
    found = IdeaQueue(queue.path).find("q0001")
    assert (found.state, found.iteration, found.candidate, found.trials) == ("done", "i0003", "c2", ("t",))
    assert (found.verdict, found.gain, found.reason, found.idea) == ("keep", 0.1, "it won", idea())


def test_the_same_wish_waits_once_and_may_come_again_when_it_is_over(queue: IdeaQueue) -> None:
    assert queue.add(wish("Hover against loiter!"), author="a")
    assert queue.add(wish("hover  AGAINST loiter", n=50), author="b") is None
    assert queue.add(idea(), author="a")
    assert queue.add(idea(hypothesis="other words"), author="b") is None
    queue.drop("q0001", "not now")
    again = queue.add(wish("hover against loiter"), author="b")
    assert again is not None
    assert again.id == "q0003"


def test_one_origin_is_queued_once_whatever_became_of_it(queue: IdeaQueue) -> None:
    first = queue.add(wish("hover"), author="claude/x", origin="i0001: data_request")
    queue.finish("q0001", reason="20 rows were made", rows=20)
    again = queue.add(wish("hover"), author="claude/x", origin="i0001: data_request")
    assert first is not None
    assert again is not None
    assert (again.id, again.state, again.rows) == ("q0001", "done", 20)
    assert len(queue.items()) == 1


def test_what_is_taken_or_over_cannot_be_dropped(queue: IdeaQueue) -> None:
    queue.add(idea(), author="a")
    with pytest.raises(IdeaError, match="no reason"):
        queue.drop("q0001", " ")
    queue.take("q0001", "i0002")
    with pytest.raises(IdeaError, match="q0001 is taken by i0002"):
        queue.drop("q0001", "no")
    queue.release("q0001", "i0002 was closed")
    assert queue.drop("q0001", "no").state == "dropped"
    assert queue.drop("q0001", "another reason").reason == "no"
    with pytest.raises(IdeaError, match="no idea 'q0009'"):
        queue.find("q0009")


def test_a_torn_or_damaged_line_costs_itself_alone(queue: IdeaQueue) -> None:
    queue.add(idea(), author="a")
    lines = ["[1]", '{"event": "changed", "id": "q0007", "change": {"state": "done"}}', '{"event": "burned"}']
    lines.append('{"event": "changed", "id": "q0001", "change": {"state": "lost"}}')
    with queue.path.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + '\n{"event": "queued", "item": {"id": "q00')
    queue.add(idea(2e-3), author="a")
    assert [(item.id, item.state) for item in queue.items()] == [("q0001", "queued"), ("q0002", "queued")]
    assert len(queue.problems) == 5


def test_refusals_are_kept_apart_and_short(queue: IdeaQueue) -> None:
    queue.refuse(author="ideator/x", proposal="p" * 9000, reason="'seed' may not be patched")
    (refused,) = queue.refusals()
    assert queue.items() == ()
    assert (len(refused.proposal), refused.reason) == (2000, "'seed' may not be patched")


def test_processes_that_add_at_once_get_a_number_each(queue: IdeaQueue) -> None:
    code = (
        "import sys; from pathlib import Path; from agent.ideas.queue import IdeaQueue;"
        "from agent.ideas.idea import Idea; from agent.plan import DataRequest;"
        "q = IdeaQueue(Path(sys.argv[1]));"
        "[q.add(Idea(hypothesis='h', data_request=DataRequest(focus=f'{sys.argv[2]} {n}')), author='a')"
        " for n in range(10)]"
    )
    started = [subprocess.Popen([sys.executable, "-P", "-c", code, str(queue.path), name]) for name in "abc"]
    assert [process.wait(timeout=120) for process in started] == [0, 0, 0]
    assert [item.id for item in queue.items()] == [f"q{n:04d}" for n in range(1, 31)]


def test_a_process_that_is_killed_while_it_adds_leaves_whole_ideas(queue: IdeaQueue) -> None:
    code = (
        "import sys, itertools; from pathlib import Path; from agent.ideas.queue import IdeaQueue;"
        "from agent.ideas.idea import Idea; from agent.plan import DataRequest;"
        "q = IdeaQueue(Path(sys.argv[1]));"
        "[(q.add(Idea(hypothesis='h', data_request=DataRequest(focus=str(n))), author='a'),"
        " print(n, flush=True)) for n in itertools.count()]"
    )
    for _ in range(3):
        before = len(queue.items())
        # A wish that waits is not taken twice, so each round has to get past those of the last.
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", code, str(queue.path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(before + 5):
            process.stdout.readline()
        process.kill()
        process.communicate()
        ids = [item.id for item in queue.items()]
        assert len(ids) >= before + 5
        assert ids == [f"q{n:04d}" for n in range(1, len(ids) + 1)]
    assert queue.add(wish("one more"), author="a") is not None


def test_an_idea_is_either_a_patch_or_a_request() -> None:
    with pytest.raises(ValueError, match="either a patch or a data_request"):
        idea(data_request=DataRequest(focus="both"))
    with pytest.raises(ValueError, match="either a patch or a data_request"):
        idea(patch=None)


def test_every_line_is_json_on_its_own(queue: IdeaQueue) -> None:
    queue.add(wish("a line\u2028that \x1b[2J breaks\nand ends"), author="a")
    (line,) = queue.path.read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["item"]["idea"]["data_request"]["focus"].endswith("and ends")
