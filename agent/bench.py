"""The bench: what every step of an iteration works with, and how a step is run and paid for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from agent.budget.amounts import Amounts
from agent.budget.estimates import Pace
from agent.budget.ledger import Ledger
from agent.budget.limits import describe_left
from agent.incumbent import Incumbent
from agent.locks import Locks, check_locks
from agent.planners.planner import Planner
from agent.progress import Event
from agent.trials import TrialRunner
from tools.journal import Journal
from tools.repo import Worktree
from tools.task import Task
from tools.workspace import Workspace

__all__ = ["Bench"]


@dataclass(frozen=True)
class Bench:
    """What every step of an iteration works with."""

    workspace: Workspace
    task: Task
    locks: Locks
    journal: Journal
    worktree: Worktree
    runner: TrialRunner
    planner: Planner
    ledger: Ledger
    clock: Callable[[], str]
    notify: Callable[[Event], None]

    def step(self, name: str, iteration_id: str, run: Callable[[], Any]) -> Any:
        """Run one step unless the journal holds its result; the locks are checked first."""
        check_locks(self.workspace, self.locks, self.system_prompt_file)

        def announced() -> Any:
            self.notify(Event(name, iteration_id, "started"))
            started = time.monotonic()
            result = run()
            self.notify(Event(name, iteration_id, "done", wall_s=time.monotonic() - started))
            return result

        return self.journal.run_step(name, iteration_id, announced)

    @contextlib.contextmanager
    def spending(self, step: str, iteration_id: str, worst: Amounts) -> Iterator[None]:
        """Debit what a step may cost at worst, settle what it did cost, and tell what is left.

        Raises:
            BudgetError: the worst case does not fit; nothing was debited.
            GpuLostError: the GPU that the run had is gone.
        """
        self.ledger.check_gpus()
        try:
            with self.ledger.spending(step, iteration_id, worst):
                yield
        finally:
            left = self.ledger.left()
            self.notify(Event(step, iteration_id, "budget", text=describe_left(left), left=left))

    def say(self, step: str, iteration_id: str, text: str) -> None:
        """Tell the watcher something about a step."""
        self.notify(Event(step, iteration_id, "note", text=text))

    def pace(self, incumbent: Incumbent) -> Pace:
        """Return what the incumbent's trials say of how long others take."""
        with self.workspace.split_file(self.task, "train").open(encoding="utf-8") as file:
            n_rows = sum(1 for line in file if line.strip())
        return Pace(incumbent, n_rows, self.ledger.gpus)

    @property
    def system_prompt_file(self) -> str | None:
        return self.workspace.load_recipe().system_prompt_file
