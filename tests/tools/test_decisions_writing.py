"""Writing decide entries: checked, whole, and never over someone else's."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.decisions import DecideEntry, DecideFinding, Provenance, load_entries, write_entry
from tools.errors import DecideError

PROVENANCE = Provenance(
    commit="0" * 40,
    recipe_digest="r",
    data_digest="d",
    base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
    seeds=(17, 18),
    n_items=120,
    effect=0.05,
    interval=(0.01, 0.09),
    level=0.95,
    hardware="NVIDIA H200",
    driver="570.1",
    library_versions={"torch": "2.13.0", "peft": "0.21.0"},
    planner="optuna",
    trial_ids=("it-1-c1-s17",),
    extra={"later": [1, 2]},
)
ENTRY = DecideEntry(
    slug="2026-05-22-drone-router-it-1",
    lifecycle="active",
    created=date(2026, 5, 22),
    question="recipe",
    context={"task": "drone-router", "rows": 400, "packed": True},
    findings=(DecideFinding("accuracy", "c1", "+5.0 points [1.0, 9.0] on 120 items", {"verdict": "keep"}),),
    sources=("lineage/it-1/report.html",),
    supersedes=("2026-05-21-drone-router-it-1",),
    notes="first line\nsecond: line\n",
    provenance=PROVENANCE,
    extra={"reviewed_by": None, "tags": ["no", "yes", "1e3"]},
)


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    path = write_entry(ENTRY, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "2026-05-22-drone-router-it-1.yaml"
    read = DecideEntry.from_yaml(path)
    assert dataclasses.replace(read, path=None) == ENTRY
    assert read.path == path
    assert os.listdir(path.parent) == [path.name]


def test_the_file_has_the_documented_schema(tmp_path: Path) -> None:
    data = yaml.safe_load(write_entry(ENTRY, tmp_path).read_text(encoding="utf-8"))
    assert list(data)[:9] == [
        "slug",
        "lifecycle",
        "created",
        "question",
        "context",
        "findings",
        "sources",
        "supersedes",
        "notes",
    ]
    assert data["created"] == date(2026, 5, 22)
    assert data["provenance"]["interval"] == [0.01, 0.09]
    assert data["provenance"]["later"] == [1, 2]


@pytest.mark.parametrize(
    "odd", ["\x85", "\u2028", "\ufeff", "\x00\x07", "é ü 漢 😀", "# *not* &an: alias", "\t- a\n\n b "]
)
def test_any_text_survives(tmp_path: Path, odd: str) -> None:
    findings = (DecideFinding(f"x{odd}", f"y{odd}", f"z{odd}z"),)
    entry = dataclasses.replace(ENTRY, findings=findings, notes=f"a{odd}b{odd}")
    path = write_entry(entry, tmp_path)
    assert dataclasses.replace(DecideEntry.from_yaml(path), path=None) == entry
    assert write_entry(entry, tmp_path) == path


def test_a_list_used_twice_is_written_twice(tmp_path: Path) -> None:
    both = ["x"]
    entry = dataclasses.replace(ENTRY, extra={"one": both, "two": both})
    assert DecideEntry.from_yaml(write_entry(entry, tmp_path)).extra == entry.extra


def test_an_entry_without_provenance_writes_none(tmp_path: Path) -> None:
    path = write_entry(dataclasses.replace(ENTRY, provenance=None), tmp_path)
    assert "provenance" not in yaml.safe_load(path.read_text(encoding="utf-8"))
    assert Provenance.from_dict(Provenance().to_dict()) == Provenance()


def test_writing_the_same_entry_again_changes_nothing(tmp_path: Path) -> None:
    before = write_entry(ENTRY, tmp_path).stat()
    after = write_entry(ENTRY, tmp_path).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_another_entry_of_the_same_slug_is_refused_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    path = write_entry(ENTRY, tmp_path)
    other = dataclasses.replace(ENTRY, lifecycle="superseded")
    before = path.read_bytes()
    with pytest.raises(DecideError, match="already holds another entry"):
        write_entry(other, tmp_path)
    assert path.read_bytes() == before
    assert write_entry(other, tmp_path, replace=True) == path
    assert DecideEntry.from_yaml(path).lifecycle == "superseded"


@pytest.mark.parametrize("name", [f"{ENTRY.slug}.json", f"{ENTRY.slug}.yml", "renamed.yaml"])
def test_a_slug_that_another_file_holds_is_taken(tmp_path: Path, name: str) -> None:
    text = yaml.safe_dump({**ENTRY.to_dict(), "created": "2026-05-22", "notes": "someone else's"})
    data = yaml.safe_load(text)
    (tmp_path / name).write_text(text if not name.endswith("json") else json.dumps(data))
    for replace in (False, True):
        with pytest.raises(DecideError, match=r"another entry|rename it"):
            write_entry(ENTRY, tmp_path, replace=replace)
    assert os.listdir(tmp_path) == [name]


def test_an_unreadable_file_of_that_name_is_not_written_over(tmp_path: Path) -> None:
    target = tmp_path / f"{ENTRY.slug}.yaml"
    target.write_text("slug: [")
    with pytest.raises(DecideError, match="already holds another entry"):
        write_entry(ENTRY, tmp_path)
    assert target.read_text() == "slug: ["


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    folder = tmp_path / "entries"
    folder.mkdir()
    outside = tmp_path / "outside.txt"
    (folder / f"{ENTRY.slug}.yaml").symlink_to(outside)
    with pytest.raises(DecideError, match="already holds another entry"):
        write_entry(ENTRY, folder)
    assert not outside.exists()


@pytest.mark.parametrize(
    "slug",
    ["", ".", "..", "../x", "a/b", "/abs", ".hidden", "-rf", "a b", "a\n", "a\0", "ü", "a.", "x" * 121],
)
def test_a_slug_that_is_no_plain_file_name_is_refused(tmp_path: Path, slug: str) -> None:
    folder = tmp_path / "entries"
    with pytest.raises(DecideError, match="slug is"):
        write_entry(dataclasses.replace(ENTRY, slug=slug), folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("evidence", ["", "  \n"])
def test_a_finding_without_evidence_is_refused(tmp_path: Path, evidence: str) -> None:
    findings = (*ENTRY.findings, DecideFinding("loss", "c2", evidence))
    with pytest.raises(DecideError, match=r"finding 1 \(loss\) has no evidence"):
        write_entry(dataclasses.replace(ENTRY, findings=findings), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"context": {"path": Path("x")}},
        {"context": {"rate": float("nan")}},
        {"context": {"pair": (1, 2)}},
        {"extra": {"slug": "x"}},
        {"notes": "y" * (1 << 20)},
        {"notes": 7},
    ],
    ids=str,
)
def test_a_value_that_would_not_read_back_the_same_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(DecideError):
        write_entry(dataclasses.replace(ENTRY, **changes), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_leaves_the_old_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_entry(ENTRY, tmp_path)
    before = path.read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_entry(dataclasses.replace(ENTRY, notes="new"), tmp_path, replace=True)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


WRITER = """
import dataclasses, sys
from tests.tools.test_decisions_writing import ENTRY
from tools.decisions import write_entry
from tools.errors import DecideError
entry = dataclasses.replace(ENTRY, notes=sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    try:
        write_entry(entry, line.strip())
        print("won", flush=True)
    except DecideError:
        print("lost", flush=True)
"""


def test_of_processes_that_write_different_entries_of_one_slug_exactly_one_wins(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    writers = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", WRITER, f"writer {number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=env,
        )
        for number in range(4)
    ]

    def hear() -> list[str]:
        return [writer.stdout.readline().strip() for writer in writers if writer.stdout]

    try:
        assert hear() == ["ready"] * 4
        for turn in range(25):
            folder = tmp_path / str(turn)
            for writer in writers:
                assert writer.stdin is not None
                writer.stdin.write(f"{folder}\n")
            said = hear()
            assert sorted(said) == ["lost", "lost", "lost", "won"]
            (entry,) = load_entries(dirs=[folder])
            assert entry.notes == f"writer {said.index('won')}"
    finally:
        for writer in writers:
            writer.communicate(timeout=60)
