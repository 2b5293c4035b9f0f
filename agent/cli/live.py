"""What a person sees while a flywheel runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.status import Status

from agent.cli.output import duration
from agent.plan import BudgetLeft
from agent.progress import Event
from tools.lanes.replicas import ReplicatedEngine
from tools.poll import read_progress

_STEPS = {
    "start": "measuring the recipe to beat",
    "data": "having requested rows made",
    "plan": "planning",
    "validate": "validating patches, data and memory",
    "smoke": "smoke run",
    "train": "training the candidates",
    "evaluate": "scoring dev and selection",
    "probe": "checking the guards",
    "compare": "comparing, item by item",
    "train.look2": "training further seeds",
    "evaluate.look2": "scoring further seeds",
    "compare.look2": "comparing over all seeds",
    "verdict": "reaching the verdict",
    "decide": "writing the decision",
    "commit": "committing",
}
_QUIET = {"begin"}
_LINE_EVERY_S = 30.0


class LiveView:
    """Runs workers with an engine of its own and shows how far they are.

    Prints steps as they end, and the running step's progress: a moving line, in a log some lines.
    """

    def __init__(self, console: Console, engine: ReplicatedEngine | None = None) -> None:
        self._console = console
        self._engine = engine or ReplicatedEngine()
        self._status: Status | None = None
        self._doing = ""
        self._left = ""
        self._next_line_s = _LINE_EVERY_S

    def notify(self, event: Event) -> None:
        """Show an event of the flywheel."""
        if event.step in _QUIET:
            return
        words = _STEPS.get(event.step, event.step)
        if event.kind == "note":
            self._line(f"    {event.text}")
        elif event.kind == "budget":
            self._tell_budget(event)
        elif event.kind == "started":
            self._start(f"{event.iteration_id} {words}")
        else:
            self._stop()
            self._line(f"  {event.iteration_id} {words}: {duration(event.wall_s)}")

    def __call__(
        self, spec: Mapping[str, Any], *, spec_path: Path, log_path: Path, timeout_s: float | None = None
    ) -> Mapping[str, Any]:
        """Run a worker on this machine and show how far its trials are."""
        self._next_line_s = _LINE_EVERY_S
        return self._engine(
            spec,
            spec_path=spec_path,
            log_path=log_path,
            timeout_s=timeout_s,
            on_poll=lambda wall_s: self._poll(spec, wall_s),
        )

    def release(self) -> None:
        """Let go of the base model that the engine may hold."""
        self._engine.release()

    def close(self) -> None:
        """End the progress line and the engine."""
        self._stop()
        self._engine.close()

    def _tell_budget(self, event: Event) -> None:
        if event.left is None or event.left == BudgetLeft():
            return
        self._left = f"left: {event.text}"
        self._line(f"    budget {self._left}")

    def _start(self, doing: str) -> None:
        self._stop()
        self._doing = f"{doing} ({self._left})" if self._left else doing
        doing = self._doing
        if self._console.is_terminal:
            self._status = self._console.status(doing)
            self._status.start()
        else:
            self._line(f"  {doing} ...")

    def _stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _poll(self, spec: Mapping[str, Any], wall_s: float) -> None:
        if self._status is None and wall_s < self._next_line_s:
            return
        text = f"{self._doing}: {_trials_line(spec)} ({duration(wall_s)})"
        if self._status is not None:
            self._status.update(text)
        else:
            # Without a terminal nothing can be redrawn, so a line now and then has to do.
            self._next_line_s = wall_s + _LINE_EVERY_S
            self._line(f"    {text}")

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _trials_line(spec: Mapping[str, Any]) -> str:
    if spec["kind"] != "train":
        done = _scored(spec)
        return f"{done} of {len(spec['adapters']) * len(spec['splits'])} score files"
    parts = []
    for member in spec["members"]:
        found = read_progress(member["run_dir"])
        if found.step:
            loss = "" if found.loss is None else f" loss {found.loss:.3f}"
            parts.append(f"{member['trial_id']} step {found.step}{loss}")
    return "; ".join(parts[-4:]) or "loading the base model"


def _scored(spec: Mapping[str, Any]) -> int:
    folder = Path(spec["scores_dir"])
    made_after = Path(str(spec["result_path"]).removesuffix(".result.json") + ".json")
    try:
        started = made_after.stat().st_mtime
    except OSError:
        return 0
    paths = [folder / a["trial_id"] / f"{split}.jsonl" for a in spec["adapters"] for split in spec["splits"]]
    return sum(path.is_file() and path.stat().st_mtime >= started for path in paths)
