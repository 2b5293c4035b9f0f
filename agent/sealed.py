"""The sealed test split: opened by the final report alone, and every look is counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.bench import Bench
from agent.flywheel import open_bench
from agent.incumbent import Incumbent, load_incumbent
from agent.progress import Event
from agent.publishing import INCUMBENT_FILE
from agent.records import Record, TrialRecord
from agent.trials import BASE_TRIAL
from agent.workers import RunWorker, opened_worker
from tools.clock import Clock, utc_now
from tools.comparison import Interval, Scores, interval
from tools.errors import TaskError
from tools.evaluation.scores import read_scores
from tools.files import append_line
from tools.lock import hold_workspace
from tools.workspace import Workspace

LOOKS_FILE = "lineage/test-looks.jsonl"


class TestScore(Record):
    """One model's mean on the sealed split, with its interval."""

    __test__ = False  # pytest takes a class of this name for a test

    name: str
    mean: float
    low: float
    high: float
    n_items: int
    n_seeds: int


@dataclass(frozen=True)
class TestLook:
    """One look: which it was, and what was seen."""

    __test__ = False

    number: int
    scores: tuple[TestScore, ...]


def open_test_split(
    workspace: Workspace,
    *,
    run_worker: RunWorker | None = None,
    clock: Clock = utc_now,
    notify: Callable[[Event], None] = lambda _: None,
) -> TestLook:
    """Score base, starting recipe and incumbent on the sealed split, count the look and commit it.

    The look is in the journal before the split is read: one that was cut off counts.

    Raises:
        TaskError: there is no incumbent yet.
    """
    with (
        hold_workspace(workspace.state_dir, what="look at the test split"),
        opened_worker(run_worker) as worker,
    ):
        bench = open_bench(workspace, None, worker, clock, notify)
        incumbent = load_incumbent(bench.worktree.root / INCUMBENT_FILE)
        if incumbent is None:
            raise TaskError("nothing to look at yet: run `bakehouse bakeoff` first")
        number = 1 + sum(event.event == "test_look" for event in bench.journal.events())
        bench.journal.append("test_look", f"test-look-{number}", number=number)
        bench.notify(Event("test", f"look {number}", "started"))
        look = TestLook(number, tuple(_score_all(bench, incumbent, f"test-look-{number}")))
        _commit(bench, look, clock())
        return look


def _score_all(bench: Bench, incumbent: Incumbent, label: str) -> list[TestScore]:
    runner = bench.runner
    runner.evaluate_base(incumbent.train_recipe, splits=("test",), label=label)
    base_rows = read_scores(bench.workspace.state_dir / "scores" / BASE_TRIAL / "test.jsonl")
    named = [("base model", interval(Scores.from_rows(base_rows)))]
    same = {t.trial_id for t in incumbent.start_trials} == {t.trial_id for t in incumbent.trials}
    groups: list[tuple[str, Sequence[TrialRecord]]] = [("starting recipe", incumbent.start_trials)]
    if not same:
        groups.append(("best recipe", incumbent.trials))
    trials = {trial.trial_id: trial for _, group in groups for trial in group}
    runner.evaluate(list(trials.values()), splits=("test",), label=label)
    for name, group in groups:
        rows = [row for trial in group for row in runner.scores(trial, "test")]
        named.append((name, interval(Scores.from_rows(rows))))
    return [_test_score(name, found) for name, found in named]


def _test_score(name: str, found: Interval) -> TestScore:
    return TestScore(
        name=name,
        mean=found.mean,
        low=found.low,
        high=found.high,
        n_items=found.n_items,
        n_seeds=found.n_seeds,
    )


def _commit(bench: Bench, look: TestLook, at: str) -> None:
    """Leave a line that says when the split was opened and what was seen, and commit it."""
    import json

    line = {"look": look.number, "at": at, "scores": [score.model_dump(mode="json") for score in look.scores]}
    append_line(bench.worktree.root / LOOKS_FILE, json.dumps(line, allow_nan=False))
    seen = ", ".join(f"{score.name} {100 * score.mean:.1f}%" for score in look.scores)
    bench.worktree.commit(
        [LOOKS_FILE],
        subject=f"Look {look.number} at the sealed test split",
        body=seen,
        trailers={"Bakehouse-Iteration": f"test-look-{look.number}"},
    )
