"""What a person sees while a flywheel runs, on a terminal and in a log."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from agent.cli.live import LiveView
from agent.plan import BudgetLeft
from agent.progress import Event
from tools.lanes.resident import ResidentEngine


def watched(tmp_path: Path, *, terminal: bool) -> str:
    """Return what is printed while a worker scores for 95 seconds and a second one for 40."""
    walls = iter([range(0, 96), range(0, 41)])

    class PollingEngine(ResidentEngine):
        def __call__(self, spec: Mapping[str, Any], *, on_poll: Any, **_: Any) -> dict[str, Any]:
            for wall_s in next(walls):
                on_poll(float(wall_s))
            return {}

    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=200)
    view = LiveView(console, PollingEngine())
    spec = {
        "kind": "evaluate",
        "adapters": [{"trial_id": "base"}],
        "splits": {"dev": "d", "selection": "s"},
        "scores_dir": str(tmp_path),
        "result_path": str(tmp_path / "a.result.json"),
    }
    view.notify(Event("evaluate", "i0001", "started"))
    for _ in range(2):
        view(spec, spec_path=tmp_path / "a.json", log_path=tmp_path / "a.log")
    view.notify(Event("evaluate", "i0001", "done", wall_s=135.0))
    view.close()
    return text.getvalue()


def test_a_log_says_when_a_step_begins_and_twice_a_minute_that_it_goes_on(tmp_path: Path) -> None:
    lines = watched(tmp_path, terminal=False).splitlines()
    assert lines[0] == "  i0001 scoring dev and selection ..."
    assert lines[1] == "    i0001 scoring dev and selection: 0 of 2 score files (30 s)"
    assert [line.partition("files ")[2] for line in lines[1:-1]] == [
        "(30 s)",
        "(1 min 00 s)",
        "(1 min 30 s)",
        "(30 s)",
    ]
    assert lines[-1] == "  i0001 scoring dev and selection: 2 min 15 s"


def test_what_is_left_of_the_budget_is_shown_after_a_step_and_while_the_next_one_runs() -> None:
    text = io.StringIO()
    view = LiveView(Console(file=text, force_terminal=False, width=200))
    uncapped = Event("plan", "i0001", "budget", text="no cap", left=BudgetLeft())
    capped = Event("smoke", "i0001", "budget", text="3 trials", left=BudgetLeft(trials=3))
    for event in (uncapped, capped, Event("train", "i0001", "started")):
        view.notify(event)
    view.close()
    assert text.getvalue().splitlines() == [
        "    budget left: 3 trials",
        "  i0001 training the candidates (left: 3 trials) ...",
    ]


def test_a_terminal_keeps_the_lines_of_finished_steps_alone(tmp_path: Path) -> None:
    shown = watched(tmp_path, terminal=True)
    assert shown.count("\n") <= 2
    assert "scoring dev and selection: 2 min 15 s" in shown
