"""The audit of the train split: every row reviewed, by checks and by a teacher, and mended on request."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from agent.data_work.findings import Finding, local_findings, read_findings
from agent.data_work.gate import load_judged, open_gate, tied_ids
from agent.data_work.job_log import JobLog, data_work_dir, hold_data_work, open_job
from agent.data_work.materials import Materials, read_materials
from agent.data_work.parallel import run_batches
from agent.data_work.prompts import audit_prompt
from agent.data_work.replies import find_objects
from agent.data_work.row_file import RowFile
from agent.data_work.row_request import JobProgress
from agent.teachers.asking import Asker
from agent.teachers.meter import Caps, Meter
from agent.teachers.teacher import Teacher
from tools.clock import Clock, utc_now
from tools.errors import BakehouseError, BudgetError, DatasetError, TeacherError
from tools.rows import Row
from tools.workspace import Workspace

__all__ = ["Audit", "audit_rows"]

_FAILED_IN_A_ROW: Final = 3
_REPLY_TOKENS: Final = (4096, 16_000)
"""At least, for a model that thinks first, and at most, for one that does not stop."""
_NO_REVIEW: Final = "the teacher, asked twice, gave no usable review of them"


@dataclass(frozen=True)
class Audit:
    """What was found. Rows that nobody reviewed are named, never taken for good ones."""

    job_id: str
    file: Path
    file_digest: str
    findings: tuple[Finding, ...]
    unreviewed: tuple[int, ...]
    """Numbers of rows that the teacher said nothing about, before it was stopped or at all."""
    model: str
    prompt_digests: Mapping[int, str]
    """Digest of the prompt in which a row was reviewed, by its number."""
    calls: int
    tokens: int
    reason: str
    """Why rows are left unreviewed; empty when none is."""
    log: Path


@dataclass(frozen=True)
class _Batch:
    number: int
    rows: tuple[tuple[int, Row], ...]


@dataclass(frozen=True)
class _Review:
    prompt_digest: str
    findings: Mapping[int, Finding]


def audit_rows(
    workspace: Workspace,
    teacher: Teacher,
    *,
    batch_size: int = 20,
    concurrency: int = 4,
    anew: bool = False,
    caps: Caps,
    clock: Clock = utc_now,
    on_progress: Callable[[JobProgress], None] = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Audit:
    """Review every row of the train split.

    What was reviewed is kept: called again on the same rows, it asks only for what is missing.

    Args:
        anew: Ask about every row again.
    Raises:
        DatasetError: there are no rows, or the file holds something else.
        TeacherError: the teacher is out of reach; what it said so far is kept.
        LockHeldError: another data command runs.
    """
    if min(batch_size, concurrency) < 1:
        raise DatasetError(f"batch size is {batch_size}, concurrency {concurrency}; each from 1")
    task = workspace.load_task()
    with hold_data_work(workspace):
        file = RowFile(workspace.split_file(task, "train"))
        if not file.rows:
            raise DatasetError(f"{file.path} has no rows to audit")
        materials = read_materials(workspace, task)
        request = {"teacher": teacher.name, "rows": file.digest, "materials": materials.digest}
        log = open_job(data_work_dir(workspace), "audit", request, clock=clock)
        if anew and log.batches:
            log.mark_written(superseded=True)
            log = open_job(data_work_dir(workspace), "audit", request, clock=clock)
        tied = tied_ids(file.rows, load_judged(workspace, task))
        local = local_findings(file.rows, open_gate(workspace, task, ()), tied)
        meter = Meter(caps, log.spent)
        asker = Asker(teacher, meter, on_debit=log.debit, on_settled=log.settle, sleep=sleep)
        auditor = _Auditor(materials, log, asker, len(file.rows), on_progress)
        # The text of a row that is tied to a judged one would give that one away.
        askable = [(i, row) for i, row in enumerate(file.rows, start=1) if row.id not in tied]
        auditor.run(askable, batch_size, concurrency)
        if auditor.outage:
            raise TeacherError(
                f"{teacher.name} cannot be asked: {auditor.outage}; {len(auditor.found)} rows are reviewed, "
                "and the same command goes on from there"
            )
        missing = tuple(i for i, _ in askable if i not in auditor.found)
        return Audit(
            job_id=log.job_id,
            file=file.path,
            file_digest=file.digest,
            findings=_merged(len(file.rows), local, auditor.found),
            unreviewed=missing,
            model=teacher.name,
            prompt_digests=auditor.digests,
            calls=meter.spent.calls,
            tokens=meter.spent.tokens,
            reason=(auditor.capped or "the teacher gave them no usable review, asked twice")
            if missing
            else "",
            log=log.path,
        )


class _Auditor:
    """Reviews as they come; all but `_ask` runs in one thread."""

    def __init__(
        self,
        materials: Materials,
        log: JobLog,
        asker: Asker,
        total: int,
        on_progress: Callable[[JobProgress], None],
    ) -> None:
        self._materials, self._log, self._asker = materials, log, asker
        self._total, self._on_progress = total, on_progress
        self.found: dict[int, Finding] = {}
        self.digests: dict[int, str] = {}
        self.outage = self.capped = ""
        self._failed = 0
        for _, batch in sorted(log.batches.items()):
            findings = {int(entry["index"]): Finding(**entry) for entry in batch["findings"]}
            self._keep(_Review(batch["prompt_digest"], findings))

    def run(self, rows: Sequence[tuple[int, Row]], batch_size: int, concurrency: int) -> None:
        """Ask about every row, and once more about those that a reply left out."""
        self._tell()
        for _ in range(2):
            left = [(index, row) for index, row in rows if index not in self.found]
            first = 1 + max(self._log.batches, default=0)
            batches = iter(
                [
                    _Batch(first + number, tuple(left[start : start + batch_size]))
                    for number, start in enumerate(range(0, len(left), batch_size))
                ]
            )

            def next_batch(queue: Any = batches) -> _Batch | None:
                return None if self.outage or self.capped else next(queue, None)

            run_batches(self._ask, next_batch=next_batch, take=self._take, concurrency=concurrency)

    def _ask(self, batch: _Batch) -> _Review:
        prompt = audit_prompt(self._materials, batch.rows)
        low, high = _REPLY_TOKENS
        room = max(low, min(high, len(prompt.question.encode("utf-8")) // 2 + 100 * len(batch.rows)))
        reply = self._asker.ask(prompt.system, prompt.question, max_tokens=room)
        numbers = [index for index, _ in batch.rows]
        return _Review(prompt.digest, read_findings(find_objects(reply.text), numbers))

    def _take(self, batch: _Batch, outcome: _Review | BakehouseError) -> None:
        if isinstance(outcome, BudgetError):
            self.capped = str(outcome)
        elif isinstance(outcome, BakehouseError):
            self._failed += 1
            if self._failed >= _FAILED_IN_A_ROW:
                self.outage = str(outcome)
        else:
            self._failed = 0
            entries = [asdict(finding) for finding in outcome.findings.values()]
            self._log.finish_batch(batch.number, prompt_digest=outcome.prompt_digest, findings=entries)
            self._keep(outcome)
        self._tell()

    def _keep(self, review: _Review) -> None:
        self.found |= review.findings
        self.digests |= dict.fromkeys(review.findings, review.prompt_digest)

    def _tell(self) -> None:
        self._on_progress(JobProgress(len(self.found), self._total, 0, self._asker.meter.spent))


def _merged(total: int, local: Mapping[int, Finding], asked: Mapping[int, Finding]) -> tuple[Finding, ...]:
    """Return a finding a row: what a check saw stands, with the teacher's fix where it has one."""
    merged = []
    for index in range(1, total + 1):
        checked, reviewed = local.get(index), asked.get(index)
        if checked is not None:
            fix = reviewed.suggested_fix if reviewed else None
            merged.append(Finding(index, checked.severity, checked.issue, fix, "check"))
        elif reviewed is not None:
            merged.append(reviewed)
    return tuple(merged)
