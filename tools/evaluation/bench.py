"""A bench: how long a callable takes per input, and the numbers it reports."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from tools.errors import EvaluationError
from tools.evaluation.metrics import format_number, known_number, summarize_metric
from tools.files import write_text_atomic

__all__ = ["Bench", "BenchCall"]

_RESERVED: Final = ("name", "n", "n_success", "n_failure", "latency_ms", "wall_seconds")


@dataclass
class BenchCall:
    """One call: what went in, what came out, how long it took."""

    input: Any
    output: Any
    latency_ms: float
    success: bool = True
    error: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, Any] = field(default_factory=dict)


@dataclass
class Bench:
    """Times a callable over inputs and sums up the numbers it returns.

    As a context manager it measures the wall time of the block, which need not be over for a
    report; several blocks add up.

    Args:
        metrics: Names of numbers in what the callable returns, which must then be a mapping.
        metrics_key: Where set, the numbers lie under this key of the mapping.
        clock: Seconds, rising.
    Raises:
        EvaluationError: metrics is one text, or names a key that the summary itself uses.
    """

    name: str
    metrics: Sequence[str] = ()
    metrics_key: str | None = None
    calls: list[BenchCall] = field(default_factory=list)
    wall_seconds: float = 0.0
    clock: Callable[[], float] = field(default=time.perf_counter, repr=False)
    _started: float | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.metrics, str):
            raise EvaluationError(f"metrics is the text {self.metrics!r}; give a list: [{self.metrics!r}]")
        taken = [metric for metric in self.metrics if metric in _RESERVED]
        if taken:
            raise EvaluationError(f"metrics {taken} are keys of the summary itself; name them otherwise")

    def __enter__(self) -> Self:
        self._started = self.clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wall_seconds = self._wall_so_far()
        self._started = None

    def run(
        self,
        fn: Callable[[Any], Any],
        inputs: Iterable[Any],
        *,
        on_error: Literal["record", "raise"] = "record",
        tag_fn: Callable[[Any], dict[str, Any]] | None = None,
    ) -> Self:
        """Call fn on every input and record each call.

        Args:
            on_error: "record" notes a call that raised and goes on; "raise" ends the sweep there.
            tag_fn: Returns what to note beside a call, from its input.
        Raises:
            EvaluationError: on_error is another word.
        """
        if on_error not in ("record", "raise"):
            raise EvaluationError(f"on_error is {on_error!r}; allowed: 'record', 'raise'")
        for value in inputs:
            call = BenchCall(value, None, 0.0)
            started = self.clock()
            try:
                call.tags = tag_fn(value) if tag_fn else {}
                started = self.clock()
                call.output = fn(value)
            except Exception as err:
                call.latency_ms = (self.clock() - started) * 1000.0
                if on_error == "raise":
                    raise
                call.success, call.error = False, f"{type(err).__name__}: {err}"
            else:
                call.latency_ms = (self.clock() - started) * 1000.0
                call.metrics = self._numbers_of(call.output)
            self.calls.append(call)
        return self

    def record(
        self,
        *,
        input: Any = None,
        output: Any = None,
        latency_ms: float,
        success: bool = True,
        error: str | None = None,
        tags: dict[str, Any] | None = None,
        **metrics: float,
    ) -> BenchCall:
        """Note a call that its caller timed."""
        call = BenchCall(input, output, latency_ms, success, error, dict(metrics), tags or {})
        self.calls.append(call)
        return call

    def summary(self) -> dict[str, Any]:
        """Return counts and, of the calls that succeeded, latency and every metric summed up."""
        if not self.calls:
            return {"name": self.name, "n": 0}
        done = [call for call in self.calls if call.success]
        result: dict[str, Any] = {
            "name": self.name,
            "n": len(self.calls),
            "n_success": len(done),
            "n_failure": len(self.calls) - len(done),
            "latency_ms": summarize_metric(call.latency_ms for call in done),
        }
        for metric in self.metrics:
            result[metric] = summarize_metric(call.metrics.get(metric) for call in done)
        wall = self._wall_so_far()
        if wall:
            result["wall_seconds"] = wall
        return result

    def report(self) -> str:
        """Return the summary as a Markdown table, numbers rounded."""
        summary = self.summary()
        lines = [f"### Bench: {self.name} (n={summary['n']})"]
        if summary.get("n_failure"):
            lines.append(
                f"- success: {summary['n_success']} / {summary['n']}, failures: {summary['n_failure']}"
            )
        if "wall_seconds" in summary:
            lines.append(f"- wall: {summary['wall_seconds']:.3f}s")
        lines += ["", "| metric | mean | median | min | max |", "|---|---:|---:|---:|---:|"]
        for metric in ("latency_ms", *self.metrics):
            cells = summary.get(metric) or summarize_metric(())
            shown = " | ".join(format_number(cells[key]) for key in ("mean", "median", "min", "max"))
            lines.append(f"| {metric} | {shown} |".replace("\n", " "))
        return "\n".join(lines)

    def to_dict(self, *, include_outputs: bool = False) -> dict[str, Any]:
        """Return summary and calls as plain values of JSON; unknown numbers are None."""
        left_out = () if include_outputs else ("output",)
        names = [name.name for name in dataclasses.fields(BenchCall) if name.name not in left_out]
        calls = [{name: _plain(getattr(call, name)) for name in names} for call in self.calls]
        return {"summary": _plain(self.summary()), "calls": calls}

    def dump(self, path: str | Path, *, include_outputs: bool = False) -> Path:
        """Write to_dict() as JSON, whole or not at all, and return the path."""
        value = self.to_dict(include_outputs=include_outputs)
        # ASCII: an answer may hold half a surrogate pair, which UTF-8 cannot.
        return write_text_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Bench:
        """Read what dump() wrote.

        Raises:
            EvaluationError: the file holds something else.
        """
        try:
            value = json.loads(Path(path).read_bytes())
            summary = value["summary"]
            calls = [BenchCall(**{"output": None, **call}) for call in value["calls"]]
        except (ValueError, KeyError, TypeError, RecursionError) as err:
            raise EvaluationError(f"{path} holds no bench: {err!r}") from err
        metrics = [key for key in summary if key not in _RESERVED]
        return cls(summary["name"], metrics, calls=calls, wall_seconds=summary.get("wall_seconds", 0.0))

    def _wall_so_far(self) -> float:
        running = 0.0 if self._started is None else self.clock() - self._started
        return self.wall_seconds + running

    def _numbers_of(self, output: Any) -> dict[str, float]:
        payload = output
        if self.metrics_key is not None:
            payload = output.get(self.metrics_key) if isinstance(output, Mapping) else None
        if not isinstance(payload, Mapping):
            return {}
        found = {metric: known_number(payload.get(metric)) for metric in self.metrics}
        return {metric: float(number) for metric, number in found.items() if number is not None}


def _plain(value: Any) -> Any:
    """Return value in terms of JSON. What JSON has no word for is shown as text."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return known_number(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(item) for item in value), key=repr)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    return str(value)
