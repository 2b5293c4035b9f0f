from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tools.errors import ProbeError
from tools.probe import (
    KnowledgeProbe,
    KnowledgeQuestion,
    KnowledgeReport,
    compare_knowledge,
    score_fact,
)
from tools.verdict import probe_guard

CARBON = KnowledgeQuestion("What is the half-life of carbon-14?", "Approximately 5,730 years.")
HIPAA = KnowledgeQuestion("What does HIPAA regulate?", "The privacy of health information (PHI).")
SUGAR = KnowledgeQuestion("What is C6H12O6 | commonly called?", "Glucose")
PROBE = KnowledgeProbe([CARBON, HIPAA, SUGAR])


def clock(second: int = 0) -> Any:
    return lambda: f"2026-11-20T04:49:{second:02d}Z"


@pytest.mark.parametrize(
    ("ideal", "answer", "score"),
    [
        ("Approximately 5,730 years.", "It is approximately 5730 YEARS, they say.", 1.0),
        ("Approximately 5,730 years.", "5,730 years", 0.8),
        ("Approximately 5,730 years.", "approximately 5,370 years", 0.0),
        ("Approximately 5,730 years.", "<think>approximately 5730 years</think>No idea.", 0.0),
        ("Approximately 5,730 years.", "<think>approximately 5730 years", 0.0),
        ("from 1914 to 1918", "in 1914 it began", pytest.approx(2 / 8 / 2)),
        ("The glucose", "a glucose", 1.0),
        ("glucose", "", 0.0),
        ("glucose", "fructose", 0.0),
        ("-", "-", 1.0),
        ("-", "+", 0.0),
        ("Straße", "STRASSE", 1.0),
        ("4.1", "41", 0.0),
        ("1,2,3", "1, 2, 3", 1.0),
    ],
)
def test_an_answer_is_scored_by_its_words(ideal: str, answer: str, score: float) -> None:
    assert score_fact(ideal, answer) == score


@given(st.text(max_size=40), st.text(max_size=80))
def test_a_score_is_between_0_and_1_and_1_for_the_ideal_itself(ideal: str, answer: str) -> None:
    assert 0.0 <= score_fact(ideal, answer) <= 1.0
    if "<think>" not in ideal:
        assert score_fact(ideal, ideal) == 1.0


