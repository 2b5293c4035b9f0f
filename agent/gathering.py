"""Gathering: the rows that an idea of the queue asks for, made before an iteration is planned."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from agent.budget.amounts import Amounts
from agent.data_work.requested_rows import (
    RequestedRows,
    make_requested_rows,
    next_request,
    note_requested,
)
from agent.ideas.queue import QueueItem, open_queue
from agent.plan import Plan, PlanContext
from agent.planners.quoting import cut, quote
from agent.teachers.budgeted import BudgetedTeacher
from agent.teachers.registry import choice_of, open_teacher
from tools.errors import BakehouseError, TeacherError
from tools.task import Task

if TYPE_CHECKING:
    from agent.bench import Bench
    from agent.incumbent import Incumbent

__all__ = ["beside_rows", "check_teacher", "gather_rows", "with_gathering"]

_STEP: Final = "data"


def check_teacher(task: Task) -> None:
    """Refuse a teacher that could not be asked, before anything is spent; nobody is asked here.

    Raises:
        TeacherError: its model, its address or its key is missing.
        MissingExtraError: the package that asks it is not installed.
    """
    if not task.bakeoff.data_work:
        return
    try:
        open_teacher(choice_of(task.bakeoff.teacher))
    except TeacherError as err:
        raise TeacherError(f"bakeoff.teacher in task.yaml cannot be asked: {err}") from err


def gather_rows(bench: Bench, iteration_id: str, incumbent: Incumbent) -> RequestedRows | None:
    """data: have the oldest request for rows fulfilled, where the task wants that and one waits.

    A teacher that is out, or a budget that does not cover it, costs the iteration this candidate
    alone; the request waits on.
    """
    if not bench.task.bakeoff.data_work:
        return None
    queue = open_queue(bench.workspace, clock=bench.clock)

    def run() -> Any:
        item = next_request(queue, iteration_id)
        if item is None:
            return None
        bench.say(_STEP, iteration_id, f"asking {bench.task.bakeoff.teacher.model} for the rows of {item.id}")
        found = _gather(bench, iteration_id, incumbent, item)
        told = f"{found.n_rows} rows for {item.id}" if found.dataset else f"{item.id}: {found.why}"
        bench.say(_STEP, iteration_id, told)
        return found.model_dump(mode="json")

    data = bench.step(_STEP, iteration_id, run)
    if data is None:
        return None
    found = RequestedRows.model_validate(data)
    note_requested(queue, iteration_id, found)
    return found


def beside_rows(context: PlanContext, rows: RequestedRows | None) -> PlanContext:
    """Return the context of a planner whose candidates are tried beside requested rows."""
    if rows is None or rows.dataset is None:
        return context
    told = {"idea": rows.item, "rows": rows.n_rows, "hypothesis": rows.hypothesis}
    return replace(
        context,
        n_candidates=context.n_candidates - 1,
        background={**context.background, "tried_beside_yours": quote(told)},
    )


def with_gathering(plan: Plan, rows: RequestedRows | None) -> Plan:
    """Return the plan with a note on rows that could not be tried."""
    if rows is None or rows.dataset is not None:
        return plan
    told = f"the rows that {rows.item} asks for are not tried: {rows.why}"
    return plan.model_copy(update={"notes": cut("\n".join(filter(None, (plan.notes, told))), 8000)})


def _gather(bench: Bench, iteration_id: str, incumbent: Incumbent, item: QueueItem) -> RequestedRows:
    settings = bench.task.bakeoff.teacher
    try:
        # How long a teacher takes is known to nobody, so all that is left is held meanwhile.
        with bench.spending(_STEP, iteration_id, Amounts(wall_s=None)):
            meter = bench.ledger.requests(_STEP, iteration_id)
            teacher = BudgetedTeacher(open_teacher(choice_of(settings)), meter, settings.prices)
            dataset = incumbent.train_recipe.dataset_jsonl
            return make_requested_rows(bench.workspace, bench.task, dataset, item, teacher, clock=bench.clock)
    except BakehouseError as err:
        return RequestedRows(item=item.id, why=str(err))
