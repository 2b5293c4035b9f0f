from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from agent.locks import Locks
from agent.records import IterationRecord
from agent.report.document import ReportFiles, write_report
from agent.report.phrases import points, span_points
from tests.bakeoff_sample import BASE, TRIES, Bakeoff, Try, build_bakeoff
from tools.evaluation.scores import ScoreRow, read_scores, write_scores
from tools.secret_scan import find_secrets

HOSTILE = (
    "</code></style></title><script>alert(1)</script><img src=x onerror='alert(2)'>\"&amp;\x00\u202e\udc80"
)
VOID = {"meta", "link", "br", "hr"}


class Page(HTMLParser):
    """A page as elements in order, which fails on the first that is not closed as it was opened."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[tuple[str, str]] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in VOID
        assert len({name for name, _ in attrs}) == len(attrs), f"{tag} has an attribute twice"
        self.open.append(tag)
        self.elements.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append((self.open[-1] if self.open else "", data))

    @property
    def text(self) -> str:
        return " ".join(data for tag, data in self.words if tag != "style")

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.elements if name == tag)


def report(made: Bakeoff, record: IterationRecord | None = None, base: float | None = 0.041) -> ReportFiles:
    return write_report(
        record or made.record,
        task=made.task,
        workspace=made.workspace,
        folder=made.folder,
        base_selection=base,
    )


def page(made: Bakeoff, record: IterationRecord | None = None) -> Page:
    return Page(report(made, record).html.read_text(encoding="utf-8"))


@pytest.fixture
def made(tmp_path: Path) -> Bakeoff:
    return build_bakeoff(tmp_path)


def test_the_sample_holds_a_verdict_of_every_kind(made: Bakeoff) -> None:
    assert [ruling.verdict for ruling in made.record.rulings] == ["keep", "discard", "inconclusive"]
    assert made.record.candidates[3].rejected


def test_the_page_is_well_formed_and_its_references_resolve(made: Bakeoff) -> None:
    found = page(made)
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [
        str(attributes["aria-labelledby"])
        for _, attributes in found.elements
        if "aria-labelledby" in attributes
    ]
    assert len(named) >= 10
    assert {part for name in named for part in name.split()} <= set(ids)
    pictures = [attributes for attributes in found.all("svg") if "aria-hidden" not in attributes]
    assert len(pictures) == 4
    assert all(attributes["role"] == "img" and attributes["aria-labelledby"] for attributes in pictures)
    assert all(attributes["scope"] in ("row", "col") for attributes in found.all("th"))


def test_the_decision_comes_before_everything_else(made: Bakeoff) -> None:
    source = report(made).html.read_text(encoding="utf-8")
    body = source[source.index("<body>") :]
    assert body.index('class="decision"') < min(body.index(tag) for tag in ("<table", "<svg", "<dl"))
    assert made.record.decision in Page(source).text


def test_the_page_needs_nothing_beside_it(made: Bakeoff) -> None:
    found = page(made)
    loaded = [
        value
        for _, attributes in found.elements
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "action", "srcset", "poster")
    ]
    assert loaded == ["data:,"]
    style = "".join(data for tag, data in found.words if tag == "style")
    assert "@import" not in style
    assert "url(" not in style
    assert not list(found.all("script"))


def test_numbers_on_the_page_are_those_of_the_rulings(made: Bakeoff) -> None:
    text = page(made).text
    for ruling in made.record.rulings:
        assert ruling.low is not None
        assert ruling.high is not None
        assert points(ruling.gain) in text
        assert span_points(ruling.low, ruling.high) in text
        assert ruling.reason in text
    for word in ("kept", "discarded", "inconclusive", "never trained", "untrained base 4.1%"):
        assert word in text
    assert str(made.record.candidates[3].rejected) in text


def test_a_change_is_shown_as_what_goes_and_what_comes(made: Bakeoff) -> None:
    found = page(made)
    assert ("del", "0.0001") in found.words
    assert ("ins", "0.001") in found.words
    assert [word for word in found.words if word == ("del", "−k_proj")]
    # The seed is a trial's and no change of a candidate.
    assert ("span", "seed") not in found.words


def test_hostile_texts_are_inert_wherever_they_stand(tmp_path: Path) -> None:
    hostile = Try("c1", BASE.replace(base_model=HOSTILE.replace("\udc80", "")), 0.9, hypothesis=HOSTILE)
    made = build_bakeoff(tmp_path, tries=(hostile,))
    folder = tmp_path / str(made.record.trials[-1].scores_dir)
    rows = [
        ScoreRow(row.item_id, row.seed, 0.0, HOSTILE, HOSTILE + "x", HOSTILE, f"{HOSTILE}:{HOSTILE}")
        for row in read_scores(folder / "dev.jsonl")
    ]
    write_scores(folder / "dev.jsonl", rows, redact=False)
    ruling = made.record.rulings[0]
    guards = tuple(guard.model_copy(update={"name": HOSTILE, "detail": HOSTILE}) for guard in ruling.guards)
    record = made.record.model_copy(
        update={
            "decision": HOSTILE,
            "hypothesis": HOSTILE,
            "planner": HOSTILE,
            "notes": (HOSTILE,),
            "rulings": (ruling.model_copy(update={"reason": HOSTILE, "guards": guards}),),
        }
    )
    found = page(made, record)
    clean = page(made)
    kinds = {tag for tag, _ in found.elements}
    assert not kinds & {"script", "img", "iframe", "object", "embed"}
    assert kinds <= {tag for tag, _ in clean.elements} | {"aside", "ul", "li", "details", "summary", "mark"}
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    shown = HOSTILE.replace("\x00", "\\u0000").replace("\u202e", "\\u202e").replace("\udc80", "\\udc80")
    assert found.text.count(shown) >= 10


def test_the_page_forbids_scripts_even_where_escaping_failed(made: Bakeoff) -> None:
    policy = next(
        a["content"] for a in page(made).all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert str(policy).startswith("default-src 'none';")
    assert "script-src" not in str(policy)


def test_no_text_of_a_judged_split_reaches_the_page(made: Bakeoff) -> None:
    for trial in made.record.trials:
        path = made.workspace.root / str(trial.scores_dir) / "selection.jsonl"
        rows = read_scores(path)
        telling = [
            ScoreRow(r.item_id, r.seed, r.score, "SEALED", "SEALED", "SEALED", "mismatch:SEALED")
            for r in rows
        ]
        write_scores(path, telling, redact=False)
    files_ = report(made)
    assert "SEALED" not in files_.html.read_text(encoding="utf-8")
    assert "selection-0" not in files_.html.read_text(encoding="utf-8")


def test_wrong_dev_rows_of_the_best_candidate_are_shown_with_their_difference(made: Bakeoff) -> None:
    found = page(made)
    wrong = {name: wrong_dev_rows(made, name) for name in ("incumbent", "c1")}
    mended = wrong["incumbent"].keys() - wrong["c1"].keys()
    assert len(wrong["c1"]) < len(wrong["incumbent"])
    assert "What c1 still gets wrong on dev" in found.text
    assert f"{len(wrong['c1'])} of 120 rows are wrong on some seed." in found.text
    assert f"{len(mended)} rows are mended" in found.text
    assert str(next(iter(wrong["c1"].values())).prompt) in found.text
    assert [data for tag, data in found.words if tag == "mark"]
    assert "lineage/i0003-c1-s17/dev.jsonl" in found.text


def wrong_dev_rows(made: Bakeoff, name: str) -> dict[str, ScoreRow]:
    folders = [made.workspace.root / str(trial.scores_dir) for trial in made.record.trials_of(name)]
    rows = [row for folder in folders for row in read_scores(folder / "dev.jsonl")]
    return {row.item_id: row for row in rows if row.score < 1}


def test_damaged_and_missing_files_are_told_of_and_cost_only_themselves(made: Bakeoff) -> None:
    root = made.workspace.root
    dirs = [root / str(trial.scores_dir) for trial in made.record.trials]
    (dirs[2] / "selection.jsonl").write_bytes(b'{"item_id": "selection-0000", "se')
    (dirs[2] / "dev.jsonl").unlink()
    metrics = root / made.record.trials[0].run_dir / "metrics.jsonl"
    metrics.write_bytes(
        metrics.read_bytes()[:-9] + b'\n[1]\n{"step": "x", "loss": 1}\n{"step": 3, "loss": NaN}\n'
    )
    found = page(made)
    assert "What could not be read" in found.text
    assert "the selection scores of i0003-c1-s17 are damaged" in found.text
    assert "the dev scores of i0003-c1-s17 are missing" in found.text
    assert str(root) not in found.text
    assert "c1 is kept" in found.text
    assert len([a for a in found.all("svg") if "aria-hidden" not in a]) == 4


def test_a_workspace_without_its_state_is_read_from_the_committed_lineage(
    made: Bakeoff, tmp_path: Path
) -> None:
    before = report(made).html.read_bytes()
    for trial in made.record.trials:
        folder = made.workspace.lineage_dir / trial.trial_id
        folder.mkdir(parents=True)
        for source in (made.workspace.root / str(trial.scores_dir)).iterdir():
            source.rename(folder / source.name)
        (made.workspace.root / trial.run_dir / "metrics.jsonl").rename(folder / "metrics.jsonl")
    assert report(made).html.read_bytes() == before


def test_equal_input_gives_equal_bytes_wherever_it_lies(tmp_path: Path) -> None:
    written = [report(build_bakeoff(tmp_path / name)) for name in ("here", "there")]
    pages = [files_.html.read_bytes() for files_ in written]
    pictures = [files_.png.read_bytes() for files_ in written if files_.png]
    assert pages[0] == pages[1]
    assert len(pictures) == 2
    assert pictures[0] == pictures[1]


def test_the_picture_is_a_png_of_a_readable_size(made: Bakeoff) -> None:
    png = report(made).png
    assert png is not None
    data = png.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    assert 1200 <= width <= 2400
    assert 600 <= height <= 2400


def test_without_matplotlib_there_is_the_page_and_a_word_on_what_to_install(
    made: Bakeoff, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "agent.report.picture", raising=False)
    with caplog.at_level(logging.WARNING):
        written = report(made)
    assert written.png is None
    assert written.html.is_file()
    assert "bakehouse[report]" in caplog.text


def test_an_incumbent_that_bears_a_candidates_name_is_not_taken_for_it(tmp_path: Path) -> None:
    made = build_bakeoff(tmp_path, tries=TRIES[:2])
    # In the iteration after its promotion the incumbent's trials still carry its old name.
    trials = tuple(
        trial.model_copy(update={"candidate_id": "c1", "parent_id": "i0002-incumbent-s17"})
        if trial.candidate_id == "incumbent"
        else trial
        for trial in made.record.trials
    )
    renamed = page(made, made.record.model_copy(update={"trials": trials}))
    assert renamed.text == page(made).text


def test_an_iteration_without_a_trained_candidate_is_told(tmp_path: Path) -> None:
    made = build_bakeoff(tmp_path, tries=TRIES[3:])
    found = page(made)
    assert "The incumbent stays: nothing could be trained" in found.text
    assert "What incumbent still gets wrong on dev" not in found.text
    assert "What the incumbent still gets wrong on dev" in found.text


def test_an_iteration_whose_incumbent_has_no_scores_is_told(tmp_path: Path) -> None:
    made = build_bakeoff(tmp_path, tries=())
    record = made.record.model_copy(update={"trials": ()})
    written = report(made, record, base=None)
    Page(written.html.read_text(encoding="utf-8"))
    assert written.png is not None


def test_a_wide_bakeoff_is_drawn_whole(tmp_path: Path) -> None:
    tries = [Try(f"c{n}", BASE.replace(lora_rank=n), 0.3 + n / 60) for n in range(1, 31)]
    made = build_bakeoff(tmp_path, tries=tries)
    found = page(made)
    names = [data for tag, data in found.words if tag == "text"]
    assert {f"c{n}" for n in range(1, 31)} <= set(names)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_text_colour_stands_out_from_what_is_behind_it(scheme: int) -> None:
    style = files("agent.report").joinpath("style.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6});", part)) for part in style.split("@media screen")[:2]
    )
    colours = (light, dark)[scheme]
    for text in ("ink", "soft"):
        for behind in ("paper", "card", "tint", "keep-tint", "none-tint"):
            assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)
    for kind in ("keep", "discard", "open", "none"):
        assert contrast(colours[kind], colours[f"{kind}-tint"]) >= 4.5, kind
    for number in range(6):
        assert contrast(colours[f"series-{number}"], colours["card"]) >= 3.0, number


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_digests_of_task_and_data_are_shown_where_they_are_known(made: Bakeoff) -> None:
    locks = Locks(task="t" * 64, splits={"train": "a" * 64}, scorer="s" * 64, system_prompt="p" * 64)
    written = write_report(
        made.record,
        task=made.task,
        workspace=made.workspace,
        folder=made.folder,
        base_selection=None,
        locks=locks,
    )
    words = Page(written.html.read_text(encoding="utf-8")).words
    assert ("code", locks.data_digest) in words
    assert ("code", locks.task) in words
    assert ("code", made.record.trials[0].train_recipe.digest) in words


def test_a_report_can_be_committed(made: Bakeoff) -> None:
    written = report(made)
    assert written.png is not None
    for path in (written.html, written.png):
        assert find_secrets(path.read_bytes()) == ()
        assert path.stat().st_size < 500_000
