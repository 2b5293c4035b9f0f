"""The queue: ideas that wait, are being tried or were tried, in an append-only file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.ideas.idea import Idea
from tools.clock import Clock, utc_now
from tools.errors import IdeaError
from tools.files import append_line, locked, read_jsonl
from tools.workspace import Workspace

__all__ = ["IdeaQueue", "IdeaState", "QueueItem", "RefusedIdea", "open_queue"]

IdeaState = Literal["queued", "taken", "done", "dropped"]
_FILE: Final = "ideas.jsonl"
_REFUSED_CHARS: Final = 2000


class QueueItem(BaseModel):
    """An idea and what became of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=r"^q[0-9]{4,}$")]
    idea: Idea
    author: Annotated[str, Field(min_length=1, max_length=64)]
    """Who had it: an ideator with its model, a planner, or whoever wrote the file that it came from."""
    at: str
    origin: str = ""
    """What it came from, where the same origin must not queue it twice."""
    state: IdeaState = "queued"
    reason: str = ""
    """Why it was dropped, or what came of it, in a sentence."""
    iteration: str | None = None
    """The iteration that took it."""
    candidate: str | None = None
    trials: tuple[str, ...] = ()
    verdict: str | None = None
    """Of its candidate: keep, discard, inconclusive, refused; None where none was ruled on."""
    gain: float | None = None
    rows: int | None = None
    """Rows that were made for it."""

    @property
    def origin_name(self) -> str:
        """What rows that were made for it name: ids begin anew in another state folder."""
        return f"{self.id} of {self.at}"


class RefusedIdea(BaseModel):
    """A proposal that never became an item."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: str
    author: str
    proposal: str
    """What was proposed, cut to a length."""
    reason: str


class _Change(BaseModel):
    """What an event of a known item may set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: IdeaState
    reason: str = ""
    iteration: str | None = None
    candidate: str | None = None
    trials: tuple[str, ...] = ()
    verdict: str | None = None
    gain: float | None = None
    rows: int | None = None


