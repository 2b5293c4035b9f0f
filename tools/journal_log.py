"""The journal as it is read: its events, what they say of each step, and what is damaged."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tools.errors import JournalError

__all__ = ["RESERVED_NAMES", "STEP_EVENTS", "JournalEvent", "JournalLog"]

logger = logging.getLogger(__name__)

RESERVED_NAMES = ("seq", "at", "event", "step", "key")
STEP_EVENTS = ("start", "done", "failed", "interrupted")


@dataclass(frozen=True)
class JournalEvent:
    """One line of the journal."""

    seq: int
    at: str
    event: str
    key: str
    step: str | None
    data: Mapping[str, Any]


class JournalLog:
    """The events of a journal file, read on as the file grows.

    Attributes:
        events: All events, oldest first.
        starts: How often each (step, key) was started.
        results: The result of each finished (step, key), as JSON text.
        failures: The error texts of each (step, key) that failed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self._identity: tuple[int, int] | None = None
        self._offset = 0
        self._tail = b""
        self._line = 1
        self._damaged: list[str] = []
        self.events: list[JournalEvent] = []
        self.starts: dict[tuple[str, str], int] = {}
        self.results: dict[tuple[str, str], str] = {}
        self.failures: dict[tuple[str, str], list[str]] = {}

    @property
    def problems(self) -> tuple[str, ...]:
        """A sentence for each line that could not be read."""
        torn = (f"{self.path}:{self._line}: the last line is torn",) if self._tail.strip() else ()
        return (*self._damaged, *torn)

    def refresh(self) -> None:
        """Read what was appended since the last call.

        Raises:
            JournalError: the log contradicts itself.
        """
        for raw in self._new_lines():
            self._take_line(raw)
            self._line += 1
        if self._tail and _decode(self._tail) is not None:
            # Only the newline is missing: the event was written, and the next append,
            # which adds the newline, must not be what makes it true.
            self._take_line(self._tail)
            self._tail = b""

    def _new_lines(self) -> list[bytes]:
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            self._forget()
            return []
        with file:
            status = os.fstat(file.fileno())
            identity = (status.st_dev, status.st_ino)
            if identity != self._identity or status.st_size < self._offset:
                self._forget()
                self._identity = identity
            file.seek(self._offset)
            block = file.read()
        self._offset += len(block)
        *lines, self._tail = (self._tail + block).split(b"\n")
        return lines

    def _take_line(self, raw: bytes) -> None:
        if not raw.strip():
            return
        event = _decode(raw)
        if event is None:
            self._damaged.append(f"{self.path}:{self._line}: not an event; the line is torn or damaged")
            logger.warning("%s", self._damaged[-1])
            return
        if self.events and event.seq <= self.events[-1].seq:
            self._refuse(event, f"follows event {self.events[-1].seq}")
        if event.step is not None and event.event in STEP_EVENTS:
            self._take_step(event, (event.step, event.key))
        self.events.append(event)

    def _take_step(self, event: JournalEvent, place: tuple[str, str]) -> None:
        if place in self.results:
            self._refuse(event, "comes after the step was done")
        if event.event == "start":
            self.starts[place] = self.starts.get(place, 0) + 1
        elif place not in self.starts and not event.data.get("settled") and not self._damaged:
            self._refuse(event, "has no start before it")
        if event.event == "done":
            if "result" not in event.data:
                self._refuse(event, "holds no result")
            self.results[place] = json.dumps(event.data["result"])
        elif event.event == "failed":
            self.failures.setdefault(place, []).append(str(event.data.get("error")))

    def _refuse(self, event: JournalEvent, what: str) -> None:
        name = " ".join(part for part in (event.event, event.step, event.key) if part)
        text = f"{self.path}:{self._line}: event {event.seq} ({name}) {what}"
        # Half a reading must not answer a later question as if it were the whole.
        self._forget()
        raise JournalError(f"{text}; the log contradicts itself: move it away to begin anew, or restore it")


def _decode(raw: bytes) -> JournalEvent | None:
    try:
        row = json.loads(raw.decode("utf-8"))
        head = {name: row.pop(name) for name in RESERVED_NAMES}
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
    texts = (head["at"], head["event"], head["key"])
    if type(head["seq"]) is not int or not all(isinstance(text, str) for text in texts):
        return None
    if not isinstance(head["step"], str | None):
        return None
    return JournalEvent(**head, data=MappingProxyType(row))
