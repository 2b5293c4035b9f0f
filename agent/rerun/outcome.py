"""What a re-run says of a decision: it still holds, it does not, or the evidence does not tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import date
from typing import Final, Literal

from agent.incumbent import INCUMBENT
from agent.records import IterationRecord, RulingRecord
from agent.rerun.pair import Pair
from tools.decisions import DecideEntry, DecideFinding, Provenance
from tools.hardware import detect
from tools.versions import library_versions

__all__ = ["RECHECK_QUESTION", "RERUN_OF", "Outcome", "build_entry", "judge", "tell"]

Outcome = Literal["confirmed", "reversed", "undecided"]

RERUN_OF: Final = "rerun_of"
"""Key of an entry whose value is the slug of the entry that it measured again."""
RECHECK_QUESTION: Final = "recheck"
"""Question of an undecided re-run's entry: it is on record, and answers no look-up."""


def judge(pair: Pair, ruling: RulingRecord | None) -> Outcome:
    """Return what a ruling on the pair says of the entry's answer.

    A candidate that was kept must win again; one that was not must not win now. A pair that could
    not be measured says nothing, and neither does an open verdict on a candidate that was kept.
    """
    if ruling is None or ruling.gain is None:
        return "undecided"
    if pair.was_kept:
        known: dict[str, Outcome] = {"keep": "confirmed", "discard": "reversed"}
        return known.get(ruling.verdict, "undecided")
    return "reversed" if ruling.verdict == "keep" else "confirmed"


def tell(pair: Pair, ruling: RulingRecord | None, outcome: Outcome, failure: str = "") -> str:
    """Return the decision in one sentence."""
    what = f"{pair.entry.slug}, which picked {pair.entry.findings[0].pick}"
    why = failure or (ruling.reason if ruling else "nothing was measured")
    if outcome == "confirmed":
        return f"Confirm {what}: measured again, {pair.candidate_trial} against its incumbent: {why}."
    if outcome == "reversed":
        return (
            f"Replace {what}: measured again, {pair.candidate_trial} against its incumbent: {why}. "
            "recipe.yaml is not changed by this."
        )
    return f"Leave {what}, as it stands: the re-run of {pair.candidate_trial} does not tell: {why}."


def build_entry(
    pair: Pair,
    record: IterationRecord,
    outcome: Outcome,
    *,
    recipe_digest: str,
    base_model: str,
    base_model_digest: str | None,
    task_name: str,
    commit: str,
    earlier: Sequence[str] = (),
) -> DecideEntry:
    """Return the entry of a re-run: in place of the old one, unless it does not tell.

    On another base model than the old entry's both stand: each answers for its own.

    Args:
        earlier: Slugs of re-runs of the same entry on the same base model, which it replaces too.
    """
    old = pair.entry
    moved = base_model != pair.provenance.base_model
    settled = outcome != "undecided"
    return DecideEntry(
        slug=f"{record.finished_at[:10]}-{task_name}-{record.iteration_id}",
        lifecycle="active",
        created=date.fromisoformat(record.finished_at[:10]),
        question=old.question if settled else RECHECK_QUESTION,
        context={**old.context, "base_model": base_model},
        findings=_findings(pair, record, outcome),
        sources=(f"lineage/{record.iteration_id}/report.html", f"decide-entries/{old.slug}.yaml"),
        supersedes=(*(() if moved else (old.slug,)), *earlier) if settled else (),
        notes=record.decision,
        provenance=_provenance(pair, record, recipe_digest, (base_model, base_model_digest), commit),
        extra={RERUN_OF: old.slug, "outcome": outcome},
    )


def _findings(pair: Pair, record: IterationRecord, outcome: Outcome) -> tuple[DecideFinding, ...]:
    (candidate,) = record.candidates
    ruling = record.ruling(candidate.candidate_id)
    old = pair.entry.findings[0]
    turned = INCUMBENT if pair.was_kept else pair.candidate_trial
    first = DecideFinding(old.optimize_for, turned if outcome == "reversed" else old.pick, record.decision)
    second = dataclasses.replace(
        first,
        evidence=ruling.reason if ruling else record.decision,
        extra={
            "candidate": pair.candidate_trial,
            "verdict": ruling.verdict if ruling else "not measured",
            "changes": list(candidate.changes),
        },
    )
    return first, second


def _provenance(
    pair: Pair, record: IterationRecord, recipe_digest: str, base: tuple[str, str | None], commit: str
) -> Provenance:
    ruling = record.ruling(record.candidates[0].candidate_id)
    known = ruling is not None and ruling.low is not None and ruling.high is not None
    machine = detect()
    return Provenance(
        commit=commit,
        recipe_digest=recipe_digest,
        data_digest=pair.provenance.data_digest,
        base_model=base[0],
        base_model_digest=base[1],
        seeds=tuple(sorted({trial.seed for trial in record.trials if trial.scored})),
        n_items=ruling.n_items if ruling and known else None,
        effect=ruling.gain if ruling else None,
        interval=(ruling.low, ruling.high) if ruling and known else None,  # type: ignore[arg-type]
        level=ruling.level if ruling else None,
        hardware=machine.name,
        driver=machine.driver,
        library_versions=library_versions(),
        planner=record.planner,
        trial_ids=tuple(trial.trial_id for trial in record.trials),
    )
