"""Two probe jobs side by side."""

from __future__ import annotations

import json
from pathlib import Path

from mcp_server.owned_jobs import OwnedJobs
from mcp_server.replies import Compared
from tools.errors import EvidenceError

__all__ = ["compare_probes"]


def compare_probes(jobs: OwnedJobs, base: str, candidate: str) -> Compared:
    """Return what a candidate's probe shows beside the base's: held, or fell.

    Raises:
        JobError: a job is not there, or is another principal's.
        EvidenceError: a job has no report, or the two were made of different kinds of questions.
        ProbeError: the reports cannot be compared.
    """
    before, after = _report(jobs, base), _report(jobs, candidate)
    kinds = [_is_reasoning(path) for path in (before, after)]
    if kinds[0] != kinds[1]:
        raise EvidenceError(
            "one of the jobs probed reasoning, the other knowledge; probe both with the same questions"
        )
    return _reasoning(before, after) if kinds[0] else _knowledge(before, after)


def _reasoning(before: Path, after: Path) -> Compared:
    from tools.probe import ProbeReport
    from tools.verdict import probe_guard

    result = ProbeReport.from_json(after).compare(ProbeReport.from_json(before))
    guard = probe_guard(result)
    return Compared(
        verdict="held" if guard.passed else "fell",
        reason=f"reasoning: {guard.detail}",
        base_mean=guard.base,
        candidate_mean=guard.candidate,
        n_items=result.n_paired,
    )


def _knowledge(before: Path, after: Path) -> Compared:
    from tools.probe import KnowledgeReport, compare_knowledge
    from tools.verdict import probe_guard

    result = compare_knowledge(KnowledgeReport.from_json(before), KnowledgeReport.from_json(after))
    guard = probe_guard(result)
    found = result.comparison
    return Compared(
        verdict="held" if guard.passed else "fell",
        reason=f"knowledge: {guard.detail}",
        gain=result.delta,
        low=None if found is None else found.low,
        high=None if found is None else found.high,
        base_mean=result.pre_score,
        candidate_mean=result.post_score,
        n_items=result.n_paired,
    )


def _report(jobs: OwnedJobs, job_id: str) -> Path:
    from agent.launch import option_of

    _, job = jobs.find(job_id)
    out = option_of(job, "--out") if job.kind == "probe" else None
    if out is None or not Path(out).is_file():
        raise EvidenceError(f"job {job_id} has no probe report; name a probe job that has succeeded")
    return Path(out)


def _is_reasoning(report: Path) -> bool:
    try:
        return "raw_responses" in json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, TypeError) as err:
        raise EvidenceError(f"{report.name} cannot be read: {err}; probe again") from err
