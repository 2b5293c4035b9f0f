"""The ideator: a workspace at rest, described to whoever proposes what to try next, and the replies."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from agent.data_work.replies import find_objects
from agent.ideas.brief import Brief, build_brief, mend_question
from agent.ideas.known import KnownSources, find_sources
from agent.ideas.proposals import CheckedProposals, Refused, check_proposals
from agent.ideas.queue import IdeaQueue, QueueItem
from agent.incumbent import load_incumbent, still_holds
from agent.locks import take_locks
from agent.plan import BudgetLeft, PlanContext
from agent.planner_context import build_context
from agent.publishing import INCUMBENT_FILE
from agent.score_sets import newest
from agent.teachers.asking import Asker
from agent.teachers.meter import Caps, Meter
from agent.teachers.teacher import Teacher
from agent.trials import TrialRunner
from tools.errors import BudgetError, IdeaError, JudgeError, TrainError
from tools.task import Task
from tools.workspace import Workspace
from tools.yaml_text import parse_yaml

__all__ = ["Ideation", "Ideator", "open_ideator", "read_proposals"]

_MAX_COST_RATIO: Final = 4.0
_REPLY_TOKENS: Final = 16_000
_MOST_BYTES: Final = 2_000_000


@dataclass(frozen=True)
class Ideation:
    """What came of a brief."""

    queued: tuple[QueueItem, ...]
    refused: tuple[Refused, ...]
    calls: int = 0
    tokens: int = 0
    note: str = ""
    """Why refused proposals could not be mended, where that is so."""


@dataclass(frozen=True)
class Ideator:
    """A workspace as an ideator sees it, and the queue that proposals go to."""

    task: Task
    context: PlanContext
    sources: KnownSources
    queue: IdeaQueue

    def brief(self, n: int) -> Brief:
        """Return the brief for n proposals."""
        return build_brief(self.context, self.sources, self.task, n=n)

    def ask(
        self, teacher: Teacher, *, n: int, caps: Caps, sleep: Callable[[float], None] = time.sleep
    ) -> Ideation:
        """Ask a teacher for proposals, and once more for those that can be mended.

        Raises:
            BudgetError: the worst case of the first question is over a cap.
            JudgeError: the teacher cannot be asked.
        """
        meter = Meter(caps)
        asker = Asker(teacher, meter, sleep=sleep)
        brief, author = self.brief(n), f"ideator/{teacher.name}"
        first = self._check(asker.ask(brief.head, brief.state, max_tokens=_REPLY_TOKENS).text, n)
        queued, refused, note = self._queue(first, author), first.refused, ""
        if first.refused and len(queued) < n:
            question = f"{brief.state}\n\n{mend_question(first.refused)}"
            known = replace(self, context=replace(self.context, ideas=(*self.context.ideas, *queued)))
            try:
                reply = asker.ask(brief.head, question, max_tokens=_REPLY_TOKENS).text
            except (BudgetError, JudgeError) as err:
                # What came of the first question is queued already, and stays.
                note = f"nothing was mended: {err}"
            else:
                second = known._check(reply, n - len(queued))
                queued, refused = (*queued, *self._queue(second, author)), (*refused, *second.refused)
        return Ideation(queued, refused, meter.spent.calls, meter.spent.tokens, note)

    def take(self, proposals: Sequence[Any], *, author: str) -> Ideation:
        """Check proposals that came from elsewhere and queue those that may be tried."""
        found = check_proposals(proposals, self.context, self.sources, max_cost_ratio=_MAX_COST_RATIO)
        return Ideation(self._queue(found, author), found.refused)

    def _check(self, reply: str, most: int) -> CheckedProposals:
        """Check a reply; of a ranked list that is longer than asked for the best are looked at."""
        proposals = find_objects(reply)[: 2 * most]
        found = check_proposals(proposals, self.context, self.sources, max_cost_ratio=_MAX_COST_RATIO)
        return replace(found, ideas=found.ideas[:most])

    def _queue(self, found: CheckedProposals, author: str) -> tuple[QueueItem, ...]:
        for one in found.refused:
            self.queue.refuse(author=author, proposal=one.proposal, reason=one.reason)
        items = (self.queue.add(idea, author=author) for idea in found.ideas)
        return tuple(item for item in items if item is not None)


def open_ideator(workspace: Workspace, queue: IdeaQueue) -> Ideator:
    """Read a workspace and its bakeoff branch, and return the ideator of it. Nothing is changed.

    Raises:
        TaskError, DatasetError: the workspace is not fit for a bakeoff either.
    """
    task, here = workspace.load_task(), newest(workspace)
    recipe = here.load_recipe()
    incumbent = load_incumbent(here.root / INCUMBENT_FILE)
    if incumbent is not None:
        locks = take_locks(workspace, recipe.system_prompt_file)
        incumbent = incumbent if still_holds(incumbent, recipe, locks) else None
    runner = TrialRunner(
        workspace=workspace, task=task, run_worker=_train_nothing, committed_lineage=here.lineage_dir
    )
    context = build_context(runner, incumbent, iteration=1, budget_left=BudgetLeft(), planner="ideator")
    context = replace(
        context, ideas=tuple(item for item in queue.items() if item.state in ("queued", "taken"))
    )
    return Ideator(task, context, find_sources(here, context.evidence), queue)


def read_proposals(text: str, *, name: str) -> Sequence[Any]:
    """Return the proposals that a text holds: a YAML list, or JSON with whatever stands around it.

    Raises:
        IdeaError: there is none in it, or it is far too long.
    """
    if len(text) > _MOST_BYTES:
        raise IdeaError(f"{name} has {len(text)} characters; proposals have {_MOST_BYTES} at most")
    if Path(name).suffix in (".yaml", ".yml"):
        try:
            found = parse_yaml(text)
        except ValueError as err:
            raise IdeaError(f"{name} cannot be read as YAML: {err}") from err
        proposals = found if isinstance(found, list) else [found]
    else:
        proposals = list(find_objects(text))
    if not proposals:
        raise IdeaError(
            f"{name} holds no proposal; `bakehouse ideate --print-brief` says what one looks like"
        )
    return proposals


def _train_nothing(*_: Any, **__: Any) -> Any:
    raise TrainError("an ideator only reads; nothing is trained here")
