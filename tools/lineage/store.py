"""The store: the table of trials and the questions that a planner asks of it."""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tools.errors import UnknownTrialError
from tools.lineage.rendering import EMPTY_PROMPT, LineageSnapshot, render_markdown
from tools.lineage.table import TrialTable
from tools.lineage.trial import FailureLabel, Trial, empty_trial


class LineageStore:
    """The trials of one search, in `<root>/results.tsv`.

    Many processes may append at once; each row is on disk when its append returns. A line that
    a crash tore is left out of every answer and named by `problems`.

    Args:
        root: Folder of the file; made at the first append.
        lower_is_better: Whether the smaller `core_metric` wins.
        standing: The trial that the search itself holds to be best, for searches that decide on
            more than one metric of one trial. Where the store has it, it is `best`, whatever the
            metrics say; None leaves `best` to the metric.
    Source: fieldkit.lineage.LineageStore; `find`, `append_once` and `problems` are this project's.
    """

    RESULTS_FILENAME: Final = "results.tsv"

    def __init__(
        self, root: str | Path, *, lower_is_better: bool = True, standing: str | None = None
    ) -> None:
        self.root = Path(root)
        self.lower_is_better = lower_is_better
        self.standing = standing
        self.results_path = self.root / self.RESULTS_FILENAME
        self._table = TrialTable(self.results_path)

    def append(self, trial: Trial) -> None:
        """Append a trial. Line breaks in its texts become spaces: a row is one line.

        Raises:
            LineageError: the row could not be read back (no exp_id, a cell too long).
        """
        self._table.append(trial)

    def append_once(self, trial: Trial) -> bool:
        """Append a trial unless its exp_id is in the store; return whether it was appended.

        The look and the append are one step under the file's lock.
        """
        return self._table.append_once(trial)

    def all_trials(self) -> list[Trial]:
        """Return every trial in the order of the file."""
        return self._table.read().trials

    def problems(self) -> tuple[str, ...]:
        """Return a sentence for each line of the file that is no trial."""
        return tuple(self._table.read().problems)

    def find(self, exp_id: str) -> Trial | None:
        """Return the trial of that name, the last where several have it, or None."""
        return next((trial for trial in reversed(self.all_trials()) if trial.exp_id == exp_id), None)

    def latest(self, n: int = 30) -> tuple[Trial, ...]:
        """Return the last n trials in the order of the file."""
        return _last(self.all_trials(), n)

    def best(self) -> Trial | None:
        """Return the trial with the best finite `core_metric`, the first among equals.

        A crash, an abort or a disqualified trial is never best, whatever its metric says. Where
        nothing was measured it is a baseline that waits for its metric, else None. A store that
        was told which trial is `standing` returns that one.
        """
        return self._best(self.all_trials())

    def chain_to(self, exp_id: str) -> tuple[Trial, ...]:
        """Return the trials from the root to exp_id, along `parent_exp`; a cycle ends the walk.

        Raises:
            UnknownTrialError: exp_id is not in the store; a KeyError too.
        """
        return self._chain(self.all_trials(), exp_id)

    def render_prompt(
        self,
        for_specialist: str,
        *,
        top_k: int = 20,
        recent_n: int = 30,
        last_m_full: int = 10,
        session_timestamp: str = "",
    ) -> LineageSnapshot:
        """Render what was tried as Markdown; the same rows and arguments give the same bytes.

        Args:
            for_specialist: Who reads it.
            top_k: Kept trials in the leaderboard.
            recent_n: Last trials in the table of activity.
            last_m_full: Last trials shown with the whole hypothesis and their notes.
            session_timestamp: Put in the heading as it is.
        """
        trials = self.all_trials()
        best = self._best(trials)
        snapshot = LineageSnapshot(
            rendered_prompt=EMPTY_PROMPT,
            current_best=best or empty_trial(),
            chain_to_best=self._chain(trials, best.exp_id) if best else (),
            top_k_leaderboard=self._top_kept(trials, top_k),
            recent_n_activity=_last(trials, recent_n),
            last_m_with_full_hypothesis=_last(trials, last_m_full),
        )
        if not trials:
            return snapshot
        text = render_markdown(snapshot, for_specialist=for_specialist, session_timestamp=session_timestamp)
        return dataclasses.replace(snapshot, rendered_prompt=text)

    def _best(self, trials: Sequence[Trial]) -> Trial | None:
        standing = next((trial for trial in trials if trial.exp_id == self.standing), None)
        return standing or self._best_by_metric(trials)

    def _best_by_metric(self, trials: Sequence[Trial]) -> Trial | None:
        best: Trial | None = None
        best_metric = math.inf if self.lower_is_better else -math.inf
        for trial in trials:
            metric = trial.core_metric
            # The comparison comes first: it is cheap, and false for NaN.
            if metric is None or not (metric < best_metric if self.lower_is_better else metric > best_metric):
                continue
            if trial.rank_metric is not None:
                best, best_metric = trial, metric
        if best is not None:
            return best
        waiting = (trial for trial in trials if trial.status is FailureLabel.BASELINE)
        return next((trial for trial in waiting if trial.core_metric is None), None)

    def _top_kept(self, trials: Sequence[Trial], n: int) -> tuple[Trial, ...]:
        sign = 1.0 if self.lower_is_better else -1.0

        def rank(trial: Trial) -> float:
            metric = trial.rank_metric
            return math.inf if metric is None else sign * metric

        kept = (trial for trial in trials if trial.status is FailureLabel.KEEP)
        return tuple(heapq.nsmallest(n, kept, key=rank))

    def _chain(self, trials: Sequence[Trial], exp_id: str) -> tuple[Trial, ...]:
        by_id = {trial.exp_id: trial for trial in trials}
        if exp_id not in by_id:
            raise UnknownTrialError(f"exp_id {exp_id!r} is not in {self.results_path}")
        chain: dict[str, Trial] = {}
        while exp_id in by_id and exp_id not in chain:
            chain[exp_id] = by_id[exp_id]
            exp_id = by_id[exp_id].parent_exp
        return tuple(reversed(chain.values()))


def _last(trials: Sequence[Trial], n: int) -> tuple[Trial, ...]:
    return tuple(trials[-n:]) if n > 0 else ()
