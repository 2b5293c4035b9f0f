from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tools.errors import ProbeError
from tools.probe import ProbeReport, ProbeRow, ProbeSummary, summarize_rows

GOLDEN = Path(__file__).parent.parent / "golden" / "probe"


def row(qid: str, n_tokens: int | None = 100, *, category: str = "c", **changes: Any) -> ProbeRow:
    has_think = n_tokens is not None
    chain = "x" * 4 * (n_tokens or 0)
    response = f"<think>{chain}</think>y" if has_think else "y"
    return dataclasses.replace(ProbeRow(qid, category, response, has_think, n_tokens, chain), **changes)


def report(*rows: ProbeRow, budget: int = 1024, **changes: Any) -> ProbeReport:
    return ProbeReport(model="m", rows=rows, max_new_tokens=budget, **changes)


def test_the_documented_construction_gives_the_documented_aggregates() -> None:
    documented = ProbeReport(
        model="m",
        rows=[
            ProbeRow(
                qid="q1",
                category="c",
                response="<think>x</think>y",
                has_think=True,
                think_n_tok=200,
                think_text="x",
            )
        ],
        max_new_tokens=1024,
    )
    assert documented.overall == ProbeSummary(think_presence_rate=1.0, think_token_length=200.0, n=1)
    assert documented.by_category == {"c": documented.overall}
    assert (documented.temperature, documented.lora_path, documented.step) == (0.6, None, None)
    assert (documented.wall_seconds, documented.excluded_qids, documented.n) == (0.0, (), 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        documented.model = "other"  # type: ignore[misc]


def test_presence_is_over_all_rows_and_length_over_those_with_a_chain() -> None:
    rows = [row("a", 100), row("b", 0), row("c", None)]
    assert summarize_rows(rows) == ProbeSummary(2 / 3, 50.0, 3)
    assert summarize_rows([]) == ProbeSummary(0.0, 0.0, 0)


def test_a_failed_row_is_in_no_aggregate() -> None:
    failed = row("b", None, category="other", error="RuntimeError: out of memory")
    one = report(row("a"), failed)
    assert one.overall == ProbeSummary(1.0, 100.0, 1)
    assert list(one.by_category) == ["c"]
    assert (one.n, one.failed) == (2, (failed,))


def test_categories_keep_the_order_of_the_rows() -> None:
    assert list(report(row("1", category="z"), row("2", category="a")).by_category) == ["z", "a"]


def test_a_budget_drops_longer_chains_and_composes() -> None:
    whole = report(row("a", 900), row("b", 500), row("c", 100), row("d", None), budget=2048)
    once = whole.with_budget(800)
    assert ([r.qid for r in once.rows], once.max_new_tokens, once.excluded_qids) == (list("bcd"), 800, ("a",))
    twice = once.with_budget(100)
    assert ([r.qid for r in twice.rows], twice.excluded_qids) == (list("cd"), ("a", "b"))
    assert whole.with_budget(9999).max_new_tokens == 2048
    assert whole.n == 4


@pytest.mark.parametrize("budget", [0, -1, 1.5, True, float("nan")])
def test_a_budget_is_a_whole_number_above_0(budget: Any) -> None:
    with pytest.raises(ProbeError, match="above 0"):
        report(row("a"), budget=budget)
    with pytest.raises(ProbeError, match="cap"):
        report(row("a")).with_budget(budget)


def test_a_report_survives_the_disk(tmp_path: Path) -> None:
    written = report(
        row("a", category="é"),
        row("f", None, error="ChatError: no"),
        row("b", 5, truncated=True, wall_seconds=1.25),
        lora_path="/runs/x",
        step=200,
        wall_seconds=3.5,
        excluded_qids=["old"],
        counted_by="tokenizer of m",
        seed=3,
    )
    path = written.to_json(tmp_path / "deep" / "r.json")
    assert ProbeReport.from_json(path) == written


@pytest.mark.parametrize("name", ["baseline", "candidate"])
def test_files_of_fieldkit_load_and_ours_have_the_same_keys_and_values(name: str, tmp_path: Path) -> None:
    path = GOLDEN / f"{name}.json"
    theirs = json.loads(path.read_text(encoding="utf-8"))
    loaded = ProbeReport.from_json(path)
    ours = loaded.to_dict()
    for response in ours["raw_responses"]:
        del response["truncated"]
    assert ours == theirs
    assert ProbeReport.from_json(loaded.to_json(tmp_path / "r.json")) == loaded
    cut = [r.qid for r in loaded.rows if "<think>so then" in r.response]
    assert [r.qid for r in loaded.truncated] == cut
    assert bool(cut) == (name == "candidate")


def test_only_the_rows_of_a_file_count() -> None:
    plain = report(row("a", 40)).to_dict()
    plain["overall"] = {"think_presence_rate": 0.0, "think_quality_score": None}
    plain["by_category"] = "nonsense"
    plain["raw_responses"][0] |= {"think_quality_score": 4.5}
    assert ProbeReport.from_dict(plain).overall == ProbeSummary(1.0, 40.0, 1)


def test_a_reader_that_knows_no_failed_rows_aggregates_the_others_alone() -> None:
    plain = report(row("a"), row("f", None, error="E: x")).to_dict()
    assert (plain["n_probe"], [r["qid"] for r in plain["raw_responses"]]) == (1, ["a"])
    assert [r["qid"] for r in plain["failed_responses"]] == ["f"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"raw_responses": None}, "raw_responses"),
        ({"raw_responses": [3]}, r"raw_responses\[0\] is 3"),
        (
            {"raw_responses": [{"qid": "a"}]},
            r"raw_responses\[0\] lacks \['category', 'response', 'has_think'\]",
        ),
        ({"raw_responses": [{**row("a").__dict__, "has_think": "false"}]}, "has_think is 'false'"),
        ({"raw_responses": [{**row("a").__dict__, "think_n_tok": float("nan")}]}, "think_n_tok is nan"),
        ({"raw_responses": [{**row("a").__dict__, "think_n_tok": -1}]}, "think_n_tok is -1"),
        ({"raw_responses": [{**row("a").__dict__, "response": None}]}, "response is None"),
        ({"max_new_tokens": "many"}, "max_new_tokens is 'many'"),
        ({"max_new_tokens": 10.5}, "whole number"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"excluded_qids": "q1"}, "excluded_qids is 'q1'"),
        ({"failed_responses": [{**row("a").__dict__, "position": "first"}]}, "position"),
    ],
)
def test_a_malformed_report_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ProbeError, match=said):
        ProbeReport.from_dict(report(row("a")).to_dict() | change)


def test_a_missing_or_torn_file_is_refused_by_name(tmp_path: Path) -> None:
    for content in (None, "", "{torn", "[]", "\udcff"):
        path = tmp_path / "r.json"
        if content is not None:
            path.write_text(content, encoding="utf-8", errors="surrogateescape")
        with pytest.raises(ProbeError, match=r"r\.json"):
            ProbeReport.from_json(path)


def test_a_chain_without_a_count_is_measured_by_its_characters() -> None:
    plain = report(row("a", 10)).to_dict()
    plain["raw_responses"][0]["think_n_tok"] = None
    assert ProbeReport.from_dict(plain).overall.think_token_length == 10.0
    assert report(row("a", 10, think_n_tok=None, has_think=True)).overall.think_token_length == 10.0
