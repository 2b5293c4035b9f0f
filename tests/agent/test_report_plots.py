from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from agent.report.axis import fit_axis
from agent.report.curve_plot import draw_losses, draw_mid_scores, thin_points
from agent.report.evidence import EvidenceReader
from agent.report.facts import Facts, gather_facts
from agent.report.interval_plot import draw_gains, draw_selection
from agent.report.phrases import percent, points, seconds, span_points
from tests.bakeoff_sample import TRIES, build_bakeoff
from tools.comparison import Scores, interval
from tools.evaluation.scores import read_scores

VALUES = st.lists(
    st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 6)), min_size=1, max_size=20
)


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    return facts_of(tmp_path_factory.mktemp("bakeoff"))


def facts_of(root: Path, base_selection: float | None = 0.041) -> Facts:
    made = build_bakeoff(root)
    return gather_facts(
        made.record,
        task=made.task,
        reader=EvidenceReader(made.workspace, made.workspace.lineage_dir),
        base_selection=base_selection,
        digests={},
        versions={},
    )


@given(VALUES)
def test_an_axis_holds_its_values_and_its_ticks_rise(values: list[float]) -> None:
    axis = fit_axis(values, start=10, end=110)
    assert axis.low <= min(values)
    assert axis.high >= max(values)
    assert all(10 <= axis.at(value) <= 110 for value in values)
    assert list(axis.ticks) == sorted(set(axis.ticks))
    assert 1 <= len(axis.ticks) <= 9
    assert all(10 - 1e-6 <= axis.at(tick) <= 110 + 1e-6 for tick in axis.ticks)


@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=20))
def test_an_axis_over_many_sizes_keeps_order_and_has_ticks(values: list[float]) -> None:
    axis = fit_axis(values, start=100, end=0, may_be_log=True)
    places = [axis.at(value) for value in sorted(values)]
    assert places == sorted(places, reverse=True)
    assert axis.ticks


def test_an_axis_leaves_no_room_beyond_its_bounds() -> None:
    axis = fit_axis([0.0, 1.0], start=0, end=1, within=(0.0, 1.0))
    assert (axis.low, axis.high) == (0.0, 1.0)
    assert axis.ticks == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])


def test_losses_far_apart_get_a_logarithmic_axis_and_scores_never_do() -> None:
    assert fit_axis([0.01, 3.0], start=0, end=1, may_be_log=True).is_log
    assert not fit_axis([0.5, 3.0], start=0, end=1, may_be_log=True).is_log
    assert not fit_axis([0.0, 3.0], start=0, end=1, may_be_log=True).is_log
    assert not fit_axis([0.01, 3.0], start=0, end=1).is_log


def test_the_selection_of_every_recipe_is_drawn_where_its_interval_lies(facts: Facts) -> None:
    drawing = str(draw_selection(facts))
    shown = [one for one in facts.entrants if one.evidence.selection]
    bars = re.findall(r'<line x1="([\d.]+)" x2="([\d.]+)" y1="[\d.]+" y2="[\d.]+" class="whisker"/>', drawing)
    assert len(bars) == len(shown) == 4
    widths = [float(high) - float(low) for low, high in bars]
    spans = [
        one.evidence.selection.high - one.evidence.selection.low for one in shown if one.evidence.selection
    ]
    # One scale for all: every bar is as long as its interval is wide.
    scale = [width / span for width, span in zip(widths, spans, strict=True)]
    assert scale == pytest.approx([scale[0]] * 4, rel=1e-3)
    assert 'class="reference base"' in drawing
    assert 'class="reference incumbent"' in drawing


def test_the_intervals_are_those_of_all_seeds_together(facts: Facts, tmp_path: Path) -> None:
    made = build_bakeoff(tmp_path)
    folders = [tmp_path / str(trial.scores_dir) for trial in made.record.trials_of("c1")]
    rows = [row for folder in folders for row in read_scores(folder / "selection.jsonl")]
    found = next(one for one in facts.candidates if one.name == "c1").evidence.selection
    assert found == interval(Scores.from_rows(rows), made.task.level)
    assert found is not None
    assert found.n_seeds == 2


def test_without_a_base_score_there_is_no_base_line(tmp_path: Path) -> None:
    assert "reference base" not in str(draw_selection(facts_of(tmp_path, base_selection=None)))


def test_the_part_where_a_candidate_is_kept_begins_at_the_minimum_gain(facts: Facts) -> None:
    drawing = str(draw_gains(facts))
    zone = re.search(r'<rect x="([\d.]+)" y="\d+" width="([\d.]+)"[^>]*class="zone"/>', drawing)
    minimum = re.search(r'<line x1="([\d.]+)"[^>]*class="reference minimum"/>', drawing)
    assert zone is not None
    assert minimum is not None
    assert zone[1] == minimum[1]
    kept = re.search(r'class="bar keep">|<g class="bar keep">', drawing)
    assert kept is not None


def test_each_verdict_has_a_shape_of_its_own(facts: Facts) -> None:
    drawing = str(draw_gains(facts)) + str(draw_selection(facts))
    shapes = {}
    for bar in re.findall(r"<g class=\"bar .*?</g>|<g[^>]*class=\"bar .*?</g>", drawing):
        verdict = re.search(r'class="bar (\w+)"', bar)
        marker = re.search(r'<(\w+)[^>]*class="(marker[ \w]*)"', bar)
        assert verdict is not None
        assert marker is not None
        shapes[verdict[1]] = marker.groups()
    assert set(shapes) == {"keep", "discard", "inconclusive", "incumbent"}
    assert len(set(shapes.values())) == 4


def test_every_trial_has_its_curve_and_every_recipe_its_name(facts: Facts) -> None:
    for drawing in (str(draw_losses(facts)), str(draw_mid_scores(facts))):
        assert drawing.count("<polyline") == 6
        assert len(re.findall(r'class="end-label', drawing)) == 4
        assert drawing.count("further-seed") == 2


def test_names_at_the_ends_of_curves_do_not_lie_on_each_other(facts: Facts) -> None:
    places = [
        float(y)
        for y in re.findall(r'<text x="[\d.]+" y="([\d.]+)" class="end-label', str(draw_losses(facts)))
    ]
    assert len(places) == 4
    gaps = [after - before for before, after in zip(sorted(places), sorted(places)[1:], strict=False)]
    assert min(gaps) >= 14.9


def test_thinning_keeps_few_points_the_ends_and_the_mean() -> None:
    steps = [(step, float(step)) for step in range(1, 1001)]
    thin = thin_points(steps, most=50)
    assert len(thin) == 50
    assert thin[0][0] <= 20
    assert thin[-1][0] > 980
    assert sum(value for _, value in thin) / 50 == pytest.approx(500.5)
    assert thin_points(steps[:50], most=50) == tuple(steps[:50])


def test_numbers_are_said_as_people_say_them() -> None:
    assert (percent(0.4125), percent(None), percent(0.0)) == ("41.2%", "–", "0.0%")
    assert (points(0.042), points(-0.011), points(-0.0001), points(None)) == ("+4.2", "−1.1", "0.0", "–")
    assert span_points(-0.01, 0.094) == "−1.0 to +9.4"
    assert (seconds(8.44), seconds(59.6), seconds(725), seconds(11220)) == (
        "8.4 s",
        "1 min 00 s",
        "12 min 05 s",
        "3 h 07 min",
    )


def test_the_kept_candidate_comes_first_and_the_refused_last(facts: Facts) -> None:
    assert [one.name for one in facts.entrants] == ["incumbent", "c1", "c3", "c2", "c4"]
    assert len(facts.candidates) == len(TRIES)
