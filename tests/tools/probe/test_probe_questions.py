from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.errors import ProbeError
from tools.probe import KnowledgeProbe, ProbeQuestion, ReasoningProbe, load_probe_kind
from tools.probe.questions import load_reasoning_questions


def write(path: Path, *lines: Any) -> Path:
    text = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


REASONING = {"qid": "q1", "category": "maths", "question": "2 + 2?"}
KNOWLEDGE = {"question": "What is the half-life of carbon-14?", "ideal": "Approximately 5,730 years."}


def test_a_probe_set_is_read_with_its_optional_and_its_other_keys(tmp_path: Path) -> None:
    rich = {**REASONING, "qid": 7, "source": "a book", "license": "CC0", "level": 3, "tags": ["x"]}
    path = write(tmp_path / "p.jsonl", REASONING, "", rich)
    probe = ReasoningProbe.from_jsonl(path)
    assert len(probe) == 2
    assert probe.questions[0] == ProbeQuestion("q1", "maths", "2 + 2?")
    second = probe.questions[1]
    assert (second.qid, second.source, second.license) == ("7", "a book", "CC0")
    assert second.metadata == {"level": 3, "tags": ["x"]}
    assert second.to_dict() == {**rich, "qid": "7"}
    assert load_reasoning_questions(write(tmp_path / "again.jsonl", second.to_dict())) == (second,)


def test_line_separators_inside_a_text_do_not_end_a_line(tmp_path: Path) -> None:
    line = {**REASONING, "question": "one\u2028two\u0085three"}
    assert (
        ReasoningProbe.from_jsonl(write(tmp_path / "p.jsonl", line)).questions[0].question == line["question"]
    )


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "no lines"),
        (["{oops"], "line 1 is not JSON"),
        (["[1]"], r"line 1 is \[1\]; a JSON object"),
        (["[" * 100_000], "line 1 is not JSON"),
        ([REASONING, {**REASONING, "qid": "q2", "category": None}], "line 2: category is missing"),
        ([{**REASONING, "question": " "}], "line 1: question is"),
        ([{**REASONING, "qid": True}], "line 1: qid is true"),
        ([{**REASONING, "source": 3}], "line 1: source is 3"),
        ([{**REASONING, "question": "\\ud83d"}], None),
        (['{"qid": "q", "category": "c", "question": "\\ud83d"}'], "half a surrogate pair"),
        ([REASONING, REASONING], 'qid "q1" stands there 2 times'),
    ],
)
def test_a_bad_probe_set_is_refused_with_its_lines(
    tmp_path: Path, lines: list[Any], said: str | None
) -> None:
    path = write(tmp_path / "p.jsonl", *lines)
    if said is None:
        assert len(ReasoningProbe.from_jsonl(path)) == 1
        return
    with pytest.raises(ProbeError, match=said):
        ReasoningProbe.from_jsonl(path)


def test_every_bad_line_is_named_up_to_a_limit(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="and 30 more") as caught:
        ReasoningProbe.from_jsonl(write(tmp_path / "p.jsonl", *["nonsense"] * 50))
    assert "line 20 is" in str(caught.value)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="cannot be read"):
        ReasoningProbe.from_jsonl(tmp_path / "none.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProbeError, match="cannot be read"):
        KnowledgeProbe.from_jsonl(tmp_path / "b.jsonl")


def test_a_probe_asks_something_and_nothing_twice() -> None:
    with pytest.raises(ProbeError, match="at least one"):
        ReasoningProbe([])
    with pytest.raises(ProbeError, match="q1"):
        ReasoningProbe([ProbeQuestion("q1", "c", "a"), ProbeQuestion("q1", "c", "b")])


def test_a_probe_error_is_no_value_error() -> None:
    assert not issubclass(ProbeError, ValueError)


def test_the_kind_of_a_probe_set_is_told_by_its_keys(tmp_path: Path) -> None:
    assert load_probe_kind(write(tmp_path / "r.jsonl", {**REASONING, "ideal": "4"}, REASONING)) == "reasoning"
    assert load_probe_kind(write(tmp_path / "k.jsonl", KNOWLEDGE)) == "knowledge"
    with pytest.raises(ProbeError, match=r"two kinds, reasoning \(line 1\) and knowledge \(line 2\)"):
        load_probe_kind(write(tmp_path / "m.jsonl", REASONING, KNOWLEDGE))
    with pytest.raises(ProbeError, match=r'line 1 has the keys \["prompt"\]'):
        load_probe_kind(write(tmp_path / "n.jsonl", {"prompt": "x"}))
