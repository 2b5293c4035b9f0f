"""Row making: batches asked of a teacher, each row checked, kept as it comes, written at the end."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from agent.data_work.candidate import read_candidate
from agent.data_work.gate import RowGate, load_judged, open_gate
from agent.data_work.job_log import JobLog, data_work_dir, hold_data_work, leaks_path, open_job
from agent.data_work.materials import Materials, read_materials
from agent.data_work.origin import Origin
from agent.data_work.parallel import run_batches
from agent.data_work.prompts import rows_prompt
from agent.data_work.replies import find_objects
from agent.data_work.row_file import RowFile
from agent.data_work.row_request import JobProgress, MadeRows, RowRequest, StopReason
from agent.data_work.target import note_change
from agent.teachers.asking import Asker
from agent.teachers.meter import Caps, Meter
from agent.teachers.teacher import Teacher
from tools.clock import Clock, utc_now
from tools.errors import BakehouseError, BudgetError, DatasetError, TeacherError
from tools.rows import Row
from tools.task import JUDGED_SPLITS

__all__ = ["make_rows"]

_FAILED_IN_A_ROW: Final = 3
_FRUITLESS_IN_A_ROW: Final = 3
_LEAST_ASKED: Final = 5
_REPLY_TOKENS: Final = (4096, 16_000)
"""At least, for a model that thinks first, and at most, for one that does not stop."""


def make_rows(
    request: RowRequest,
    teacher: Teacher,
    *,
    caps: Caps,
    clock: Clock = utc_now,
    on_progress: Callable[[JobProgress], None] = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
) -> MadeRows:
    """Ask a teacher for rows until enough are admitted, a cap is reached or it runs dry.

    Called again after a kill, with the same request, it goes on with the rows it has.

    Raises:
        LockHeldError: another data command, or a flywheel, works on the same rows.
        TeacherError: the teacher is out of reach; the rows so far are kept for the next call.
    """
    target = request.target
    with hold_data_work(target.workspace):
        target.check_free()
        materials = read_materials(target.workspace, target.task)
        log = open_job(
            data_work_dir(target.workspace),
            request.command,
            _identity(request, teacher, materials),
            clock=clock,
        )
        maker = _RowMaker(request, teacher, materials, log, Meter(caps, log.spent), clock, on_progress, sleep)
        maker.run()
        return _finish(maker, clock)


@dataclass(frozen=True)
class _Batch:
    number: int
    count: int


@dataclass(frozen=True)
class _Answer:
    prompt_digest: str
    objects: tuple[dict[str, Any], ...]


class _RowMaker:
    """The rows of a job as they come; all but `_ask` runs in one thread."""

    def __init__(
        self,
        request: RowRequest,
        teacher: Teacher,
        materials: Materials,
        log: JobLog,
        meter: Meter,
        clock: Clock,
        on_progress: Callable[[JobProgress], None],
        sleep: Callable[[float], None],
    ) -> None:
        self.request, self.materials, self.log, self.meter = request, materials, log, meter
        self.teacher = teacher
        self._clock, self._on_progress = clock, on_progress
        self._asker = Asker(teacher, meter, on_debit=log.debit, on_settled=log.settle, sleep=sleep)
        self.rows: list[Row] = []
        self.refused: Counter[str] = Counter()
        self.stopped_by: StopReason = "done"
        self.reason = ""
        self._asked_for = 0
        self._failed = self._fruitless = 0
        self._next = 1 + max(log.batches, default=0)
        self._last = self._next + 3 * math.ceil(request.n / request.batch_size) + 10
        self._gate = self._open_gate()

    def run(self) -> None:
        """Ask until there are enough rows or there is a reason to stop."""
        self._tell()
        run_batches(
            self._ask, next_batch=self._next_batch, take=self._take, concurrency=self.request.concurrency
        )

    def _open_gate(self) -> RowGate:
        """Take over what an earlier run kept, and return the gate that knows it."""
        target = self.request.target
        file = RowFile(target.path)
        gate = open_gate(target.workspace, target.task, target.known_rows(file))
        logged: list[Row] = []
        for _, batch in sorted(self.log.batches.items()):
            logged += [_logged_row(entry) for entry in batch["rows"]]
            self.refused.update(batch["refused"])
        there = {row.id for row in file.rows}
        # What judges may have grown since, so a row that passed once passes again or is gone.
        admission = gate.admit([row for row in logged if row.id not in there])
        self.log.keep_leaks(admission.leaks)
        self.refused.update(refusal.reason for refusal in admission.refusals)
        self.rows = [row for row in logged if row.id in there] + list(admission.admitted)
        return gate

    def _next_batch(self) -> _Batch | None:
        missing = self.request.n - len(self.rows) - self._asked_for
        if missing <= 0 or self.reason:
            return None
        if self._next >= self._last:
            self._stop("dry", f"{self._next - 1} batches brought {len(self.rows)} usable rows")
            return None
        # Some of what is asked for is refused, so a handful more than missing saves a call.
        batch = _Batch(self._next, min(self.request.batch_size, max(missing, _LEAST_ASKED)))
        self._next += 1
        self._asked_for += batch.count
        return batch

    def _ask(self, batch: _Batch) -> _Answer:
        gaps = self.request.gaps
        prompt = rows_prompt(
            self.materials,
            samples=self.materials.sample(f"{self.log.identity}:{batch.number}"),
            gap=gaps[(batch.number - 1) % len(gaps)],
            count=batch.count,
        )
        reply = self._asker.ask(prompt.system, prompt.question, max_tokens=self._reply_tokens(batch))
        return _Answer(prompt.digest, find_objects(reply.text))

    def _take(self, batch: _Batch, outcome: _Answer | BakehouseError) -> None:
        self._asked_for -= batch.count
        if isinstance(outcome, BudgetError):
            self._stop("cap", str(outcome))
        elif isinstance(outcome, BakehouseError):
            self._failed += 1
            if self._failed >= _FAILED_IN_A_ROW:
                self._stop("outage", str(outcome))
        else:
            self._failed = 0
            made = self._check(batch, outcome)
            self._fruitless = 0 if made else self._fruitless + 1
            if self._fruitless >= _FRUITLESS_IN_A_ROW:
                self._stop("dry", f"the last {self._fruitless} batches brought no usable row")
        self._tell()

    def _check(self, batch: _Batch, answer: _Answer) -> int:
        origin = Origin(
            self.request.command,
            self.teacher.name,
            answer.prompt_digest,
            self._clock(),
            batch.number,
            self.log.job_id,
        )
        named = {} if self.request.request is None else {"request": self.request.request}
        refused: Counter[str] = Counter()
        candidates = []
        # A reply that is far longer than asked for is not a gift but a fault.
        for place, item in enumerate(answer.objects[: 2 * batch.count], start=1):
            try:
                row_id = f"{self.log.job_id}-b{batch.number:04d}-{place:03d}"
                candidates.append(read_candidate(item, row_id, origin.to_meta(**named)))
            except DatasetError:
                refused["schema"] += 1
        admission = self._gate.admit(candidates)
        refused.update(refusal.reason for refusal in admission.refusals)
        self.log.keep_leaks(admission.leaks)
        self.log.finish_batch(
            batch.number, rows=[row.to_dict() for row in admission.admitted], refused=dict(refused)
        )
        self.rows += admission.admitted
        self.refused += refused
        return len(admission.admitted)

    def _stop(self, stopped_by: StopReason, reason: str) -> None:
        if not self.reason:
            self.stopped_by, self.reason = stopped_by, reason

    def _reply_tokens(self, batch: _Batch) -> int:
        seeds = self.materials.seeds[:50]
        longest = max(
            (sum(len(turn.content.encode()) for turn in row.messages) for row in seeds), default=200
        )
        low, high = _REPLY_TOKENS
        return max(low, min(high, batch.count * (longest // 2 + 40)))

    def _tell(self) -> None:
        done, wanted = min(len(self.rows), self.request.n), self.request.n
        self._on_progress(JobProgress(done, wanted, self.refused.total(), self.meter.spent))


def _finish(maker: _RowMaker, clock: Clock) -> MadeRows:
    request, log = maker.request, maker.log
    if maker.stopped_by == "outage":
        raise TeacherError(
            f"{maker.teacher.name} cannot be asked: {maker.reason}; {len(maker.rows)} rows are kept in "
            f"{log.path}, and the same command goes on from there"
        )
    before = RowFile(request.target.path).digest
    added, admission = request.target.add(maker.rows, limit=request.n)
    log.keep_leaks(admission.leaks)
    maker.refused.update(refusal.reason for refusal in admission.refusals)
    made = MadeRows(
        job_id=log.job_id,
        command=request.command,
        target=request.target.path,
        wanted=request.n,
        added=added,
        refused=dict(sorted(maker.refused.items())),
        calls=maker.meter.spent.calls,
        tokens=maker.meter.spent.tokens,
        stopped_by=maker.stopped_by,
        reason=maker.reason or f"{added} rows as asked",
        log=log.path,
        leaks=leaks_path(log.path) if leaks_path(log.path).is_file() else None,
        notes=tuple(_notes(request)),
    )
    note_change(
        request.target.workspace,
        log.job_id,
        clock=clock,
        command=request.command,
        model=maker.teacher.name,
        target=str(request.target.path),
        added=added,
        before=before,
        after=RowFile(request.target.path).digest,
    )
    log.mark_written(added=added)
    return made


def _notes(request: RowRequest) -> list[str]:
    judged = load_judged(request.target.workspace, request.target.task)
    empty = [split for split in JUDGED_SPLITS if split not in judged]
    return [f"{', '.join(empty)}: no rows yet, so nothing was compared with them"] if empty else []


def _identity(request: RowRequest, teacher: Teacher, materials: Materials) -> dict[str, Any]:
    return {
        "teacher": teacher.name,
        "n": request.n,
        "batch_size": request.batch_size,
        "gaps": list(request.gaps),
        "target": str(request.target.path),
        "materials": materials.digest,
        **({} if request.request is None else {"request": request.request}),
    }


def _logged_row(entry: Mapping[str, Any]) -> Row:
    return read_candidate(entry, str(entry["id"]), entry.get("meta", {}))
