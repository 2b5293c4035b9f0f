"""What the report tells, gathered once: the recipes of an iteration with all that is known of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agent.incumbent import INCUMBENT
from agent.records import CandidateRecord, IterationRecord, RulingRecord, TrialRecord
from agent.report.evidence import Evidence, EvidenceReader
from tools.patch import Change, diff_recipes
from tools.recipe import TrainRecipe
from tools.task import Task

__all__ = ["Entrant", "Facts", "gather_facts"]


@dataclass(frozen=True)
class Entrant:
    """A recipe of the bakeoff, the incumbent or a candidate."""

    name: str
    recipe: TrainRecipe | None
    """None where it is not known: an iteration without any trial of the incumbent."""
    changes: tuple[Change, ...]
    hypothesis: str
    expected_gain: float | None
    rejected: str | None
    ruling: RulingRecord | None
    trials: tuple[TrialRecord, ...]
    evidence: Evidence

    @property
    def is_incumbent(self) -> bool:
        return self.name == INCUMBENT

    @property
    def verdict(self) -> str:
        """keep, discard, inconclusive, refused (never trained), or incumbent."""
        if self.is_incumbent:
            return INCUMBENT
        if self.ruling is not None:
            return self.ruling.verdict
        return "refused"

    @property
    def gain(self) -> float | None:
        return self.ruling.gain if self.ruling else None

    @property
    def mean_selection(self) -> float | None:
        return _mean(trial.selection for trial in self.trials)

    @property
    def mean_dev(self) -> float | None:
        return _mean(trial.dev for trial in self.trials)

    @property
    def wall_s(self) -> float | None:
        """Seconds of training and scoring; None when it was never trained."""
        return sum(trial.train_s + trial.eval_s for trial in self.trials) if self.trials else None

    @property
    def errors(self) -> tuple[str, ...]:
        """What went wrong with it: why it was refused, and every trial that failed."""
        refused = () if self.rejected is None else (self.rejected,)
        return (*refused, *(f"{trial.trial_id}: {trial.error}" for trial in self.trials if trial.error))


@dataclass(frozen=True)
class Facts:
    """Everything that the page and the picture show."""

    record: IterationRecord
    task: Task
    entrants: tuple[Entrant, ...]
    """The incumbent, then the candidates: the kept one first, then by gain, those without one last."""
    base_selection: float | None
    """Selection score of the untrained base model."""
    problems: tuple[str, ...]
    """What could not be read."""
    digests: Mapping[str, str]
    """Name -> SHA-256 of what the scores were measured on."""
    versions: Mapping[str, str]

    @property
    def incumbent(self) -> Entrant:
        """The recipe that the candidates were compared with."""
        return self.entrants[0]

    @property
    def candidates(self) -> tuple[Entrant, ...]:
        return self.entrants[1:]

    @property
    def promoted(self) -> Entrant | None:
        """The candidate that became the incumbent."""
        return next((one for one in self.candidates if one.name == self.record.promoted), None)

    @property
    def best(self) -> Entrant:
        """The kept candidate, else the one with the highest gain, else the incumbent."""
        if self.promoted is not None:
            return self.promoted
        scored = [one for one in self.candidates if one.gain is not None]
        return max(scored, key=lambda one: one.gain or 0.0) if scored else self.incumbent


def gather_facts(
    record: IterationRecord,
    *,
    task: Task,
    reader: EvidenceReader,
    base_selection: float | None,
    digests: Mapping[str, str],
    versions: Mapping[str, str],
) -> Facts:
    """Read the evidence of every recipe of an iteration."""
    entrants = [_incumbent(record, task, reader)]
    entrants += sorted(
        (_candidate(record, candidate, task, reader) for candidate in record.candidates),
        key=lambda one: (one.name != record.promoted, one.gain is None, -(one.gain or 0.0)),
    )
    return Facts(
        record=record,
        task=task,
        entrants=tuple(entrants),
        base_selection=base_selection,
        problems=reader.problems,
        digests=digests,
        versions=versions,
    )


def _incumbent(record: IterationRecord, task: Task, reader: EvidenceReader) -> Entrant:
    taken = {trial.trial_id for one in record.candidates for trial in _trials_of(record, one.candidate_id)}
    trials = tuple(trial for trial in record.trials if trial.trial_id not in taken)
    return Entrant(
        name=INCUMBENT,
        recipe=trials[0].train_recipe if trials else None,
        changes=(),
        hypothesis="",
        expected_gain=None,
        rejected=None,
        ruling=None,
        trials=trials,
        evidence=reader.read(INCUMBENT, trials, task.level),
    )


def _candidate(
    record: IterationRecord, candidate: CandidateRecord, task: Task, reader: EvidenceReader
) -> Entrant:
    trials = _trials_of(record, candidate.candidate_id)
    return Entrant(
        name=candidate.candidate_id,
        recipe=candidate.train_recipe,
        changes=_changes(record, candidate.train_recipe),
        hypothesis=candidate.hypothesis,
        expected_gain=candidate.expected_gain,
        rejected=candidate.rejected,
        ruling=record.ruling(candidate.candidate_id),
        trials=trials,
        evidence=reader.read(candidate.candidate_id, trials, task.level),
    )


def _trials_of(record: IterationRecord, name: str) -> tuple[TrialRecord, ...]:
    # An incumbent keeps the name that it had as a candidate of an earlier iteration, so the
    # name alone does not tell; the parent does.
    first = record.trials[0] if record.trials else None
    return tuple(
        trial
        for trial in record.trials_of(name)
        if first is not None and trial is not first and trial.parent_id == first.trial_id
    )


def _changes(record: IterationRecord, recipe: TrainRecipe) -> tuple[Change, ...]:
    if not record.trials:
        return ()
    # The seed belongs to a trial, not to what a candidate changes.
    before = record.trials[0].train_recipe.replace(seed=recipe.seed)
    return diff_recipes(before, recipe)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
