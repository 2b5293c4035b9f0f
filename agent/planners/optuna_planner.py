"""The optuna planner: a search that needs no key and learns from the whole lineage."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import warnings
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import TrialState

from agent.plan import OnTheWay, Plan, PlanContext, Proposal
from agent.planners.candidates import Candidate, CandidateFilter, is_comparable, is_tried, recipe_key
from agent.planners.dimensions import Dimension, compose_values, search_dimensions
from agent.planners.hypothesis import describe_changes
from agent.planners.priors import PRIORS, prior_values
from tools.errors import PlannerError
from tools.recipe import TrainRecipe

__all__ = ["OptunaPlanner"]

# With fewer scored recipes than this, only the fields that matter most are searched.
_FINE_FROM: Final = 10
_ASKS_A_CANDIDATE: Final = 64
_MOST_CHANGES: Final = 2
_MOST_POINTS_WALKED: Final = 4096


@dataclass(frozen=True)
class _Observed:
    """One recipe of the lineage, over its seeds; a score of None is a recipe that failed."""

    recipe: TrainRecipe
    score: float | None
    halted: OnTheWay | None = None


class OptunaPlanner:
    """Tree-structured Parzen estimation over the patch space, begun from known good settings.

    Each call builds its study anew from the context's history, so that a second flywheel goes
    on where the first stopped and the same seed and history give the same plan. Nothing that
    was tried is proposed again, and nothing that costs far more than the incumbent.

    Source: Bergstra et al. 2011; optuna's multivariate TPESampler with a constant liar.
    """

    name = "optuna"

    def __init__(self, seed: int = 0, *, max_cost_ratio: float = 4.0) -> None:
        """Make a planner.

        Args:
            seed: Fixes what is drawn.
            max_cost_ratio: Most that a candidate may cost, the incumbent being 1.
        """
        if not max_cost_ratio > 0:
            raise PlannerError(f"max_cost_ratio is {max_cost_ratio!r}; it must be above 0")
        self.seed = seed
        self.max_cost_ratio = max_cost_ratio

    def plan(self, context: PlanContext) -> Plan:
        """Return the candidates of one iteration: priors while little is known, then the search's own.

        Raises:
            PlannerError: no trial is left in the budget, or nothing untried in the patch space.
        """
        candidates = CandidateFilter(context, self._affordable_ratio(context))
        wanted = candidates.n_wanted()
        observed = _observe(context)
        proposals = list(itertools.islice(_take_priors(candidates, observed), wanted))
        for fine in (False, True):
            if fine is False and len(observed) >= _FINE_FROM:
                continue
            taken = [proposal.patch.values() for proposal in proposals]
            drawn = self._draw(candidates, search_dimensions(context, fine=fine), observed, taken)
            some = list(itertools.islice(drawn, wanted - len(proposals)))
            proposals += [_propose(candidate, context, observed) for candidate in some]
        if not proposals:
            raise PlannerError(
                f"every affordable setting of the patch space was tried ({len(observed)} recipes); "
                "widen patch_space, raise max_cost_ratio, or stop here"
            )
        return Plan(
            planner=self.name,
            hypothesis=_summarize(len(proposals), observed),
            proposals=tuple(proposals),
            notes="" if len(proposals) == wanted else f"{wanted} wanted; the patch space holds no more.",
        )

    def _affordable_ratio(self, context: PlanContext) -> float:
        """Lower the cost ratio to what the wall clock still pays for, where both are known."""
        left, key = context.budget_left.wall_s, recipe_key(context.incumbent)
        times = [
            trial.train_s for trial in context.history if trial.train_s and recipe_key(trial.recipe) == key
        ]
        if left is None or not times or context.n_candidates < 1:
            return self.max_cost_ratio
        return min(self.max_cost_ratio, left / (context.n_candidates * fmean(times)))

    def _draw(
        self,
        candidates: CandidateFilter,
        dimensions: tuple[Dimension, ...],
        observed: tuple[_Observed, ...],
        taken: list[dict[str, Any]],
    ) -> Iterator[Candidate]:
        if not dimensions:
            return
        context = candidates.context
        chance = random.Random(f"{self.seed}:{len(observed)}:{len(taken)}")
        study = _build_study(observed, dimensions, seed=chance.getrandbits(32))
        for values in taken:
            study.add_trial(_frozen(_Observed(context.incumbent.replace(**values), None), dimensions))
        in_vain = 0
        while in_vain < _ASKS_A_CANDIDATE:
            study.enqueue_trial(_stay_near(dimensions, context.incumbent, chance))
            trial = study.ask(_distributions(dimensions))
            candidate = candidates.take(_values(dimensions, trial.params, context))
            # A constant liar: what has no score yet counts as bad, so that the next lies elsewhere.
            study.tell(trial, state=TrialState.FAIL if candidate is None else TrialState.PRUNED)
            in_vain += 1
            if candidate is not None:
                in_vain = 0
                yield candidate
        for point in _walk(dimensions, chance):
            left_over = candidates.take(_values(dimensions, point, context))
            if left_over is not None:
                yield left_over


def _observe(context: PlanContext) -> tuple[_Observed, ...]:
    """Return the recipes that the history judged, oldest first, their seeds averaged."""
    recipes: dict[Hashable, TrainRecipe] = {}
    scores: dict[Hashable, list[float]] = defaultdict(list)
    halted: dict[Hashable, OnTheWay] = {}
    for trial in context.history:
        if is_tried(trial) and is_comparable(trial, context.incumbent):
            key = recipe_key(trial.recipe)
            recipes.setdefault(key, trial.recipe)
            if trial.score is not None and math.isfinite(trial.score):
                scores[key].append(trial.score)
            if trial.halted is not None and math.isfinite(trial.halted.score):
                halted[key] = trial.halted
    own = recipe_key(context.incumbent)
    if own not in recipes and context.incumbent_score is not None:
        recipes[own] = context.incumbent
        scores[own].append(context.incumbent_score)
    return tuple(
        _Observed(recipe, fmean(scores[key]) if key in scores else None, halted.get(key))
        for key, recipe in recipes.items()
    )


def _take_priors(candidates: CandidateFilter, observed: tuple[_Observed, ...]) -> Iterator[Proposal]:
    if len(observed) >= len(PRIORS):
        return
    context = candidates.context
    for prior in PRIORS:
        for values in prior_values(prior, context):
            if candidates.is_too_slow(values):
                continue
            candidate = candidates.take(compose_values(values, context))
            if candidate is not None:
                clause = describe_changes(context.incumbent, candidate.recipe)
                yield Proposal(patch=candidate.patch, hypothesis=f"{_sentence(clause)}: {prior.reason}.")
            break


def _propose(candidate: Candidate, context: PlanContext, observed: tuple[_Observed, ...]) -> Proposal:
    n_scored = sum(one.score is not None for one in observed)
    clause = _sentence(describe_changes(context.incumbent, candidate.recipe))
    return Proposal(
        patch=candidate.patch, hypothesis=f"{clause}: drawn by TPE from {n_scored} scored recipes."
    )


def _summarize(n_proposals: int, observed: tuple[_Observed, ...]) -> str:
    known = [one.score for one in observed if one.score is not None]
    best = f", best {max(known):.3f}" if known else ""
    return f"One of {n_proposals} candidates beats the incumbent; recipes scored so far: {len(known)}{best}."


def _sentence(clause: str) -> str:
    return clause[:1].upper() + clause[1:]


def _build_study(
    observed: tuple[_Observed, ...], dimensions: tuple[Dimension, ...], *, seed: int
) -> optuna.Study:
    with warnings.catch_warnings():
        # Multivariate sampling is marked experimental by the versions that this project supports.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=len(PRIORS))
    with _quiet_optuna():
        study = optuna.create_study(sampler=sampler, direction="maximize")
    study.add_trials([_frozen(one, dimensions) for one in observed])
    return study


def _frozen(one: _Observed, dimensions: tuple[Dimension, ...]) -> optuna.trial.FrozenTrial:
    # TPE ranks a pruned trial below every scored one: a recipe that failed repels the search. Of
    # those that were halted it knows how they did, and ranks them above the failed.
    on_the_way = {} if one.halted is None or one.score is not None else {one.halted.step: one.halted.score}
    return optuna.trial.create_trial(
        state=TrialState.PRUNED if one.score is None else TrialState.COMPLETE,
        value=one.score,
        intermediate_values=on_the_way,
        params={dimension.name: dimension.index(one.recipe) for dimension in dimensions},
        distributions=_distributions(dimensions),
    )


def _distributions(dimensions: tuple[Dimension, ...]) -> dict[str, BaseDistribution]:
    return {
        dimension.name: IntDistribution(0, len(dimension.settings) - 1)
        if dimension.ordered
        else CategoricalDistribution(range(len(dimension.settings)))
        for dimension in dimensions
    }


def _stay_near(
    dimensions: tuple[Dimension, ...], incumbent: TrainRecipe, chance: random.Random
) -> dict[str, int]:
    """Return the coordinates that a candidate keeps from the incumbent: all but a few, drawn anew.

    Where a trial is dear and scores are noisy, small steps from what is known to work find more
    than leaps, and a verdict on a few fields teaches a reader more than one on ten.
    """
    free = set(chance.sample(range(len(dimensions)), min(chance.randint(1, _MOST_CHANGES), len(dimensions))))
    return {
        dimension.name: dimension.index(incumbent)
        for place, dimension in enumerate(dimensions)
        if place not in free
    }


def _values(
    dimensions: tuple[Dimension, ...], places: Mapping[str, Any], context: PlanContext
) -> dict[str, Any]:
    coordinates = {dimension.name: dimension.settings[places[dimension.name]] for dimension in dimensions}
    return compose_values(coordinates, context)


def _walk(dimensions: tuple[Dimension, ...], chance: random.Random) -> Iterator[dict[str, int]]:
    """Yield points in a drawn order: all of a small space, a sample of a large one."""
    n_points = math.prod(len(dimension.settings) for dimension in dimensions)
    for number in chance.sample(range(n_points), min(n_points, _MOST_POINTS_WALKED)):
        point, rest = {}, number
        for dimension in dimensions:
            rest, point[dimension.name] = divmod(rest, len(dimension.settings))
        yield point


@contextlib.contextmanager
def _quiet_optuna() -> Iterator[None]:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
