"""The pair: the two recipes that a decide entry weighed against each other, as git has them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agent.incumbent import INCUMBENT
from tools.checkout import Repo
from tools.decisions import DecideEntry, Provenance
from tools.errors import BakehouseError, RerunError
from tools.lineage import Trial
from tools.lineage.rows import ParsedRows, extend_rows
from tools.recipe import TrainRecipe
from tools.task import Task
from tools.yaml_text import parse_yaml

__all__ = ["DECISION_TRAILER", "Pair", "find_pair"]

DECISION_TRAILER: Final = "Decision"
"""Trailer of a commit whose value is the slug of the decide entry that it brought."""

# Trial ids come from a file and become paths.
_TRIAL: Final = re.compile(r"(?P<iteration>[iv]\d{4,})-(?P<candidate>[a-z0-9]+)-s(?P<seed>\d{1,18})\Z")
_NEEDED: Final = ("recipe_digest", "data_digest", "base_model", "seeds", "trial_ids")


@dataclass(frozen=True)
class Pair:
    """An entry's incumbent and candidate, with what they were measured on."""

    entry: DecideEntry
    provenance: Provenance
    source: str
    """The commit that brought the entry; its files are the evidence."""
    candidate_trial: str
    """The name of the candidate's trials, without their seeds: `i0001-c1`."""
    incumbent: TrainRecipe
    candidate: TrainRecipe
    seeds: tuple[int, ...]
    recorded_s: float | None
    """Seconds that training and scoring the pair took then; None where it is not known."""

    @property
    def was_kept(self) -> bool:
        """Whether the entry's answer was the candidate."""
        return self.entry.findings[0].pick != INCUMBENT

    @property
    def n_trials(self) -> int:
        return 2 * len(self.seeds)


def find_pair(repo: Repo, task: Task, entry: DecideEntry) -> Pair:
    """Return the recipes that an entry compared, read from the commit that brought it.

    Raises:
        RerunError: the entry does not say what it rests on, was made elsewhere, or git no longer
            holds it.
    """
    provenance = _check_provenance(entry)
    source = _find_source(repo, task, entry, provenance)
    trials = _Trials.read(provenance)
    rows = _read_lineage(repo, source)
    name = _choose_candidate(trials, entry, provenance, rows)
    seeds = trials.shared_seeds(name, provenance.seeds)
    if not seeds:
        raise RerunError(f"{trials.iteration}-{name} and the incumbent share no seed that was scored")
    return Pair(
        entry=entry,
        provenance=provenance,
        source=source,
        candidate_trial=f"{trials.iteration}-{name}",
        incumbent=_read_recipe(repo, source, trials.incumbent[seeds[0]]),
        candidate=_read_recipe(repo, source, trials.candidates[name][seeds[0]]),
        seeds=seeds,
        recorded_s=_recorded_s(rows, [side[seed] for side in trials.sides(name) for seed in seeds]),
    )


@dataclass(frozen=True)
class _Trials:
    """The trial ids of an entry by seed: the incumbent's, and each candidate's."""

    iteration: str
    incumbent: Mapping[int, str]
    candidates: Mapping[str, Mapping[int, str]]

    @classmethod
    def read(cls, provenance: Provenance) -> _Trials:
        matches = [_TRIAL.match(name) for name in provenance.trial_ids]
        strange = [name for name, match in zip(provenance.trial_ids, matches, strict=True) if match is None]
        if strange:
            raise RerunError(f"its trials {strange[:3]} are not named as a bakeoff names them")
        found = [match for match in matches if match is not None]
        # The incumbent's trials come first, and may be of an earlier iteration.
        iteration = found[-1]["iteration"]
        incumbent: dict[int, str] = {}
        candidates: dict[str, dict[int, str]] = {}
        for match in found:
            own = match["iteration"] == iteration and match["candidate"] != INCUMBENT
            group = candidates.setdefault(match["candidate"], {}) if own else incumbent
            group[int(match["seed"])] = match[0]
        if not candidates:
            raise RerunError("no candidate was trained for it, so there is no pair to compare")
        return cls(iteration, incumbent, candidates)

    def sides(self, name: str) -> tuple[Mapping[int, str], Mapping[int, str]]:
        return self.incumbent, self.candidates[name]

    def shared_seeds(self, name: str, scored: Sequence[int]) -> tuple[int, ...]:
        return tuple(seed for seed in self.candidates[name] if seed in self.incumbent and seed in scored)


def _check_provenance(entry: DecideEntry) -> Provenance:
    if entry.provenance is None:
        raise RerunError("it has no provenance: recipes, data and seeds are not on record")
    missing = [name for name in _NEEDED if not getattr(entry.provenance, name)]
    if missing:
        raise RerunError(f"its provenance lacks {', '.join(missing)}")
    return entry.provenance


def _find_source(repo: Repo, task: Task, entry: DecideEntry, provenance: Provenance) -> str:
    branches = (f"bakehouse/{task.name}", repo.branch)
    for branch in branches:
        if branch is None or repo.branch_tip(branch) is None:
            continue
        sha = repo.find_commit(branch, DECISION_TRAILER, entry.slug)
        if sha is not None:
            _check_trailer(repo, sha, "Recipe-Digest", provenance.recipe_digest)
            _check_trailer(repo, sha, "Data-Digest", provenance.data_digest)
            return sha
    raise RerunError("no commit of this repository made it, so its recipes are not here")


def _check_trailer(repo: Repo, sha: str, name: str, wanted: str | None) -> None:
    found = repo.trailers(sha).get(name)
    if found != wanted:
        raise RerunError(f"commit {sha[:12]} has another {name} than the entry: one of them was changed")


def _choose_candidate(
    trials: _Trials, entry: DecideEntry, provenance: Provenance, rows: Mapping[str, Trial]
) -> str:
    """Return the candidate that the entry decided on: the one kept, else the one of its effect."""
    pick = entry.findings[0].pick
    for name in trials.candidates:
        if pick == f"{trials.iteration}-{name}" or len(trials.candidates) == 1:
            return name
    if pick == INCUMBENT and provenance.effect is not None:
        for name, by_seed in trials.candidates.items():
            gains = [rows[trial].delta_vs_best for trial in by_seed.values() if trial in rows]
            if any(gain is not None and abs(gain - provenance.effect) < 1e-9 for gain in gains):
                return name
    raise RerunError(f"which of its candidates {sorted(trials.candidates)} it decided on cannot be told")


def _read_lineage(repo: Repo, source: str) -> dict[str, Trial]:
    text = repo.read_file(source, "lineage/results.tsv")
    rows = ParsedRows()
    if text is not None:
        extend_rows(rows, f"{text}\n".encode())
    return {trial.exp_id: trial for trial in rows.trials}


def _read_recipe(repo: Repo, source: str, trial_id: str) -> TrainRecipe:
    path = f"lineage/{trial_id}/recipe.yaml"
    text = repo.read_file(source, path)
    if text is None:
        raise RerunError(f"commit {source[:12]} does not hold {path}")
    try:
        recipe = TrainRecipe.from_dict(parse_yaml(text))
        recipe.validate()
    except (BakehouseError, ValueError, TypeError) as err:
        raise RerunError(f"{path} of commit {source[:12]} is no recipe of this version: {err}") from err
    return recipe


def _recorded_s(rows: Mapping[str, Trial], names: Sequence[str]) -> float | None:
    times = [rows[name].total_s if name in rows else None for name in names]
    known = [seconds for seconds in times if seconds is not None]
    return sum(known) if len(known) == len(times) else None
