"""The decision corpus: what is read, what still counts, and what it answers."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import decisions
from tools.decisions import (
    SEED_ENTRIES_DIR,
    VALID_LIFECYCLES,
    DecideEntry,
    DecideFinding,
    decide,
    load_entries,
    scan_entries,
    train_backend,
)
from tools.errors import DecideError


def plain(slug: str, /, **changes: Any) -> dict[str, Any]:
    return {
        "slug": slug,
        "lifecycle": "active",
        "created": "2026-05-22",
        "question": "train_backend",
        "context": {"base_model_family": "qwen3"},
        "findings": [{"optimize_for": "wall_clock", "pick": slug, "evidence": "measured"}],
    } | changes


def put(folder: Path, *entries: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for entry in entries:
        (folder / f"{entry['slug']}.yaml").write_text(yaml.safe_dump(entry), encoding="utf-8")
    return folder


def active(*folders: Path) -> list[str]:
    return [entry.slug for entry in load_entries(dirs=folders)]


def test_the_shipped_entry_answers_as_documented() -> None:
    pick = train_backend(
        base_model_family="qwen3-r1-distill", optimize_for="patent_chain_length", dirs=[SEED_ENTRIES_DIR]
    )
    assert pick.backend == pick.pick == "nemo"
    assert pick.evidence == "+44% mean chain, -26% wall vs unsloth on R1-Qwen3-8B"
    assert pick.entry.slug == "2026-05-22-paired-bakeoff"
    assert pick.entry_path == SEED_ENTRIES_DIR / "2026-05-22-paired-bakeoff.yaml"
    assert pick.context == {"base_model_family": "qwen3-r1-distill"}
    assert pick.optimize_for == "patent_chain_length"


def test_every_shipped_entry_is_well_formed_and_has_evidence() -> None:
    scan = scan_entries([SEED_ENTRIES_DIR])
    assert scan.problems == ()
    assert scan.entries
    for entry in scan.entries:
        assert entry.path is not None
        assert entry.path.stem == entry.slug
        assert entry.sources
        assert all(found.evidence.strip() for found in entry.findings)


def test_an_entry_reads_its_schema_and_keeps_what_it_does_not_know() -> None:
    data = plain(
        "a",
        created=date(2026, 5, 22),
        sources="one source",
        supersedes=["b"],
        notes="n",
        later_key={"x": 1},
        findings=[{"optimize_for": "loss", "pick": 32, "evidence": "e", "p_value": 0.01}],
    )
    entry = DecideEntry.from_dict(data)
    assert (entry.created, entry.sources, entry.supersedes) == (date(2026, 5, 22), ("one source",), ("b",))
    assert entry.findings == (DecideFinding("loss", "32", "e", {"p_value": 0.01}),)
    assert entry.extra == {"later_key": {"x": 1}}
    assert entry.path is None
    assert entry.find(optimize_for="loss") == entry.findings[0]
    assert entry.find(optimize_for="other") is None


def test_a_context_matches_exactly_and_what_it_does_not_say_is_no_match() -> None:
    entry = DecideEntry.from_dict(plain("a", context={"family": "qwen3", "rows": 5000, "none": None}))
    assert entry.matches_context(family="qwen3", rows=5000)
    assert not entry.matches_context(rows="5000")
    assert not entry.matches_context(missing=None)
    assert entry.matches_context(none=None)
    assert entry.matches_context()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lifecycle": "retired"}, "lifecycle is 'retired'; allowed"),
        ({"findings": []}, "no findings"),
        ({"findings": "nemo"}, "findings is 'nemo'; it must be a list"),
        ({"findings": ["nemo"]}, "finding 0 is 'nemo'"),
        ({"findings": [{"pick": "nemo"}]}, r"no \['optimize_for'\]"),
        ({"findings": [{"optimize_for": "x", "pick": None}]}, "pick is None"),
        ({"findings": [{"optimize_for": "x", "pick": ["nemo"]}]}, r"pick is \['nemo'\]"),
        ({"context": "qwen3"}, "context is 'qwen3'"),
        ({"created": "22.5.2026"}, "YYYY-MM-DD"),
        ({"created": "2026-02-31"}, "created is '2026-02-31'"),
        ({"created": None}, "created is None"),
        ({"slug": " "}, "slug is ' '"),
        ({"sources": {"a": 1}}, "sources is"),
        ({"provenance": "a note"}, "provenance is 'a note'"),
        ({"provenance": {"seeds": "17"}}, "provenance.seeds"),
        ({"provenance": {"interval": [0.2, 0.1]}}, "low <= high"),
        ({"provenance": {"interval": [0.1]}}, "low, high"),
        ({"provenance": {"effect": float("nan")}}, "finite"),
        ({"provenance": {"level": 95}}, "between 0 and 1"),
        ({"provenance": {"n_items": -1}}, "n_items"),
        ({"provenance": {"commit": 123}}, "quote it"),
        ({"provenance": {"library_versions": {"torch": 2.1}}}, "library_versions"),
        ({"provenance": {"trial_ids": [1]}}, "trial_ids"),
    ],
)
def test_a_malformed_entry_is_refused_with_what_came(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DecideError, match=said):
        DecideEntry.from_dict(plain("a", **changes))


@pytest.mark.parametrize("key", ["slug", "lifecycle", "created", "question", "findings"])
def test_a_missing_key_is_named(key: str) -> None:
    data = plain("a")
    del data[key]
    with pytest.raises(DecideError, match=key):
        DecideEntry.from_dict(data)


def test_a_decide_error_is_told_apart_from_a_value_error() -> None:
    assert not issubclass(DecideError, ValueError)


BROKEN = {
    "no-yaml.yaml": b"slug: [",
    "list.yaml": b"- a\n- b\n",
    "empty.yaml": b"",
    "latin.yaml": b"slug: \xff\xfe",
    "control.yaml": b"slug: \x00",
    "february.yaml": b"slug: x\ncreated: 2026-02-31\n",
    "twice.yaml": b"slug: x\nslug: y\n",
    "code.yaml": b"slug: !!python/object/apply:os.system ['true']\n",
    "bomb.yaml": yaml.safe_dump(plain("bomb")).encode() + b"x: &x [1, 1]\ny: &y [*x, *x]\nz: [*y, *y]\n",
    "deep.yaml": b"a: " + b"[" * 5000,
    "huge.yaml": b"# " + b"x" * (1 << 20),
    "torn.json": b'{"slug": "x", ',
    "deep.json": b"[" * 100_000,
    "missing-keys.yml": b"slug: x\n",
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_one_malformed_file_is_reported_and_costs_itself_alone(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, plain("good"))
    (tmp_path / name).write_bytes(BROKEN[name])
    with caplog.at_level(logging.WARNING):
        assert active(tmp_path) == ["good"]
    assert name in caplog.text
    (problem,) = scan_entries([tmp_path]).problems
    assert problem.path == tmp_path / name
    assert train_backend(base_model_family="qwen3", optimize_for="wall_clock", dirs=[tmp_path]).pick == "good"
    with pytest.raises(DecideError):
        DecideEntry.from_yaml(tmp_path / name)


def test_an_entry_that_cannot_be_opened_is_reported(tmp_path: Path) -> None:
    put(tmp_path, plain("good"))
    (tmp_path / "bad.yaml").symlink_to("bad.yaml")
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    assert active(tmp_path) == ["good"]


def test_only_yaml_and_json_files_are_read_and_missing_folders_are_skipped(tmp_path: Path) -> None:
    put(tmp_path, plain("a", created="2026-05-20"))
    (tmp_path / "b.json").write_text(json.dumps(plain("b", created="2026-05-21")), encoding="utf-8")
    (tmp_path / "c.YML").write_text("\ufeff" + yaml.safe_dump(plain("c")), encoding="utf-8")
    (tmp_path / "d.md").write_text("slug: [", encoding="utf-8")
    assert active(tmp_path, tmp_path / "missing") == ["c", "b", "a"]


def test_one_folder_may_be_given_as_it_is(tmp_path: Path) -> None:
    put(tmp_path, plain("a"))
    assert [entry.slug for entry in load_entries(dirs=str(tmp_path))] == ["a"]
    assert [entry.slug for entry in load_entries(dirs=tmp_path)] == ["a"]  # type: ignore[arg-type]


def test_entries_come_newest_first_and_within_a_day_by_the_number_in_their_slug(tmp_path: Path) -> None:
    put(
        tmp_path,
        plain("old", created="2025-01-01"),
        plain("it-9"),
        plain("it-10"),
        plain("new", created="2026-06-01"),
    )
    assert active(tmp_path) == ["new", "it-10", "it-9", "old"]


def test_entries_are_filtered_by_lifecycle_and_question(tmp_path: Path) -> None:
    put(
        tmp_path,
        *(plain(lifecycle, lifecycle=lifecycle) for lifecycle in sorted(VALID_LIFECYCLES)),
        plain("other", question="recipe"),
    )
    assert {entry.slug for entry in load_entries(dirs=[tmp_path], lifecycle=None)} == {
        *VALID_LIFECYCLES,
        "other",
    }
    both = load_entries(dirs=[tmp_path], lifecycle=["active", "superseded"], question="train_backend")
    assert {entry.slug for entry in both} == {"active", "superseded"}
    for lifecycle in ("retired", ["active", "retired"]):
        with pytest.raises(DecideError, match="retired"):
            load_entries(dirs=[tmp_path], lifecycle=lifecycle)


def test_an_entry_that_a_standing_one_supersedes_answers_no_more(tmp_path: Path) -> None:
    seed = put(tmp_path / "seed", plain("a", created="2026-06-01"))
    user = put(tmp_path / "user", plain("b", created="2026-05-01", supersedes=["a", "unknown"]))
    assert active(seed) == ["a"]
    assert active(seed, user) == ["b"]
    everything = load_entries(dirs=[seed, user], lifecycle=None)
    assert {entry.slug: entry.lifecycle for entry in everything} == {"a": "superseded", "b": "active"}


@pytest.mark.parametrize(
    ("graph", "standing"),
    [
        ({"c": ("active", ["b"]), "b": ("active", ["a"]), "a": ("active", [])}, ["c"]),
        ({"b": ("superseded", ["a"]), "a": ("active", [])}, []),
        ({"b": ("deprecated", ["a"]), "a": ("active", [])}, ["a"]),
        ({"a": ("active", ["a"])}, ["a"]),
        ({"a": ("active", ["b"]), "b": ("active", ["a"])}, ["b"]),
        ({"a": ("active", ["b"]), "b": ("active", ["c"]), "c": ("active", ["a"])}, ["c", "b"]),
    ],
    ids=["chain", "by-superseded", "by-deprecated", "itself", "each-other", "ring"],
)
def test_supersedes_is_followed_and_a_ring_leaves_its_newest(
    tmp_path: Path, graph: dict[str, tuple[str, list[str]]], standing: list[str]
) -> None:
    put(
        tmp_path,
        *(plain(slug, lifecycle=lifecycle, supersedes=names) for slug, (lifecycle, names) in graph.items()),
    )
    assert active(tmp_path) == standing


def test_the_first_folder_with_a_slug_counts_and_a_different_one_is_reported(tmp_path: Path) -> None:
    mine = put(tmp_path / "mine", plain("a", notes="mine"), plain("same"))
    shipped = put(tmp_path / "shipped", plain("a", notes="shipped"), plain("same"))
    scan = scan_entries([mine, shipped])
    assert {entry.slug: entry.notes for entry in scan.entries} == {"a": "mine", "same": ""}
    (problem,) = scan.problems
    assert problem.path == shipped / "a.yaml"
    assert "not used" in problem.message


def test_the_default_search_walks_the_user_the_old_and_the_shipped_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("USER", "LEGACY", "SEED"):
        folder = put(tmp_path / name, plain(name.lower()), plain("shared", notes=name))
        monkeypatch.setattr(decisions.corpus, f"{name}_ENTRIES_DIR", folder)
    entries = load_entries()
    assert {entry.slug for entry in entries} == {"user", "legacy", "seed", "shared"}
    assert [entry.notes for entry in entries if entry.slug == "shared"] == ["USER"]


def test_the_user_folders_lie_in_the_home_and_importing_reads_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, tools.decisions as d; print(d.USER_ENTRIES_DIR); print(d.LEGACY_ENTRIES_DIR);"
        "print('yaml' in sys.modules or 'pydantic' in sys.modules)"
    )
    env = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [
        str(tmp_path / ".bakehouse" / "decide-entries"),
        str(tmp_path / ".fieldkit" / "decide-entries"),
        "False",
    ]
    assert list(tmp_path.iterdir()) == []


def test_the_newest_entry_with_the_goal_answers(tmp_path: Path) -> None:
    loss = [{"optimize_for": "loss", "pick": "old-loss"}]
    put(
        tmp_path,
        plain("new", created="2026-06-01"),
        plain("old", created="2026-05-01", findings=[*plain("old")["findings"], *loss]),
    )
    asked = {"base_model_family": "qwen3"}
    assert decide("train_backend", context=asked, optimize_for="wall_clock", dirs=[tmp_path]).pick == "new"
    assert decide("train_backend", context=asked, optimize_for="loss", dirs=[tmp_path]).pick == "old-loss"


def test_all_of_the_context_must_match_and_a_text_matches_the_scalar_it_spells(tmp_path: Path) -> None:
    put(
        tmp_path,
        plain("a", context={"family": "qwen3", "rows": 5000, "packed": True, "day": date(2026, 5, 22)}),
    )

    def answers(**context: Any) -> bool:
        try:
            decide("train_backend", context=context, optimize_for="wall_clock", dirs=[tmp_path])
        except DecideError:
            return False
        return True

    assert answers()
    assert answers(family="qwen3", rows=5000)
    assert answers(rows="5000", packed="true", day="2026-05-22")
    assert not answers(family="qwen3", rows="5001")
    assert not answers(family="qwen3", missing="x")
    assert not answers(packed="false")


def test_a_lookup_that_fails_says_what_the_corpus_has(tmp_path: Path) -> None:
    put(tmp_path, plain("a"), plain("gone", lifecycle="superseded"), plain("other", question="recipe"))
    with pytest.raises(
        DecideError, match=r"base_model_family='llama'.*active entries: a@2026-05-22\)"
    ) as no_match:
        train_backend(base_model_family="llama", optimize_for="wall_clock", dirs=[tmp_path])
    assert "gone" not in str(no_match.value)
    with pytest.raises(DecideError, match=r"optimize_for='loss'.*available: \['wall_clock'\]"):
        train_backend(base_model_family="qwen3", optimize_for="loss", dirs=[tmp_path])
    with pytest.raises(DecideError, match="active entries: none"):
        decide("weather", context={}, optimize_for="x", dirs=[tmp_path])
