"""The journal: an append-only log that lets a killed flywheel take up where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tools.clock import Clock
from tools.errors import JournalError
from tools.files import append_line, locked
from tools.journal_log import RESERVED_NAMES, STEP_EVENTS, JournalEvent, JournalLog

__all__ = ["Journal", "JournalEvent"]

_ERROR_CHARACTERS = 2000


class Journal:
    """Append-only log of one workspace, one JSON object a line.

    Every line is on disk before the call that wrote it returns. A line torn by a crash is
    reported in `problems` and costs itself alone. Reading is incremental: a call reads only
    what was appended since the last one, by this process or another.

    Args:
        path: The file; it and its folders are made by the first append.
        clock: Gives the time of each event.
    """

    def __init__(self, path: str | Path, *, clock: Clock) -> None:
        self.path = Path(path)
        self._clock = clock
        self._log = JournalLog(self.path)

    @property
    def problems(self) -> tuple[str, ...]:
        """A sentence for each line that could not be read."""
        self._log.refresh()
        return self._log.problems

    def events(self) -> tuple[JournalEvent, ...]:
        """Return all events, oldest first.

        Raises:
            JournalError: the log contradicts itself.
        """
        self._log.refresh()
        return tuple(self._log.events)

    def tail(self, n: int) -> tuple[JournalEvent, ...]:
        """Return the last n events, oldest first."""
        return self.events()[-n:] if n > 0 else ()

    def last(self, event: str, key: str | None = None) -> JournalEvent | None:
        """Return the newest event of that name (and key), or None."""
        found = (e for e in reversed(self.events()) if e.event == event and key in (None, e.key))
        return next(found, None)

    def append(self, event: str, key: str, *, step: str | None = None, **data: Any) -> JournalEvent:
        """Write one event and return it as a reader will see it.

        Raises:
            JournalError: event is one that only `run_step` and `settle` write, or data is not JSON.
        """
        if event in STEP_EVENTS:
            raise JournalError(f"event {event!r} belongs to steps; use run_step or settle to write it")
        return self._write(event, key, step, data)

    def is_done(self, step: str, key: str) -> bool:
        """Return whether the step has finished."""
        self._log.refresh()
        return (step, key) in self._log.results

    def done(self, step: str, key: str) -> Any:
        """Return the recorded result of a finished step, or None when it has not finished."""
        self._log.refresh()
        # Decoded afresh, so that a caller who changes its copy does not change the record.
        return json.loads(self._log.results.get((step, key), "null"))

    def attempts(self, step: str, key: str) -> int:
        """Return how often the step was started."""
        self._log.refresh()
        return self._log.starts.get((step, key), 0)

    def failures(self, step: str, key: str) -> tuple[str, ...]:
        """Return the error texts of the step's failed attempts, oldest first."""
        self._log.refresh()
        return tuple(self._log.failures.get((step, key), ()))

    def run_step(
        self,
        step: str,
        key: str,
        fn: Callable[[], Any],
        *,
        max_attempts: int | None = None,
    ) -> Any:
        """Return the step's result, calling fn only when no earlier run finished it.

        The result is what a later run will read back: a tuple has become a list. An attempt that was
        killed left no trace of its end, so fn must be safe to call again. Killed attempts
        do not count towards max_attempts; failed ones do.

        Args:
            step: Name of the step, such as "train".
            key: What the step is done for, such as an iteration's id.
            fn: Does the work; returns a value that JSON can hold.
            max_attempts: How many attempts may fail before the step is refused.
        Raises:
            JournalError: the step has failed max_attempts times, its result is not
                JSON, or the log contradicts itself. Whatever fn raises is recorded and
                raised again.
        """
        if self.is_done(step, key):
            return self.done(step, key)
        failures = self.failures(step, key)
        if max_attempts is not None and len(failures) >= max_attempts:
            raise JournalError(
                f"step {step} of {key} failed {len(failures)} times, allowed is {max_attempts}; "
                f"the last error was: {failures[-1] if failures else 'none'}; "
                "settle the step with a result, or raise the limit"
            )
        attempt = self.attempts(step, key) + 1
        self._write("start", key, step, {"attempt": attempt})
        return self._attempt(step, key, fn, attempt)

    def settle(self, step: str, key: str, result: Any) -> Any:
        """Record a result for a step without running it, such as that of a trial given up.

        Raises:
            JournalError: the step is done with another result.
        """
        value = json.loads(_encode_result(step, key, result))
        if not self.is_done(step, key):
            self._write("done", key, step, {"result": value, "settled": True})
        elif self.done(step, key) != value:
            raise JournalError(f"step {step} of {key} is done with another result; a result never changes")
        return value

    def begin_run(self, run_id: str, **data: Any) -> JournalEvent:
        """Record that a run begins, or, when it was begun and never ended, that it resumes.

        Raises:
            JournalError: the run has ended.
        """
        if self.last("run_end", run_id) is not None:
            raise JournalError(f"run {run_id} has ended; begin one with a new id")
        resumed = self.last("run_begin", run_id) is not None
        return self.append("run_resume" if resumed else "run_begin", run_id, **data)

    def end_run(self, run_id: str, **data: Any) -> JournalEvent:
        """Record that a run ended in order.

        Raises:
            JournalError: the run was never begun, or has ended.
        """
        if run_id not in self.open_runs():
            raise JournalError(f"run {run_id} is not open; open are: {list(self.open_runs()) or 'none'}")
        return self.append("run_end", run_id, **data)

    def open_runs(self) -> tuple[str, ...]:
        """Return the ids of the runs that were begun and not ended, oldest first."""
        open_ids: dict[str, None] = {}
        for event in self.events():
            if event.event == "run_begin":
                open_ids[event.key] = None
            elif event.event == "run_end":
                open_ids.pop(event.key, None)
        return tuple(open_ids)

    def _attempt(self, step: str, key: str, fn: Callable[[], Any], attempt: int) -> Any:
        try:
            text = _encode_result(step, key, fn())
        except Exception as err:
            self._write_end("failed", step, key, attempt, err)
            raise
        except BaseException as err:
            self._write_end("interrupted", step, key, attempt, err)
            raise
        result = json.loads(text)
        self._write("done", key, step, {"attempt": attempt, "result": result})
        return result

    def _write_end(self, event: str, step: str, key: str, attempt: int, err: BaseException) -> None:
        text = f"{type(err).__name__}: {err}"[:_ERROR_CHARACTERS]
        try:
            self._write(event, key, step, {"attempt": attempt, "error": text})
        except OSError as problem:
            # A full disk often is the error itself; the caller must see that one first.
            err.add_note(f"the journal {self.path} could not record this: {problem}")

    def _write(self, event: str, key: str, step: str | None, data: Mapping[str, Any]) -> JournalEvent:
        taken = sorted(set(data) & set(RESERVED_NAMES))
        if taken:
            raise JournalError(
                f"event {event!r} of {key} uses reserved names {taken}; reserved are {RESERVED_NAMES}"
            )
        with locked(self.path.with_name(self.path.name + ".lock")):
            self._log.refresh()
            seq = self._log.events[-1].seq + 1 if self._log.events else 1
            head = {"seq": seq, "at": self._clock(), "event": event, "step": step, "key": key}
            try:
                line = json.dumps({**head, **data}, allow_nan=False)
            except (TypeError, ValueError) as err:
                raise JournalError(f"event {event!r} of {key} is not JSON: {err}") from err
            append_line(self.path, line)
            self._log.refresh()
        written = self._log.events[-1]
        if written.seq != seq:
            raise JournalError(f"{self.path} did not keep event {seq}; it ends with {written.seq}")
        return written


def _encode_result(step: str, key: str, result: Any) -> str:
    try:
        return json.dumps(result, allow_nan=False)
    except (TypeError, ValueError) as err:
        raise JournalError(
            f"the result of step {step} of {key} cannot be recorded ({err}); allowed is JSON without NaN"
        ) from err
