"""The report of a reasoning probe: its rows and how they were made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from tools.errors import ProbeError
from tools.files import write_json_atomic
from tools.probe.ratios import CompareResult, CompareThresholds, compare_reports
from tools.probe.rows import (
    ProbeRow,
    ProbeSummary,
    read_number,
    row_from_dict,
    row_to_dict,
    summarize_rows,
)
from tools.probe.think import CHAR_QUARTER

__all__ = ["ProbeReport", "check_budget"]

_DEFAULT_BUDGET: Final = 1024


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """What a model answered to a probe set.

    Raises:
        ProbeError: max_new_tokens is not above 0.
    """

    model: str
    rows: Sequence[ProbeRow]
    max_new_tokens: int
    temperature: float = 0.6
    lora_path: str | None = None
    step: int | None = None
    wall_seconds: float = 0.0
    excluded_qids: Sequence[str] = ()
    """Questions that `with_budget` left out."""
    counted_by: str = CHAR_QUARTER
    """How the chains were measured: by quarters of characters, or the tokenizer's name."""
    seed: int | None = field(default=None)

    def __post_init__(self) -> None:
        check_budget(self.max_new_tokens, "max_new_tokens")
        object.__setattr__(self, "rows", tuple(self.rows))
        object.__setattr__(self, "excluded_qids", tuple(self.excluded_qids))

    @property
    def n(self) -> int:
        """Number of rows, those without a response included."""
        return len(self.rows)

    @property
    def overall(self) -> ProbeSummary:
        """The aggregate of all rows that have a response."""
        return summarize_rows(self.rows)

    @property
    def by_category(self) -> dict[str, ProbeSummary]:
        """The aggregate of each category, in the order in which the rows first name them."""
        groups: dict[str, list[ProbeRow]] = {}
        for row in self.rows:
            if row.error is None:
                groups.setdefault(row.category, []).append(row)
        return {name: summarize_rows(rows) for name, rows in groups.items()}

    @property
    def failed(self) -> tuple[ProbeRow, ...]:
        """The rows without a response."""
        return tuple(row for row in self.rows if row.error is not None)

    @property
    def truncated(self) -> tuple[ProbeRow, ...]:
        """The rows whose last chain has no end."""
        return tuple(row for row in self.rows if row.truncated)

    def with_budget(self, cap: int) -> ProbeReport:
        """Return the report without the rows whose chain is longer than cap tokens.

        Rows without a think block stay: the cap does not change whether there was a chain.

        Raises:
            ProbeError: cap is not above 0.
        """
        check_budget(cap, "cap")
        dropped = [row.qid for row in self.rows if row.has_think and row.chain_tokens > cap]
        return replace(
            self,
            rows=[row for row in self.rows if not (row.has_think and row.chain_tokens > cap)],
            max_new_tokens=min(self.max_new_tokens, cap),
            excluded_qids=(*self.excluded_qids, *dropped),
        )

    def compare(
        self,
        other: ProbeReport,
        *,
        normalize_budget: bool = True,
        thresholds: CompareThresholds | None = None,
        baseline_label: str | None = None,
        current_label: str | None = None,
    ) -> CompareResult:
        """Compare this report, the current one, with other, the baseline.

        Only questions that both answered are compared. Where the two counted their chains in
        different ways, both are counted again by quarters of characters.

        Args:
            normalize_budget: Where the budgets differ, leave out of both reports every question
                whose chain is longer in either than the smaller budget, and likewise what an
                earlier `with_budget` left out of one of them.
            thresholds: The documented ones when None.
            baseline_label: The model's name when None.
            current_label: The model's name when None.
        """
        return compare_reports(
            self,
            other,
            normalize_budget=normalize_budget,
            thresholds=thresholds,
            baseline_label=baseline_label,
            current_label=current_label,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as the JSON that `from_dict` reads.

        Rows without a response stand apart in `failed_responses`, so that a reader that does
        not know them aggregates the others alone.
        """
        answered = [row for row in self.rows if row.error is None]
        plain: dict[str, Any] = {
            "model": self.model,
            "lora_path": self.lora_path,
            "step": self.step,
            "n_probe": len(answered),
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "overall": _rounded(self.overall),
            "by_category": {name: _rounded(part) for name, part in self.by_category.items()},
            "raw_responses": [row_to_dict(row) for row in answered],
            "excluded_qids": list(self.excluded_qids),
            "wall_seconds": self.wall_seconds,
        }
        if self.failed:
            plain["failed_responses"] = [
                row_to_dict(row) | {"position": position}
                for position, row in enumerate(self.rows)
                if row.error is not None
            ]
        if self.counted_by != CHAR_QUARTER:
            plain["counted_by"] = self.counted_by
        if self.seed is not None:
            plain["seed"] = self.seed
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ProbeReport:
        """Read a report from JSON; the rows are what counts, aggregates in it are not looked at.

        Raises:
            ProbeError: `raw_responses` or a needed key of a row is missing, or a value is of the
                wrong type.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("raw_responses"), list):
            raise ProbeError("a probe report is a JSON object with a list raw_responses; this is none")
        rows = [row_from_dict(row, f"raw_responses[{i}]") for i, row in enumerate(data["raw_responses"])]
        for i, plain in enumerate(_list(data, "failed_responses")):
            row = row_from_dict(plain, f"failed_responses[{i}]")
            rows.insert(_whole(plain.get("position"), len(rows), f"failed_responses[{i}]: position"), row)
        step, seed = data.get("step"), data.get("seed")
        return cls(
            model=str(data.get("model", "unknown")),
            rows=rows,
            max_new_tokens=_whole(data.get("max_new_tokens"), _DEFAULT_BUDGET, "max_new_tokens"),
            temperature=read_number(data.get("temperature"), 0.6, "temperature"),
            lora_path=None if data.get("lora_path") is None else str(data["lora_path"]),
            step=None if step is None else _whole(step, 0, "step"),
            wall_seconds=read_number(data.get("wall_seconds"), 0.0, "wall_seconds"),
            excluded_qids=[str(qid) for qid in _list(data, "excluded_qids")],
            counted_by=str(data.get("counted_by", CHAR_QUARTER)),
            seed=None if seed is None else _whole(seed, 0, "seed"),
        )

    def to_json(self, path: str | Path, *, indent: int = 2) -> Path:
        """Replace path with the report, whole, and return it."""
        return write_json_atomic(path, self.to_dict(), indent=indent)

    @classmethod
    def from_json(cls, path: str | Path) -> ProbeReport:
        """Read a report from disk.

        Raises:
            ProbeError: the file is missing, is no JSON, or is no report; says which.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as err:
            raise ProbeError(f"{path} cannot be read as a probe report: {err}") from err
        try:
            return cls.from_dict(data)
        except ProbeError as err:
            raise ProbeError(f"{path}: {err}") from err


def check_budget(value: int, name: str) -> None:
    """Raise ProbeError unless value is a whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ProbeError(f"{name} is {value!r}; a whole number above 0 is needed")


def _whole(value: Any, default: int, where: str) -> int:
    number = read_number(value, default, where)
    if number != int(number):
        raise ProbeError(f"{where} is {value!r}; a whole number is needed")
    return int(number)


def _list(data: Mapping[str, Any], key: str) -> list[Any]:
    value = data.get(key)
    if value is not None and not isinstance(value, list):
        raise ProbeError(f"{key} is {value!r:.80}; a list is needed")
    return value or []


def _rounded(summary: ProbeSummary) -> dict[str, Any]:
    plain = asdict(summary)
    plain["think_presence_rate"] = round(summary.think_presence_rate, 4)
    plain["think_token_length"] = round(summary.think_token_length, 1)
    return plain