def test_forges_own_probe_set_loads(tmp_path: Path) -> None:
    path = tmp_path / "probe.jsonl"
    lines = [{**item.to_dict(), "note": "more keys"} for item in (CARBON, HIPAA)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    probe = KnowledgeProbe.from_jsonl(path)
    assert probe.questions == (CARBON, HIPAA)
    assert probe.digest == KnowledgeProbe([CARBON, HIPAA]).digest
    path.write_text('{"question": "only"}\n', encoding="utf-8")
    with pytest.raises(ProbeError, match="line 1: ideal is missing"):
        KnowledgeProbe.from_jsonl(path)
    path.write_text(2 * (json.dumps(CARBON.to_dict()) + "\n"), encoding="utf-8")
    with pytest.raises(ProbeError, match="stands there 2 times"):
        KnowledgeProbe.from_jsonl(path)


def test_a_probe_asks_something_and_nothing_twice() -> None:
    with pytest.raises(ProbeError, match="at least one"):
        KnowledgeProbe([])
    with pytest.raises(ProbeError, match="more than once"):
        KnowledgeProbe([CARBON, CARBON])


def test_a_report_holds_every_answer_with_its_score() -> None:
    seen: list[int] = []
    report = PROBE.run(
        lambda item: item.ideal if item is CARBON else "no idea",
        tag="pre",
        model="org/m",
        on_progress=lambda i, _n, _row: seen.append(i),
        clock=clock(),
    )
    assert [row.score for row in report.rows] == [1.0, 0.0, 0.0]
    assert report.score == pytest.approx(1 / 3)
    assert (report.tag, report.model, report.scored_by, report.created) == (
        "pre",
        "org/m",
        "words",
        "2026-11-20T04:49:00Z",
    )
    assert report.digest == PROBE.digest
    assert seen == [1, 2, 3]


def test_a_judge_scores_instead_and_its_faults_are_no_scores() -> None:
    def judge(question: KnowledgeQuestion, answer: str) -> float:
        if question is HIPAA:
            raise RuntimeError("no network")
        return 0.75 if question is CARBON else 3.0

    report = PROBE.run(lambda _item: "x", tag="pre", judge=judge, judge_name="claude")
    assert [row.score for row in report.rows] == [0.75, None, None]
    assert (report.score, report.scored_by) == (0.75, "claude")
    assert report.rows[1].error == "RuntimeError: no network"
    assert "3.0" in str(report.rows[2].error)
    for broken in (float("nan"), "high", None, -0.5):
        with pytest.raises(ProbeError, match="none of 3 questions got a score"):
            PROBE.run(lambda _item: "x", tag="pre", judge=lambda _q, _a, broken=broken: broken)
    with pytest.raises(ProbeError, match="judge_name"):
        PROBE.run(lambda _item: "x", tag="pre", judge=judge, judge_name="words")


def test_one_failing_question_costs_itself_alone() -> None:
    def generator(item: KnowledgeQuestion) -> str:
        if item is HIPAA:
            raise RuntimeError("out of memory")
        return item.ideal

    report = PROBE.run(generator, tag="pre")
    assert (report.score, [row.error for row in report.failed]) == (1.0, ["RuntimeError: out of memory"])


def test_a_probe_that_was_cut_off_asks_only_what_is_missing_or_failed(tmp_path: Path) -> None:
    rows, asked = tmp_path / "rows.jsonl", []

    def generator(item: KnowledgeQuestion) -> str:
        asked.append(item)
        if item is HIPAA and len(asked) == 2:
            raise RuntimeError("out of memory")
        if item is SUGAR and len(asked) == 3:
            raise KeyboardInterrupt
        return item.ideal

    with pytest.raises(KeyboardInterrupt):
        PROBE.run(generator, tag="pre", resume_path=rows)
    report = PROBE.run(generator, tag="pre", resume_path=rows, clock=clock())
    assert asked == [CARBON, HIPAA, SUGAR, HIPAA, SUGAR]
    assert report == PROBE.run(lambda item: item.ideal, tag="pre", clock=clock())
    assert PROBE.run(generator, tag="pre", resume_path=rows, clock=clock()) == report
    assert len(asked) == 5

    other_ideal = KnowledgeProbe([CARBON, KnowledgeQuestion(HIPAA.question, "Nothing."), SUGAR])
    other_ideal.run(generator, tag="pre", resume_path=rows)
    assert [item.ideal for item in asked[5:]] == ["Nothing."]
    with pytest.raises(ProbeError, match="scored_by was 'words', is 'claude'"):
        PROBE.run(generator, tag="pre", judge=lambda _q, _a: 1.0, judge_name="claude", resume_path=rows)


def saved(folder: Path, tag: str, scores: dict[str, str], second: int = 0) -> KnowledgeReport:
    report = PROBE.run(lambda item: scores.get(item.question, "no idea"), tag=tag, clock=clock(second))
    report.save(folder)
    return report


def test_reports_are_kept_under_their_tag_and_the_newest_is_loaded(tmp_path: Path) -> None:
    first = saved(tmp_path, "pre", {}, 0)
    second = saved(tmp_path, "pre", {CARBON.question: CARBON.ideal}, 1)
    saved(tmp_path, "pre_more", {SUGAR.question: SUGAR.ideal}, 2)
    assert KnowledgeReport.load(tmp_path, "pre") == second
    assert KnowledgeReport.from_json(tmp_path / "probe_pre_20261120_044900.json") == first
    with pytest.raises(ProbeError, match="never replaced"):
        first.save(tmp_path)
    with pytest.raises(ProbeError, match="no report tagged 'post'"):
        KnowledgeReport.load(tmp_path, "post")
    with pytest.raises(ProbeError, match="a time such as"):
        KnowledgeReport("pre", (), created="yesterday").save(tmp_path)


@pytest.mark.parametrize("tag", ["", "../pre", "a/b", ".pre", "x" * 65, "pre\n", "pre post"])
def test_a_tag_is_a_plain_name(tag: str, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="tag is"):
        PROBE.run(lambda item: item.ideal, tag=tag)
    with pytest.raises(ProbeError, match="tag is"):
        KnowledgeReport.load(tmp_path, tag)


FORGE = {
    "tag": "pre",
    "timestamp": "20260521_101500",
    "model": "unsloth/functiongemma-270m-it",
    "adapter": None,
    "total": 2,
    "mean_score": 2.0,
    "max_score": 3,
    "pct_correct": 0.5,
    "elapsed_min": 1.2,
    "results": [
        {**CARBON.to_dict(), "model_answer": "5730 years", "score": 3, "judge_reasoning": "right"},
        {**HIPAA.to_dict(), "model_answer": "banks", "score": 1, "judge_reasoning": "wrong"},
    ],
}


def test_a_report_of_forge_loads_with_its_scores_out_of_one(tmp_path: Path) -> None:
    (tmp_path / "probe_pre_20260521_101500.json").write_text(json.dumps(FORGE), encoding="utf-8")
    report = KnowledgeReport.load(tmp_path, "pre")
    assert [row.score for row in report.rows] == [1.0, pytest.approx(1 / 3)]
    assert (report.scored_by, report.created) == ("judge", "2026-05-21T10:15:00Z")
    assert report.digest == KnowledgeProbe([CARBON, HIPAA]).digest


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"results": None}, "list results"),
        ({"results": [1]}, r"results\[0\] is 1"),
        ({"results": [{**CARBON.to_dict(), "model_answer": None, "score": 1}]}, "model_answer is None"),
        ({"results": [{**CARBON.to_dict(), "model_answer": "x", "score": 4}]}, "score is 4"),
        ({"results": [{**CARBON.to_dict(), "model_answer": "x", "score": "3"}]}, "score is '3'"),
        ({"max_score": 0}, "max_score is 0"),
        ({"tag": "a/b"}, "tag is"),
        ({"questions_digest": "0" * 64}, "changed after"),
    ],
)
def test_a_malformed_report_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(FORGE | change), encoding="utf-8")
    with pytest.raises(ProbeError, match=said):
        KnowledgeReport.from_json(path)


