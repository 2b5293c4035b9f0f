"""The section on where the numbers come from: what is needed to measure them again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent.budget.limits import describe_left, describe_spent
from agent.records import TrialRecord
from agent.report.facts import Facts
from agent.report.markup import Child, Markup, element
from agent.report.phrases import level_text, percent, points, seconds

__all__ = ["render_provenance"]

_TRIAL_COLUMNS = (
    "Trial",
    "Seed",
    "Ended",
    "Steps",
    "Best at",
    "Tokens",
    "Training",
    "Scoring",
    "Dev",
    "Selection",
)


def render_provenance(facts: Facts) -> Markup:
    """Return trials, digests, settings and versions."""
    return element(
        "section",
        element("h2", "Provenance", id="provenance"),
        _trials(facts),
        element("dl", [_pair(name, value) for name, value in _pairs(facts)], class_="pairs"),
        aria_labelledby="provenance",
    )


def _trials(facts: Facts) -> Markup | None:
    trials = [trial for one in facts.entrants for trial in one.trials]
    if not trials:
        return None
    head = element("tr", [element("th", name, scope="col") for name in _TRIAL_COLUMNS])
    table = element(
        "table",
        element("caption", "Every trial that the verdicts rest on"),
        element("thead", head),
        element("tbody", [_trial(trial) for trial in trials]),
        class_="trials",
    )
    # A box that scrolls must be reachable by keyboard.
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label="Trials")


def _trial(trial: TrialRecord) -> Markup:
    cells: tuple[Child, ...] = (
        trial.seed,
        trial.status.replace("_", " "),
        f"{trial.steps:,}",
        f"{trial.best_iter:,}" if trial.best_iter else "–",
        f"{trial.tokens:,}",
        seconds(trial.train_s),
        seconds(trial.eval_s),
        percent(trial.dev),
        percent(trial.selection),
    )
    return element(
        "tr",
        element("th", trial.trial_id, scope="row"),
        [element("td", cell) for cell in cells],
    )


def _pair(name: str, value: Child) -> Markup:
    return element("div", element("dt", name), element("dd", value))


def _pairs(facts: Facts) -> Iterator[tuple[str, Child]]:
    record, task = facts.record, facts.task
    yield "Planner", record.planner
    yield "From", record.started_at
    yield "To", record.finished_at
    if record.budget is not None:
        yield "Spent by this iteration", describe_spent(record.budget.spent)
        yield "Left of the run's budget", describe_left(record.budget.left)
    yield "Base model", facts.incumbent.recipe.base_model if facts.incumbent.recipe else "unknown"
    yield (
        "Scorer",
        task.scorer.name + (f" without {', '.join(task.scorer.ignore)}" if task.scorer.ignore else ""),
    )
    yield "Training seeds", ", ".join(map(str, task.seeds))
    yield "Level of a verdict", f"{level_text(task.level)}, before correction for the number tried"
    yield "Minimum gain", f"{points(task.minimum_gain)} points"
    for one in facts.entrants:
        if one.recipe is not None:
            yield f"Recipe of {one.name}", _digest(one.recipe.digest)
    for name, digest in facts.digests.items():
        yield f"Digest of {name}", _digest(digest)
    yield "Versions", _versions(facts.versions.items())


def _digest(digest: str) -> Markup:
    return element("code", digest)


def _versions(versions: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions)
