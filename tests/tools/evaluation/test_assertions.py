"""Assertions about a folder that a program we do not trust has written."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tools.errors import EvaluationError
from tools.evaluation import ASSERTION_KINDS, AssertionGrader
from tools.evaluation.confined_files import MAX_FILE_BYTES, ConfinedFolder, UnreadableError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "sandbox"
    (root / "sub").mkdir(parents=True)
    (root / "notes.md").write_text("# Title\nalpha beta\n", encoding="utf-8")
    (root / "sub" / "data.csv").write_bytes(b"a,b\r\n1,2\r\n")
    (tmp_path / "secret.txt").write_text("alpha", encoding="utf-8")
    return root


def check(
    root: Path, kind: str, path: Any, *, seeds: dict[str, str] | None = None, **keys: Any
) -> tuple[bool, str]:
    result = AssertionGrader(regex_timeout_s=0.5).grade(
        [{"kind": kind, "path": path, **keys}], root, seed_files=seeds
    )
    assert result.passed is result.assertions[0].passed
    return result.passed, result.assertions[0].detail


def test_the_kinds_are_the_documented_five() -> None:
    assert ASSERTION_KINDS == (
        "file_exists",
        "file_not_exists",
        "file_contents_contain",
        "file_contents_match_regex",
        "file_unchanged",
    )
    assert AssertionGrader.supported_kinds() == ASSERTION_KINDS


def test_existence(root: Path) -> None:
    assert check(root, "file_exists", "notes.md") == (True, "")
    assert check(root, "file_exists", "sub") == (True, "")
    assert check(root, "file_exists", "none.md") == (False, "path missing")
    assert check(root, "file_not_exists", "none.md") == (True, "")
    assert check(root, "file_not_exists", "notes.md") == (False, "file still present")


def test_contents(root: Path) -> None:
    assert check(root, "file_contents_contain", "notes.md", must_contain=["alpha", "Title"]) == (True, "")
    assert check(root, "file_contents_contain", "notes.md", must_contain=["alpha", "x"]) == (
        False,
        "missing substrings: ['x']",
    )
    assert check(root, "file_contents_contain", "sub", must_contain=["x"]) == (False, "file missing")
    assert check(root, "file_contents_contain", "sub/data.csv", must_contain=["a,b\n1,2", "b\r\n1"]) == (
        True,
        "",
    )
    assert check(root, "file_contents_contain", "notes.md/x", must_contain=["x"]) == (False, "file missing")


def test_a_text_is_one_substring_and_not_its_letters(root: Path) -> None:
    # All letters of "tab" are in the file, the word is not.
    assert check(root, "file_contents_contain", "notes.md", must_contain="tab") == (
        False,
        "missing substrings: ['tab']",
    )
    assert check(root, "file_contents_contain", "notes.md", must_contain="alpha beta") == (True, "")


@pytest.mark.parametrize("wanted", [None, [], 3, [1], {"alpha": 1}])
def test_a_containment_of_nothing_fails(root: Path, wanted: Any) -> None:
    passed, detail = check(root, "file_contents_contain", "notes.md", must_contain=wanted)
    assert not passed
    assert "must_contain is" in detail


def test_regexes(root: Path) -> None:
    assert check(root, "file_contents_match_regex", "notes.md", regex=r"al\w+ b") == (True, "")
    assert check(root, "file_contents_match_regex", "notes.md", regex="gamma") == (False, "regex not matched")
    assert check(root, "file_contents_match_regex", "sub/data.csv", regex=r"(?m)^a,b$") == (True, "")
    passed, detail = check(root, "file_contents_match_regex", "notes.md", regex="(")
    assert (passed, detail[:13]) == (False, "error: error:")
    for pattern in (None, "", 5):
        assert not check(root, "file_contents_match_regex", "notes.md", regex=pattern)[0]


def test_a_regex_that_never_ends_fails_in_time_and_the_next_ones_are_graded(root: Path) -> None:
    (root / "a.txt").write_text("a" * 40 + "b", encoding="utf-8")
    bomb = {"kind": "file_contents_match_regex", "path": "a.txt", "regex": r"^(a+)+$"}
    started = time.monotonic()
    result = AssertionGrader(regex_timeout_s=0.3).grade(
        [bomb, {"kind": "file_exists", "path": "a.txt"}], root
    )
    assert time.monotonic() - started < 20
    assert [one.passed for one in result.assertions] == [False, True]
    assert result.assertions[0].detail == "error: regex took longer than 0.3 s"


def test_a_regex_that_exhausts_its_process_fails(root: Path) -> None:
    passed, detail = check(root, "file_contents_match_regex", "notes.md", regex="(" * 5000 + ")" * 5000)
    assert not passed
    assert detail.startswith("error: ")


def test_unchanged_files(root: Path) -> None:
    seeds = {"notes.md": "# Title\nalpha beta\n", "sub/data.csv": "a,b\r\n1,2\r\n", "gone.md": "x"}
    assert check(root, "file_unchanged", "notes.md", seeds=seeds) == (True, "")
    assert check(root, "file_unchanged", "sub/data.csv", seeds=seeds) == (True, "")
    assert check(root, "file_unchanged", "gone.md", seeds=seeds) == (False, "file missing post-rollout")
    assert check(root, "file_unchanged", "other.md", seeds=seeds) == (True, "skipped (no seed content)")
    assert check(root, "file_unchanged", "notes.md") == (True, "skipped (no seed content)")
    (root / "notes.md").write_text("# Title\nalpha beta", encoding="utf-8")
    assert check(root, "file_unchanged", "notes.md", seeds=seeds) == (False, "contents diverged from seed")


def test_an_unknown_kind_fails_and_does_not_crash(root: Path) -> None:
    assert check(root, "file_smells", "notes.md") == (False, "unknown kind: file_smells")
    result = AssertionGrader().grade(["file_exists", {}], root)  # type: ignore[list-item]
    assert [one.passed for one in result.assertions] == [False, False]


PATHS = ["../secret.txt", "sub/../../secret.txt", "sub/../notes.md", "..", "", None, 3, "a\0b", ["notes.md"]]


@pytest.mark.parametrize("kind", ASSERTION_KINDS)
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_a_path_cannot_leave_its_root(kind: str, path: Any, root: Path) -> None:
    keys = {"must_contain": ["alpha"], "regex": "alpha"}
    passed, detail = check(root, kind, path, **keys)
    assert not passed
    assert "path" in detail


@pytest.mark.parametrize("kind", ASSERTION_KINDS)
def test_an_absolute_path_is_refused_even_inside(kind: str, root: Path) -> None:
    for path in (root / "notes.md", root.parent / "secret.txt"):
        passed, detail = check(root, kind, str(path), must_contain=["alpha"], regex="alpha")
        assert (passed, detail) == (False, "path leaves the root")


@pytest.mark.parametrize("kind", ASSERTION_KINDS)
def test_a_link_cannot_lead_out(kind: str, root: Path) -> None:
    (root / "link.txt").symlink_to(root.parent / "secret.txt")
    (root / "up").symlink_to("..")
    (root / "dangling").symlink_to(root.parent / "none.txt")
    for path in ("link.txt", "up/secret.txt", "dangling"):
        passed, detail = check(root, kind, path, must_contain=["alpha"], regex="alpha")
        assert (passed, detail) == (False, "path leaves the root over a link")


def test_a_link_that_stays_inside_is_followed(root: Path) -> None:
    (root / "alias.md").symlink_to("notes.md")
    (root / "deep").symlink_to("sub", target_is_directory=True)
    assert check(root, "file_contents_contain", "alias.md", must_contain=["alpha"])[0]
    assert check(root, "file_contents_contain", "deep/data.csv", must_contain=["1,2"])[0]


def test_a_link_that_appears_between_the_check_and_the_read_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ConfinedFolder(root)
    resolve = ConfinedFolder._resolve

    def slow(self: ConfinedFolder, path: object) -> Path:
        real = resolve(self, path)
        (root / "notes.md").unlink()
        (root / "notes.md").symlink_to(root.parent / "secret.txt")
        return real

    monkeypatch.setattr(ConfinedFolder, "_resolve", slow)
    with pytest.raises(UnreadableError, match="read error"):
        folder.read("notes.md")


def test_circles_pipes_and_giants_fail_at_once(root: Path) -> None:
    (root / "circle").symlink_to("circle")
    os.mkfifo(root / "pipe")
    with (root / "giant").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    for path in ("circle", "pipe", "giant"):
        done: list[bool] = []
        thread = threading.Thread(
            target=lambda path=path, done=done: done.append(
                check(root, "file_contents_contain", path, must_contain=["x"])[0]
            ),
            daemon=True,
        )
        thread.start()
        thread.join(timeout=30)
        assert done == [False], path


def test_a_name_that_is_too_long_fails(root: Path) -> None:
    assert not check(root, "file_exists", "x" * 5000)[0]


TASK = {
    "task_id": "synth-clerk-01",
    "workspace_seed": {
        "files": [
            {"kind": "text", "path": "notes.md", "content": "# Title\nalpha beta\n"},
            {"kind": "binary", "path": "sub/data.csv", "content": "x"},
            "torn",
        ]
    },
    "verifiable_assertions": [
        {"kind": "file_unchanged", "path": "notes.md"},
        {"kind": "file_unchanged", "path": "sub/data.csv"},
        {"kind": "file_exists", "path": "report.md"},
    ],
}


def test_a_task_brings_its_id_and_its_seed_files(root: Path) -> None:
    result = AssertionGrader().grade(TASK, root)
    assert (result.task_id, result.passed, result.n_passed, result.n_total) == ("synth-clerk-01", False, 2, 3)
    assert result.assertions[1].detail == "skipped (no seed content)"
    value = result.to_dict()
    assert json.loads(json.dumps(value)) == value
    assert value["assertions"][2] == {
        "kind": "file_exists",
        "path": "report.md",
        "passed": False,
        "detail": "path missing",
    }
    (root / "report.md").touch()
    assert AssertionGrader().grade(TASK, root, task_id="mine").passed
    other = {"notes.md": "changed"}
    assert not AssertionGrader().grade(TASK, root, seed_files=other).assertions[0].passed


def test_no_assertion_proves_nothing(root: Path) -> None:
    assert AssertionGrader().grade([], root).passed is False


@pytest.mark.parametrize(
    "task", [{"task_id": "x"}, {"verifiable_assertions": "file_exists"}, "file_exists", None]
)
def test_a_task_without_assertions_is_refused(task: Any, root: Path) -> None:
    with pytest.raises(EvaluationError):
        AssertionGrader().grade(task, root)


def test_a_root_that_is_gone_is_refused(root: Path) -> None:
    for bad in (root / "none", root / "notes.md"):
        with pytest.raises(EvaluationError, match="cannot be graded"):
            AssertionGrader().grade([{"kind": "file_not_exists", "path": "x"}], bad)