def test_the_delta_table_shows_what_was_learned(tmp_path: Path) -> None:
    pre = saved(tmp_path, "pre", {SUGAR.question: "Glucose"})
    post = saved(tmp_path, "post", {SUGAR.question: "Glucose", CARBON.question: "approximately 5730 years"})
    delta = compare_knowledge(pre, post)
    assert [row.delta for row in delta.questions] == [1.0, 0.0, 0.0]
    assert delta.delta == pytest.approx(1 / 3)
    assert delta.comparison is not None
    assert delta.comparison.low < delta.delta < delta.comparison.high
    low, high = delta.comparison.low, delta.comparison.high
    assert delta.table() == (
        "| question | pre | post | delta |\n"
        "|---|---|---|---|\n"
        "| What is the half-life of carbon-14? | 0.00 | 1.00 | +1.00 |\n"
        "| What does HIPAA regulate? | 0.00 | 0.00 | +0.00 |\n"
        "| What is C6H12O6 \\| commonly called? | 1.00 | 1.00 | +0.00 |\n"
        f"| **mean of 3** | 0.33 | 0.67 | +0.33 (95% interval {low:+.2f} to {high:+.2f}) |"
    )
    assert delta.all_pass
    assert probe_guard(delta, name="knowledge probe").passed
    forgotten = compare_knowledge(post, pre)
    assert not forgotten.all_pass
    assert not probe_guard(forgotten, name="knowledge probe").passed


def test_questions_cannot_change_between_two_reports() -> None:
    pre = PROBE.run(lambda item: item.ideal, tag="pre")
    for others in (
        [CARBON, HIPAA],
        [HIPAA, CARBON, SUGAR],
        [CARBON, HIPAA, KnowledgeQuestion(SUGAR.question, "Sugar")],
    ):
        post = KnowledgeProbe(others).run(lambda item: item.ideal, tag="post")
        with pytest.raises(ProbeError, match="different questions"):
            compare_knowledge(pre, post)


def test_scores_of_two_judges_are_not_compared() -> None:
    pre = PROBE.run(lambda item: item.ideal, tag="pre")
    post = PROBE.run(lambda item: item.ideal, tag="post", judge=lambda _q, _a: 1.0)
    with pytest.raises(ProbeError, match="'pre' was scored by words, 'post' by judge"):
        compare_knowledge(pre, post)


def test_a_question_without_a_score_is_in_no_mean_and_many_of_them_are_no_pass() -> None:
    def unless_sugar(item: KnowledgeQuestion) -> str:
        if item is SUGAR:
            raise RuntimeError("x")
        return item.ideal

    whole = PROBE.run(lambda item: item.ideal, tag="pre")
    part = PROBE.run(unless_sugar, tag="post")
    delta = compare_knowledge(whole, part)
    assert (delta.n_paired, delta.pre_score, delta.post_score, delta.all_pass) == (2, 1.0, 1.0, False)
    assert "| 1.00 | — | — |" in delta.table()
    assert compare_knowledge(part, whole).all_pass
    single = KnowledgeProbe([CARBON]).run(lambda item: item.ideal, tag="pre")
    assert compare_knowledge(single, single).comparison is None


def test_a_model_that_knew_nothing_has_nothing_to_forget_but_passes_nothing() -> None:
    empty = PROBE.run(lambda _item: "no idea", tag="pre")
    delta = compare_knowledge(empty, empty)
    assert (delta.all_pass, delta.nothing_to_lose) == (False, True)
    assert probe_guard(delta).passed
