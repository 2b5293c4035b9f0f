"""Runs of an agent on the questions of a bench, whatever the bench calls their parts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from tools.evaluation.metrics import known_number, summarize_metric
from tools.evaluation.records import load_records

__all__ = ["AgentRun", "TurnDetail", "summarize_agent_runs"]

_LOG = logging.getLogger(__name__)
_TURN_KEYS: Final = ("turn", "action", "duration", "duration_s", "input_tokens", "output_tokens", "extras")
_Path = Sequence[str | int]


@dataclass(frozen=True, slots=True)
class TurnDetail:
    """One turn of an agent; extras holds what the bench notes beside the five common fields."""

    turn: int
    action: str
    duration_s: float | None
    input_tokens: int | None = None
    output_tokens: int | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_record(cls, record: Any, *, position: int) -> TurnDetail:
        """Read a turn as a bench or to_dict() wrote it; unknown numbers are None."""
        if not isinstance(record, Mapping):
            return cls(position, "", None)
        nested = record.get("extras")
        extras = {key: value for key, value in record.items() if key not in _TURN_KEYS}
        if nested is not None:
            extras |= nested if isinstance(nested, Mapping) else {"extras": nested}
        number = _whole(record.get("turn"))
        duration = known_number(record.get("duration"))
        if duration is None:
            duration = known_number(record.get("duration_s"))
        return cls(
            turn=position if number is None else number,
            action=str(record.get("action") or ""),
            duration_s=None if duration is None else float(duration),
            input_tokens=_whole(record.get("input_tokens")),
            output_tokens=_whole(record.get("output_tokens")),
            extras=extras,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; extras only where there are any."""
        common = {name: getattr(self, name) for name in ("turn", "action", "duration_s")}
        common |= {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens}
        return common | ({"extras": dict(self.extras)} if self.extras else {})


@dataclass
class AgentRun:
    """One question's run. raw is the record as it came; wall_seconds is None where it is unknown."""

    question_id: str
    status: str
    wall_seconds: float | None
    n_turns: int
    n_candidates: int
    turns: list[TurnDetail]
    raw: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_record(
        cls,
        raw: dict[str, Any],
        *,
        question_id_field: str = "arxiv_id",
        question_id_path: _Path = ("input_data",),
        inference_path: _Path = ("inference_results", 0),
        status_field: str = "status",
        wall_field: str = "total_time",
        turns_field: str = "turn_details",
        candidates_field: str = "final_candidates",
    ) -> Self:
        """Read one record; the defaults are AutoResearchBench's layout.

        Args:
            question_id_path: Where the object with question_id_field lies; () is the top.
            inference_path: Where the object with the other four fields lies. A number in a path
                is a place in a list.
        """
        found = _walk(raw, inference_path)
        run = found if isinstance(found, Mapping) else {}
        question_id = _walk(raw, (*question_id_path, question_id_field))
        turns, candidates = run.get(turns_field), run.get(candidates_field)
        details = [
            TurnDetail.from_record(turn, position=position)
            for position, turn in enumerate(turns if isinstance(turns, list) else (), start=1)
        ]
        wall = known_number(run.get(wall_field))
        return cls(
            question_id="" if question_id is None else str(question_id),
            status=str(run.get(status_field) or ""),
            wall_seconds=None if wall is None else float(wall),
            n_turns=len(details),
            n_candidates=len(candidates) if isinstance(candidates, list) else 0,
            turns=details,
            raw=raw,
        )

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """Read what to_dict() wrote."""
        turns = [TurnDetail.from_record(turn, position=at) for at, turn in enumerate(value["turns"], start=1)]
        wall = known_number(value["wall_seconds"])
        return cls(
            question_id=str(value["question_id"]),
            status=str(value["status"]),
            wall_seconds=None if wall is None else float(wall),
            n_turns=int(value["n_turns"]),
            n_candidates=int(value["n_candidates"]),
            turns=turns,
            raw=dict(value.get("raw") or {}),
        )

    @classmethod
    def from_jsonl(
        cls, path: str | Path, *, parser: Callable[[dict[str, Any]], AgentRun] | None = None
    ) -> list[AgentRun]:
        """Read a JSONL file, one record a line. Lines that are no objects are left out and logged.

        Args:
            parser: Reads one record; `from_record` where not given.
        Raises:
            FileNotFoundError: there is no file at path.
        """
        records = load_records(path)
        if records.n_malformed:
            _LOG.warning("%s: %d lines are no records and are left out", path, records.n_malformed)
        return [(parser or cls.from_record)(row) for row in records.rows]

    def tool_calls(self) -> int:
        """Count the turns that called a tool."""
        return sum(turn.action == "tool" for turn in self.turns)

    def tool_format_errors(self) -> int:
        """Count the turns whose call could not be read."""
        return sum(turn.action == "error" for turn in self.turns)

    def total_input_tokens(self) -> int | None:
        """Sum the counts that turns report; None where there are turns and none reports."""
        return _total([turn.input_tokens for turn in self.turns])

    def total_output_tokens(self) -> int | None:
        """Sum the counts that turns report; None where there are turns and none reports."""
        return _total([turn.output_tokens for turn in self.turns])

    def succeeded(self) -> bool:
        """Say whether the run finished with a candidate. Override it where success means otherwise."""
        return self.status == "finished" and self.n_candidates > 0

    def to_dict(self, *, include_raw: bool = False) -> dict[str, Any]:
        """Return plain values, unrounded."""
        value: dict[str, Any] = {
            "question_id": self.question_id,
            "status": self.status,
            "wall_seconds": self.wall_seconds,
            "n_turns": self.n_turns,
            "n_candidates": self.n_candidates,
            "tool_calls": self.tool_calls(),
            "tool_format_errors": self.tool_format_errors(),
            "input_tokens": self.total_input_tokens(),
            "output_tokens": self.total_output_tokens(),
            "turns": [turn.to_dict() for turn in self.turns],
        }
        return value | ({"raw": self.raw} if include_raw else {})


def summarize_agent_runs(runs: Iterable[AgentRun], *, label: str = "") -> dict[str, Any]:
    """Count runs by status and sum up their wall time, turns, candidates, tool calls and errors."""
    known = list(runs)
    if not known:
        return {"label": label, "n_questions": 0, "status_counts": {}}
    return {
        "label": label,
        "n_questions": len(known),
        "n_succeeded": sum(run.succeeded() for run in known),
        "status_counts": dict(sorted(Counter(run.status for run in known).items())),
        "wall_seconds": summarize_metric(run.wall_seconds for run in known),
        "turns": summarize_metric(run.n_turns for run in known),
        "candidates": summarize_metric(run.n_candidates for run in known),
        "tool_calls": summarize_metric(run.tool_calls() for run in known),
        "tool_format_errors": summarize_metric(run.tool_format_errors() for run in known),
    }


def _walk(value: Any, path: _Path) -> Any:
    """Return what lies at path; None where the way breaks off."""
    for step in path:
        if isinstance(step, str) and isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(step, int) and isinstance(value, list) and -len(value) <= step < len(value):
            value = value[step]
        else:
            return None
    return value


def _whole(value: Any) -> int | None:
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    number = known_number(value)
    return None if number is None else int(number)


def _total(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return None if counts and not known else sum(known)
