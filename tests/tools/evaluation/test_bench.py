"""Benches, and the summary of a series of numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools.errors import EvaluationError
from tools.evaluation import Bench, BenchCall, summarize_metric


def ticking(*steps: float) -> Callable[[], float]:
    """Return a clock that moves on by one of steps at every look."""
    times = [sum(steps[:n]) for n in range(len(steps) + 1)]
    return iter(times).__next__


def test_a_summary_is_right_and_not_rounded() -> None:
    assert summarize_metric([3, 1, None, 2, 4]) == {"n": 4, "mean": 2.5, "median": 2.5, "min": 1, "max": 4}
    assert summarize_metric([1, 2, 4])["mean"] == 7 / 3
    assert summarize_metric(iter([5.0]))["median"] == 5.0


def test_what_is_unknown_is_none_and_never_zero() -> None:
    nothing = {"n": 0, "mean": None, "median": None, "min": None, "max": None}
    assert summarize_metric([]) == nothing
    assert summarize_metric([None, math.nan, math.inf]) == nothing
    assert summarize_metric([math.nan, 2.0, True, "9", 10**400]) == summarize_metric([2.0])  # type: ignore[list-item]


def test_calls_are_timed_and_their_numbers_summed_up() -> None:
    bench = Bench("doubler", metrics=["tokens"], clock=ticking(5, 0.010, 1, 5, 0.020, 1, 5, 0.040))
    bench.run(lambda x: {"tokens": x, "text": "no"}, [1, 2, 4], tag_fn=lambda x: {"odd": x % 2 == 1})
    summary = bench.summary()
    assert summary["n"] == summary["n_success"] == 3
    assert summary["tokens"] == {"n": 3, "mean": 7 / 3, "median": 2.0, "min": 1.0, "max": 4.0}
    assert summary["latency_ms"]["median"] == pytest.approx(20.0)
    assert bench.calls[0].tags == {"odd": True}
    assert "wall_seconds" not in summary
    # The cells of fieldkit's own report of the same numbers, with as many digits in each.
    assert bench.report().splitlines()[-1] == "| tokens | 2.33 | 2.00 | 1.00 | 4.00 |"


def test_metrics_may_lie_under_a_key() -> None:
    bench = Bench("rag", ["embed", "total"], "timings_ms")
    bench.run(lambda _: {"timings_ms": {"embed": 5, "total": True}, "embed": 9}, ["q"])
    bench.run(lambda _: {"timings_ms": None}, ["q"])
    bench.run(lambda _: "text", ["q"])
    assert [call.metrics for call in bench.calls] == [{"embed": 5.0}, {}, {}]
    assert bench.summary()["total"]["n"] == 0


def test_a_call_that_raises_is_recorded_and_the_sweep_goes_on() -> None:
    bench = Bench("inverse").run(lambda x: 1 / x, [1, 0, 2])
    assert [call.success for call in bench.calls] == [True, False, True]
    assert bench.calls[1].error == "ZeroDivisionError: division by zero"
    assert (bench.summary()["n_failure"], bench.summary()["latency_ms"]["n"]) == (1, 2)
    assert "- success: 2 / 3, failures: 1" in bench.report()


def test_a_tag_function_that_raises_costs_its_call_alone() -> None:
    bench = Bench("inverse").run(lambda x: x, [1, 0], tag_fn=lambda x: {"inverse": 1 / x})
    assert [call.success for call in bench.calls] == [True, False]


def test_the_first_error_ends_the_sweep_on_request() -> None:
    bench = Bench("inverse")
    with pytest.raises(ZeroDivisionError):
        bench.run(lambda x: 1 / x, [1, 0, 2], on_error="raise")
    assert len(bench.calls) == 1
    with pytest.raises(EvaluationError, match="'ignore'"):
        bench.run(lambda x: x, [1], on_error="ignore")  # type: ignore[arg-type]


def test_an_interrupt_is_no_result() -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    bench = Bench("stop")
    with pytest.raises(KeyboardInterrupt):
        bench.run(interrupt, [1, 2])
    assert bench.calls == []


def test_wall_time_shows_inside_the_block_and_adds_up_over_blocks() -> None:
    bench = Bench("wall", clock=ticking(2, 1, 4))
    with bench:
        bench.record(latency_ms=1.0)
        assert bench.summary()["wall_seconds"] == 2.0
    assert bench.wall_seconds == 3.0
    bench.clock = ticking(0.5)
    with bench:
        pass
    assert bench.wall_seconds == 3.5
    assert "- wall: 3.500s" in bench.report()


def test_a_report_without_calls_has_dashes() -> None:
    assert Bench("none", ["tokens"]).report().splitlines()[-1] == "| tokens | — | — | — | — |"
    assert Bench("none").summary() == {"name": "none", "n": 0}


def test_a_text_is_not_a_list_of_metrics_and_reserved_names_are_refused() -> None:
    with pytest.raises(EvaluationError, match="give a list"):
        Bench("x", "embed")
    with pytest.raises(EvaluationError, match="latency_ms"):
        Bench("x", ["latency_ms"])


@dataclass
class Question:
    text: str
    kinds: frozenset[str]


def test_a_dump_is_json_and_comes_back(tmp_path: Path) -> None:
    bench = Bench("d", ["tokens"])
    bench.record(
        input=Question("why\ud800", frozenset({"b", "a"})), output=object(), latency_ms=1.25, tokens=3
    )
    bench.record(input={1: math.nan}, latency_ms=2.0, tokens=math.nan, tags={"path": Path("x")})
    path = bench.dump(tmp_path / "new" / "bench.json")
    value = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert set(value) == {"summary", "calls"}
    assert "output" not in value["calls"][0]
    assert value["calls"][0]["input"] == {"text": "why\ud800", "kinds": ["a", "b"]}
    assert value["calls"][1]["input"] == {"1": None}
    assert value["summary"]["tokens"] == {"n": 1, "mean": 3.0, "median": 3, "min": 3, "max": 3}
    assert bench.to_dict(include_outputs=True)["calls"][1]["output"] is None

    again = Bench.load(path)
    assert again.to_dict() == value
    assert [call.latency_ms for call in again.calls] == [1.25, 2.0]


def test_a_bench_of_fieldkit_loads(tmp_path: Path) -> None:
    path = tmp_path / "benchmark.json"
    call = {"input": 1, "latency_ms": 0.5, "success": True, "error": None, "metrics": {"t": 1.0}, "tags": {}}
    numbers = {"n": 1, "mean": 1.0, "median": 1.0, "min": 1.0, "max": 1.0}
    summary = {"name": "d", "n": 1, "n_success": 1, "n_failure": 0, "latency_ms": numbers, "t": numbers}
    path.write_text(json.dumps({"summary": summary, "calls": [call]}), encoding="utf-8")
    bench = Bench.load(path)
    assert (bench.name, bench.metrics, bench.calls) == (
        "d",
        ["t"],
        [BenchCall(1, None, 0.5, metrics={"t": 1.0})],
    )
    assert bench.summary()["t"]["mean"] == 1.0


@pytest.mark.parametrize("text", ["", "[]", '{"summary": {}}', '{"summary": {}, "calls": [{"x": 1}]}'])
def test_a_file_that_is_no_bench_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(text, encoding="utf-8")
    with pytest.raises(EvaluationError, match="holds no bench"):
        Bench.load(tmp_path / "b.json")
