"""Freshness: age to the day, and what has changed since an entry was measured."""

from __future__ import annotations

import dataclasses
from datetime import date, timedelta
from pathlib import Path

import pytest

from tools.decisions import DecideEntry, DecideFinding, Provenance, write_entry
from tools.errors import DecideError
from tools.freshness import DEFAULT_FRESHNESS_DAYS, Environment, refresh, staleness

TODAY = date(2026, 11, 20)
ENTRY = DecideEntry(
    slug="a",
    lifecycle="active",
    created=TODAY,
    question="recipe",
    context={"task": "drone-router"},
    findings=(DecideFinding("accuracy", "c1", "measured"),),
    provenance=Provenance(
        base_model="smol",
        base_model_digest="d1",
        driver="570",
        library_versions={"torch": "2.13.0", "peft": "0.21"},
    ),
)


def aged(days: int, **changes: object) -> DecideEntry:
    return dataclasses.replace(ENTRY, created=TODAY - timedelta(days=days), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("days", "stale"), [(0, False), (179, False), (180, False), (181, True)])
def test_an_entry_of_180_days_is_fresh_and_one_of_181_is_stale(
    tmp_path: Path, days: int, stale: bool
) -> None:
    write_entry(aged(days), tmp_path)
    (report,) = refresh(dirs=[tmp_path], today=TODAY)
    assert (report.age_days, report.stale, bool(report.reasons)) == (days, stale, stale)
    assert DEFAULT_FRESHNESS_DAYS == 180


def test_an_entry_dated_ahead_is_zero_days_old() -> None:
    assert aged(-3).age_days(today=TODAY) == 0
    assert staleness(aged(-3), today=TODAY, freshness_days=0) == ()


def test_the_age_counts_from_the_local_day_when_none_is_given(tmp_path: Path) -> None:
    write_entry(dataclasses.replace(ENTRY, created=date(2020, 1, 1)), tmp_path)
    (report,) = refresh(dirs=[tmp_path])
    assert report.age_days >= (date(2025, 1, 1) - date(2020, 1, 1)).days
    assert report.stale


def test_reports_come_oldest_first_over_every_lifecycle_unless_asked(tmp_path: Path) -> None:
    for days, lifecycle in ((1, "active"), (300, "superseded"), (200, "deprecated")):
        write_entry(aged(days, slug=lifecycle, lifecycle=lifecycle), tmp_path)
    reports = refresh(dirs=[tmp_path], today=TODAY)
    assert [report.entry.slug for report in reports] == ["superseded", "deprecated", "active"]
    assert [report.stale for report in reports] == [True, True, False]
    (only,) = refresh(dirs=[tmp_path], today=TODAY, include_lifecycle="active")
    assert only.entry.slug == "active"


def test_a_limit_of_no_days_makes_yesterday_stale_and_a_negative_one_is_refused(tmp_path: Path) -> None:
    write_entry(aged(1), tmp_path)
    assert refresh(dirs=[tmp_path], today=TODAY, freshness_days=0)[0].stale
    for dirs in ([tmp_path], []):
        with pytest.raises(DecideError, match="freshness_days is -1"):
            refresh(dirs=dirs, today=TODAY, freshness_days=-1)


@pytest.mark.parametrize(
    ("environment", "reasons"),
    [
        (Environment(), ()),
        (Environment("smol", "d1", "570", {"torch": "2.13.0", "peft": "0.21", "other": "1"}), ()),
        (Environment(base_model="big"), ("the base model was smol, is now big",)),
        (Environment("smol", "d2"), ("the base model's digest was d1, is now d2",)),
        (Environment("big", "d2"), ("the base model was smol, is now big",)),
        (Environment(driver="580"), ("the driver was 570, is now 580",)),
        (
            Environment(library_versions={"torch": "2.14.0", "peft": "0.22"}),
            ("peft was 0.21, is now 0.22", "torch was 2.13.0, is now 2.14.0"),
        ),
        (Environment(library_versions={"torch": "2.13.0+cpu", "peft": "0.21+a"}), ()),
    ],
    ids=["unknown", "same", "model", "model-content", "other-model", "driver", "libraries", "build"],
)
def test_a_young_entry_is_stale_when_what_it_was_measured_on_changed(
    tmp_path: Path, environment: Environment, reasons: tuple[str, ...]
) -> None:
    assert staleness(ENTRY, today=TODAY, environment=environment) == reasons
    write_entry(ENTRY, tmp_path)
    (report,) = refresh(dirs=[tmp_path], today=TODAY, environment=environment)
    assert (report.stale, report.reasons) == (bool(reasons), reasons)


def test_what_an_entry_does_not_say_is_no_reason_but_its_context_may_say_the_model() -> None:
    bare = dataclasses.replace(ENTRY, provenance=None)
    now = Environment("big", "d2", "580", {"torch": "3.0"})
    assert staleness(bare, today=TODAY, environment=now) == ()
    said = dataclasses.replace(bare, context={"base_model": "smol"})
    assert staleness(said, today=TODAY, environment=now) == ("the base model was smol, is now big",)


def test_another_build_of_a_library_counts_where_both_name_one() -> None:
    known = dataclasses.replace(ENTRY, provenance=Provenance(library_versions={"torch": "2.13.0+cpu"}))
    for now, reasons in (("2.13.0+cu128", 1), ("2.13.0+cpu", 0), ("2.13.0", 0), ("2.13.1", 1)):
        found = staleness(known, today=TODAY, environment=Environment(library_versions={"torch": now}))
        assert len(found) == reasons, now


def test_age_and_change_are_both_given() -> None:
    reasons = staleness(aged(181), today=TODAY, environment=Environment(driver="580"))
    assert reasons == ("181 days old, more than 180", "the driver was 570, is now 580")
