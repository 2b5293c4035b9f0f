"""Agent runs; the expected numbers are those that fieldkit 0.34.1 gives for the same record."""

from __future__ import annotations

import functools
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest

from tools.evaluation import AgentRun, TurnDetail, summarize_agent_runs

RECORD: dict[str, Any] = {
    "input_data": {"arxiv_id": "2401.1"},
    "inference_results": [
        {
            "status": "finished",
            "total_time": 12.345,
            "turn_details": [
                {
                    "turn": 1,
                    "action": "tool",
                    "duration": 1.234,
                    "input_tokens": 10,
                    "output_tokens": 5,
                    "papers_retrieved": 3,
                },
                {"action": "error", "duration_s": 2.0},
                {"turn": 3, "action": "synthesis", "duration": 0.5, "input_tokens": 7},
            ],
            "final_candidates": ["p1"],
        }
    ],
}


def test_a_record_of_autoresearchbench_is_read() -> None:
    run = AgentRun.from_record(RECORD)
    assert (run.question_id, run.status, run.wall_seconds) == ("2401.1", "finished", 12.345)
    assert (run.n_turns, run.n_candidates, run.tool_calls(), run.tool_format_errors()) == (3, 1, 1, 1)
    assert (run.total_input_tokens(), run.total_output_tokens(), run.succeeded()) == (17, 5, True)
    assert run.turns[0] == TurnDetail(1, "tool", 1.234, 10, 5, {"papers_retrieved": 3})
    assert run.turns[1] == TurnDetail(2, "error", 2.0)
    assert run.raw is RECORD


def test_another_layout_is_read_by_its_paths() -> None:
    run = AgentRun.from_record(
        {"task_id": 7, "result": {"status": "stopped", "trace": [{"action": "tool"}], "wall": 3}},
        question_id_field="task_id",
        question_id_path=(),
        inference_path=("result",),
        turns_field="trace",
        wall_field="wall",
    )
    assert (run.question_id, run.n_turns, run.wall_seconds, run.succeeded()) == ("7", 1, 3.0, False)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"inference_results": []},
        {"inference_results": [None]},
        {"inference_results": {"0": {}}},
        {"inference_results": [{"total_time": "long", "turn_details": "x", "final_candidates": "ab"}]},
        {"inference_results": [{"total_time": math.nan, "turn_details": {"a": 1}}]},
    ],
)
def test_what_a_record_lacks_is_unknown_and_not_zero(record: dict[str, Any]) -> None:
    run = AgentRun.from_record(record)
    assert (run.question_id, run.status, run.wall_seconds, run.n_turns, run.n_candidates) == (
        "",
        "",
        None,
        0,
        0,
    )
    assert not run.succeeded()


def test_turns_without_numbers_have_none() -> None:
    record = {"inference_results": [{"turn_details": [{"turn": "x", "duration": "y"}, "torn", {"turn": 0}]}]}
    run = AgentRun.from_record(record)
    assert run.turns == [TurnDetail(1, "", None), TurnDetail(2, "", None), TurnDetail(0, "", None)]
    assert run.total_input_tokens() is None
    assert AgentRun.from_record({}).total_input_tokens() == 0


def test_a_turn_of_no_time_took_no_time() -> None:
    assert TurnDetail.from_record({"duration": 0, "duration_s": 9.0}, position=1).duration_s == 0.0


def test_a_run_comes_back_from_its_dict() -> None:
    run = AgentRun.from_record(RECORD)
    value = json.loads(json.dumps(run.to_dict(include_raw=True)))
    assert AgentRun.from_dict(value) == run
    assert AgentRun.from_dict(value).to_dict(include_raw=True) == value
    assert "raw" not in run.to_dict()
    assert value["turns"][0] == {
        "turn": 1,
        "action": "tool",
        "duration_s": 1.234,
        "input_tokens": 10,
        "output_tokens": 5,
        "extras": {"papers_retrieved": 3},
    }


def test_a_file_is_read_and_its_bad_lines_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(f'{json.dumps(RECORD)}\n\n[1]\n{{"torn": \n{json.dumps({})}', encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        runs = AgentRun.from_jsonl(path)
    assert [run.question_id for run in runs] == ["2401.1", ""]
    assert "2 lines" in caplog.text
    parser = functools.partial(AgentRun.from_record, status_field="none")
    assert [run.status for run in AgentRun.from_jsonl(path, parser=parser)] == ["", ""]
    with pytest.raises(FileNotFoundError):
        AgentRun.from_jsonl(tmp_path / "none.jsonl")


def test_a_subclass_may_mean_something_else_by_success() -> None:
    class Lenient(AgentRun):
        def succeeded(self) -> bool:
            return self.status == ""

    assert summarize_agent_runs([Lenient.from_record({})])["n_succeeded"] == 1


def test_runs_are_summed_up_unrounded() -> None:
    unknown = AgentRun.from_record({})
    summary = summarize_agent_runs((run for run in [AgentRun.from_record(RECORD), unknown]), label="x")
    assert list(summary) == [
        "label",
        "n_questions",
        "n_succeeded",
        "status_counts",
        "wall_seconds",
        "turns",
        "candidates",
        "tool_calls",
        "tool_format_errors",
    ]
    assert (summary["label"], summary["n_questions"], summary["n_succeeded"]) == ("x", 2, 1)
    assert summary["status_counts"] == {"": 1, "finished": 1}
    assert summary["wall_seconds"] == {"n": 1, "mean": 12.345, "median": 12.345, "min": 12.345, "max": 12.345}
    assert summary["turns"]["median"] == 1.5
    assert json.loads(json.dumps(summary)) == summary
    assert summarize_agent_runs([]) == {"label": "", "n_questions": 0, "status_counts": {}}
