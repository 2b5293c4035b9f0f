"""The bookkeeping of the queue: what an iteration could not afford waits for another."""

from __future__ import annotations

from pathlib import Path

from agent.ideas.bookkeeping import settle_ideas
from agent.ideas.idea import Idea, Reference
from agent.ideas.queue import open_queue
from agent.records import NOT_TRAINED
from tests.bakeoff_sample import build_bakeoff
from tools.patch import patch_from_mapping


def test_an_idea_that_the_budget_did_not_cover_waits_again_and_a_refused_one_does_not(tmp_path: Path) -> None:
    bakeoff = build_bakeoff(tmp_path / "w")
    queue = open_queue(bakeoff.workspace, clock=lambda: "2026-11-20T04:49:00Z")
    grounds = (Reference(kind="paper", ref="arXiv:2106.09685", says="adapters want higher rates"),)
    patches = ({"learning_rate": 2e-4}, {"weight_decay": 0.1})
    for patch in patches:
        queue.add(
            Idea(
                hypothesis=f"try {sorted(patch)}",
                patch=patch_from_mapping(patch),
                expected_gain=0.01,
                references=grounds,
            ),
            author="a person",
        )
    ids = [item.id for item in queue.items()]
    assert len(ids) == 2
    for item_id in ids:
        queue.take(item_id, "i0003")
    reasons = (f"{NOT_TRAINED}1 trial(s) more would pass the cap of 3; 0 left", "smoke run: no loss")
    candidates = tuple(
        bakeoff.record.candidates[3].model_copy(update={"idea": item_id, "rejected": reason})
        for item_id, reason in zip(ids, reasons, strict=True)
    )
    record = bakeoff.record.model_copy(update={"candidates": candidates})
    for _ in range(2):  # as after a kill between the commit and the queue
        settle_ideas(queue, record)
    assert [item.id for item in queue.waiting()] == ids[:1]
    assert [item.state for item in queue.items()] == ["queued", "done"]