class IdeaQueue:
    """Ideas in the order in which they came; every change is one whole line, on disk before the call returns.

    A line that a crash tore, or that somebody damaged, costs itself alone and is named in `problems`.
    Every change can be made again: what holds already is not written twice.
    """

    def __init__(self, path: Path, *, clock: Clock = utc_now) -> None:
        self.path = path
        self._clock = clock
        self.problems: tuple[str, ...] = ()

    def items(self) -> tuple[QueueItem, ...]:
        """Return every item, oldest first."""
        return tuple(self._read()[0].values())

    def refusals(self) -> tuple[RefusedIdea, ...]:
        """Return the proposals that were refused, oldest first."""
        return self._read()[1]

    def waiting(self) -> tuple[QueueItem, ...]:
        """Return the items that nobody has taken, oldest first."""
        return tuple(item for item in self.items() if item.state == "queued")

    def find(self, item_id: str) -> QueueItem:
        """Return an item.

        Raises:
            IdeaError: there is none of that id.
        """
        items = self._read()[0]
        if item_id not in items:
            known = ", ".join(list(items)[-10:]) or "none; `bakehouse ideate` makes some"
            raise IdeaError(f"no idea {item_id!r} in {self.path}; the newest are: {known}")
        return items[item_id]

    def add(self, idea: Idea, *, author: str, origin: str = "") -> QueueItem | None:
        """Queue an idea and return its item, or None where one that is not over asks for the same."""
        with self._held():
            items = self._read()[0]
            for item in items.values():
                if origin and item.origin == origin:
                    return item
                if item.state in ("queued", "taken") and item.idea.key == idea.key:
                    return None
            number = 1 + max((int(name[1:]) for name in items), default=0)
            item = QueueItem(
                id=f"q{number:04d}", idea=idea, author=author[:64], at=self._clock(), origin=origin
            )
            told = {"id", "idea", "author", "at", "origin"}
            self._append("queued", item=item.model_dump(mode="json", include=told))
            return item

    def refuse(self, *, author: str, proposal: str, reason: str) -> None:
        """Keep a proposal that may not be tried, with the reason."""
        with self._held():
            self._append("refused", author=author, proposal=proposal[:_REFUSED_CHARS], reason=reason)

    def take(self, item_id: str, iteration: str) -> None:
        """Say that an iteration tries an item."""
        with self._held():
            item = self.find(item_id)
            if item.state == "queued":
                self._set(item_id, _Change(state="taken", iteration=iteration))

    def release(self, item_id: str, reason: str) -> None:
        """Put a taken item back."""
        with self._held():
            if self.find(item_id).state == "taken":
                self._set(item_id, _Change(state="queued", reason=reason))

    def finish(
        self,
        item_id: str,
        *,
        reason: str,
        iteration: str | None = None,
        candidate: str | None = None,
        trials: Sequence[str] = (),
        verdict: str | None = None,
        gain: float | None = None,
        rows: int | None = None,
    ) -> None:
        """Say what came of an item that was queued or taken."""
        with self._held():
            if self.find(item_id).state in ("queued", "taken"):
                change = _Change(
                    state="done",
                    reason=reason,
                    iteration=iteration,
                    candidate=candidate,
                    trials=tuple(trials),
                    verdict=verdict,
                    gain=gain,
                    rows=rows,
                )
                self._set(item_id, change)

    def drop(self, item_id: str, reason: str) -> QueueItem:
        """Take an item that waits out of the queue and return it.

        Raises:
            IdeaError: it is taken, or over, or no reason is given.
        """
        if not reason.strip():
            raise IdeaError(
                f"no reason to drop {item_id} is given; whoever has the idea again should read one"
            )
        with self._held():
            item = self.find(item_id)
            if item.state in ("taken", "done"):
                where = f" by {item.iteration}" if item.iteration else ""
                raise IdeaError(f"{item_id} is {item.state}{where}; only an idea that waits can be dropped")
            if item.state == "queued":
                self._set(item_id, _Change(state="dropped", reason=reason.strip()))
            return self.find(item_id)

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        # Reading and appending must be one: two processes would give out one number twice.
        with locked(self.path.with_suffix(".lock")):
            yield

    def _set(self, item_id: str, change: _Change) -> None:
        self._append("changed", id=item_id, change=change.model_dump(mode="json", exclude_defaults=True))

    def _append(self, event: str, **data: Any) -> None:
        line = {"event": event, "at": self._clock(), **data}
        append_line(self.path, json.dumps(line, ensure_ascii=True, allow_nan=False))

    def _read(self) -> tuple[dict[str, QueueItem], tuple[RefusedIdea, ...]]:
        found = read_jsonl(self.path)
        items: dict[str, QueueItem] = {}
        refused: list[RefusedIdea] = []
        problems = list(found.problems)
        for row in found.rows:
            try:
                _apply(row, items, refused)
            except (ValidationError, KeyError, TypeError, AttributeError) as err:
                problems.append(f"{self.path}: an event that says nothing usable: {str(err)[:200]}")
        self.problems = tuple(problems)
        return items, tuple(refused)


def open_queue(workspace: Workspace, *, clock: Clock = utc_now) -> IdeaQueue:
    """Return the queue of a workspace; it may have no file yet."""
    return IdeaQueue(workspace.state_dir / _FILE, clock=clock)


def _apply(row: Any, items: dict[str, QueueItem], refused: list[RefusedIdea]) -> None:
    kind = row["event"]
    if kind == "queued":
        item = QueueItem.model_validate(row["item"])
        items.setdefault(item.id, item)
    elif kind == "changed":
        item = items[row["id"]]
        change = _Change.model_validate(row["change"])
        items[item.id] = item.model_copy(update=change.model_dump())
    elif kind == "refused":
        refused.append(RefusedIdea.model_validate({key: row[key] for key in RefusedIdea.model_fields}))
    else:
        raise KeyError(kind)
