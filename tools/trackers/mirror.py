"""One run's numbers on their way from its folder into one tracker."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tools.errors import EvidenceError
from tools.evaluation.scores import read_scores, summarise
from tools.files import digest_file
from tools.poll import METRICS
from tools.trackers.metrics_tail import MetricsTail
from tools.trackers.tracked_run import (
    FOLDER,
    Mark,
    ScoreFile,
    TrackedRun,
    load_mark,
    save_mark,
)
from tools.trackers.tracker import Ending, OpenRun, open_run
from tools.versions import library_versions

__all__ = ["Mirror"]

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 5.0
_LONGEST_PAUSE_S: Final = 120.0


class Mirror:
    """Tells a tracker what is new. What it could not tell stays on disk and is told later."""

    def __init__(
        self,
        run: TrackedRun,
        tracker: str,
        *,
        opener: Callable[..., OpenRun] = open_run,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._tracker = tracker
        self._opener = opener
        self._clock = clock
        self._tail = MetricsTail(Path(run.run_dir) / METRICS)
        self._waiting: list[dict[str, Any]] = []
        self._scores = list(run.scores)
        self._mark = load_mark(run, tracker) or Mark(run.recipe_digest, uuid.uuid4().hex)
        self._open: OpenRun | None = None
        self._pause_s = 0.0
        self._not_before = 0.0
        self._said: set[str] = set()

    @property
    def is_behind(self) -> bool:
        """Something could not be told."""
        return bool(self._pause_s)

    def pump(self, *, final: bool = False) -> None:
        """Tell what is new, unless the tracker failed a moment ago."""
        if not final and self._clock() < self._not_before:
            return
        try:
            self._tell()
        except Exception as err:  # noqa: BLE001 - a tracker's trouble is never the training's
            self._fail(err)
            return
        self._pause_s = 0.0

    def finish(self, ending: Ending) -> None:
        """Tell the rest and close the run."""
        self.pump(final=True)
        if self._open is None:
            return
        try:
            self._open.finish(ending)
        except Exception as err:  # noqa: BLE001 - as above
            self._fail(err)

    def _tell(self) -> None:
        while self._waiting or (block := self._tail.read()):
            self._waiting = self._waiting or [line for line in block if self._is_new(line)]
            while self._waiting:
                self._log(self._waiting[0])
                self._waiting.pop(0)
            self._save()
        for file in [file for file in self._scores if file.is_new]:
            self._tell_score(file)

    def _is_new(self, line: Mapping[str, Any]) -> bool:
        step = line.get("step")
        if not isinstance(step, int) or isinstance(step, bool):
            return False
        return step > (self._mark.eval_step if "eval_score" in line else self._mark.step)

    def _log(self, line: Mapping[str, Any]) -> None:
        # A line that waited since before a failure may have been told all the same.
        if not self._is_new(line):
            return
        step = line["step"]
        self._opened().log(step, _numbers(line))
        changed = {"eval_step": step} if "eval_score" in line else {"step": step}
        self._mark = dataclasses.replace(self._mark, **changed)

    def _tell_score(self, file: ScoreFile) -> None:
        try:
            summary = summarise(read_scores(file.path))
        except EvidenceError as err:
            logger.warning("%s: scores of %s left out: %s", self._run.name, file.split, err)
            self._scores.remove(file)
            return
        if summary.mean is not None:
            values = {f"score/{file.split}": summary.mean, f"score/{file.split}_n": float(summary.n)}
            self._opened().summarise(values)
        self._scores.remove(file)

    def _opened(self) -> OpenRun:
        if self._open is None:
            known, self._mark = self._mark.is_open, dataclasses.replace(self._mark, is_open=True)
            # Before the tracker hears of the run: one that is opened twice must be the same run.
            save_mark(self._run, self._tracker, self._mark)
            self._open = self._opener(
                self._tracker,
                name=self._run.name,
                run_id=self._mark.run_id,
                is_known=known,
                config=_config(self._run),
                folder=str(Path(self._run.run_dir) / FOLDER),
            )
        return self._open

    def _save(self) -> None:
        if self._open is not None:
            self._open.flush()
            save_mark(self._run, self._tracker, self._mark)

    def _fail(self, err: Exception) -> None:
        text = f"{type(err).__name__}: {err}"
        if text not in self._said:
            logger.warning("%s: %s was not told: %s", self._run.name, self._tracker, text)
            self._said.add(text)
        self._pause_s = min(max(_FIRST_PAUSE_S, 2 * self._pause_s), _LONGEST_PAUSE_S)
        self._not_before = self._clock() + self._pause_s


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in line.items()
        if key != "step"
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    }


def _config(run: TrackedRun) -> dict[str, Any]:
    if run.recipe is None:
        return {"trial": run.name}
    config = {
        "trial": run.name,
        **run.recipe,
        "recipe_digest": run.recipe_digest,
        "versions": library_versions(),
    }
    try:
        config["rows_digest"] = digest_file(str(run.recipe.get("dataset_jsonl")))
    except OSError as err:
        logger.warning("%s: the digest of its rows is left out: %s", run.name, err)
    return config
