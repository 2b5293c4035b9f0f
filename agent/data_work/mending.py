"""Mending: suggested fixes of an audit put in the place of rows, each through the gate of new rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.data_work.audit import Audit
from agent.data_work.candidate import read_candidate
from agent.data_work.findings import SEVERITIES, Finding, Severity, is_at_least
from agent.data_work.gate import RowGate, open_gate
from agent.data_work.job_log import JobLog, hold_data_work
from agent.data_work.origin import MENDED, Origin
from agent.data_work.row_file import RowFile
from agent.data_work.target import choose_target, note_change
from tools.clock import Clock, utc_now
from tools.errors import DatasetError
from tools.rows import Row
from tools.workspace import Workspace

__all__ = ["Mended", "check_severity", "mend_rows"]


@dataclass(frozen=True)
class Mended:
    """What became of the rows that were to be mended, by their numbers."""

    mended: tuple[int, ...]
    kept: Mapping[int, str]
    """Rows that stay as they are, and why their fix was not taken."""


def check_severity(text: str) -> Severity:
    """Return a severity that rows can be mended from.

    Raises:
        DatasetError: text is none.
    """
    for severity in SEVERITIES:
        if severity == text and severity != "ok":
            return severity
    raise DatasetError(f"min-severity is {text!r}; allowed: error, warning, info")


def mend_rows(
    workspace: Workspace, audit: Audit, *, min_severity: Severity = "error", clock: Clock = utc_now
) -> Mended:
    """Rewrite the audited rows whose finding is bad enough and whose fix passes every check.

    No row is removed, and what a row was before is in the job's log.

    Raises:
        DatasetError: the file changed since it was audited.
        LockHeldError: a flywheel trains on it, or another data command runs.
    """
    task = workspace.load_task()
    target = choose_target(workspace, task, None)
    with hold_data_work(workspace), target.hold() as file:
        if file.digest != audit.file_digest:
            raise DatasetError(f"{file.path} changed since it was audited; audit it again")
        log = JobLog(audit.log, clock=clock)
        wanted = [finding for finding in audit.findings if is_at_least(finding.severity, min_severity)]
        bad = {finding.index - 1 for finding in wanted if finding.severity != "ok"}
        # Rows that are to be rewritten need not differ from what they were.
        others = [row for place, row in enumerate(file.rows) if place not in bad]
        gate = open_gate(workspace, task, others)
        mended: dict[int, Row] = {}
        kept: dict[int, str] = {}
        for finding in wanted:
            if finding.severity == "ok":
                continue
            place = finding.index - 1
            try:
                row = _mend(file.rows[place], finding, audit, gate, log, clock)
            except DatasetError as err:
                kept[finding.index] = str(err)
            else:
                mended[place] = row
        if mended:
            _write(file, mended, log)
        after = RowFile(file.path).digest
        note_change(
            workspace,
            audit.job_id,
            clock=clock,
            command="audit",
            model=audit.model,
            target=str(file.path),
            mended=len(mended),
            before=file.digest,
            after=after,
        )
        log.mark_written(mended=len(mended))
        return Mended(tuple(place + 1 for place in sorted(mended)), kept)


def _mend(row: Row, finding: Finding, audit: Audit, gate: RowGate, log: JobLog, clock: Clock) -> Row:
    if finding.suggested_fix is None:
        raise DatasetError("no fix was suggested")
    digest = audit.prompt_digests.get(finding.index, "")
    origin = Origin("audit", audit.model, digest, clock(), 0, audit.job_id)
    meta = {**row.meta, **origin.to_meta(MENDED, severity=finding.severity, issue=finding.issue)}
    fixed = read_candidate({"tags": list(row.tags), **finding.suggested_fix}, row.id, meta)
    if fixed.messages == row.messages:
        raise DatasetError("the fix changes nothing")
    admission = gate.admit([fixed])
    log.keep_leaks(admission.leaks)
    for refusal in admission.refusals:
        raise DatasetError(f"its fix was refused ({refusal.reason}): {refusal.detail}")
    return Row(row.id, fixed.messages, row.tags, meta)


def _write(file: RowFile, mended: Mapping[int, Row], log: JobLog) -> None:
    for place, row in mended.items():
        log.note("mended", index=place + 1, before=file.rows[place].to_dict(), after=row.to_dict())
    file.replace(mended)
