"""The diff of a kept trial: everything that changed, nothing from outside its folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lineage_rows import make_trial
from tools.errors import LineageError
from tools.lineage import RecipeEdit


def edit_of(tmp_path: Path, before: dict[str, bytes], after: dict[str, bytes]) -> RecipeEdit:
    for side, files in (("before", before), ("after", after)):
        (tmp_path / side).mkdir()
        for name, data in files.items():
            file = tmp_path / side / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    return RecipeEdit(make_trial("001"), tmp_path / "after", tmp_path / "before")


def test_a_baseline_has_no_diff(tmp_path: Path) -> None:
    assert RecipeEdit(make_trial("000"), tmp_path, None).diff() == ""


def test_changed_new_and_deleted_files_are_shown_in_the_order_of_their_names(tmp_path: Path) -> None:
    edit = edit_of(
        tmp_path,
        {"recipe.yaml": b"a: 1\nb: 2\n", "old/gone.txt": b"bye\n", "same.txt": b"same\n"},
        {"recipe.yaml": b"a: 1\nb: 3\n", "new.txt": b"hello\n", "same.txt": b"same\n"},
    )
    assert edit.diff() == (
        "--- a/new.txt\n+++ b/new.txt\n@@ -0,0 +1 @@\n+hello\n"
        "--- a/old/gone.txt\n+++ b/old/gone.txt\n@@ -1 +0,0 @@\n-bye\n"
        "--- a/recipe.yaml\n+++ b/recipe.yaml\n@@ -1,2 +1,2 @@\n a: 1\n-b: 2\n+b: 3\n"
    )


def test_equal_folders_have_no_diff_binary_files_among_them(tmp_path: Path) -> None:
    files = {"a.txt": b"x\n", "weights.bin": b"\xff\x00\xfe"}
    assert edit_of(tmp_path, files, files).diff() == ""


@pytest.mark.parametrize("data", [b"\xff\x00\xfe", b"text\0with a nul", b"x\n" * (1 << 20)])
def test_binary_and_very_large_files_that_differ_are_named(tmp_path: Path, data: bytes) -> None:
    edit = edit_of(tmp_path, {"f": data}, {"f": data + b"more", "g": data})
    assert edit.diff() == "Binary files a/f and b/f differ\nBinary files a/g and b/g differ\n"


def test_a_missing_last_line_end_glues_no_lines(tmp_path: Path) -> None:
    edit = edit_of(tmp_path, {"f": b"old"}, {"f": b"new\n"})
    assert edit.diff().splitlines()[3:] == ["-old", "\\ No newline at end of file", "+new"]


def test_a_change_of_line_ends_alone_is_a_change(tmp_path: Path) -> None:
    assert "-a\r\n+a\n" in edit_of(tmp_path, {"f": b"a\r\n"}, {"f": b"a\n"}).diff()


def test_links_are_shown_by_name_and_never_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("PRIVATE\n")
    edit = edit_of(tmp_path, {"plain": b"x\n", "was_file": b"text\n"}, {"plain": b"x\n"})
    after = tmp_path / "after"
    (after / "file_link").symlink_to(secret / "key")
    (after / "folder_link").symlink_to(secret)
    (after / "loop").symlink_to(after)
    (after / "was_file").symlink_to("../secret/key")
    text = edit.diff()
    assert "PRIVATE" not in text
    assert f"+link to {secret / 'key'}" in text
    assert f"+link to {secret}\n" in text
    assert "-text\n+link to ../secret/key\n" in text


def test_a_pipe_in_a_snapshot_does_not_hang_it(tmp_path: Path) -> None:
    edit = edit_of(tmp_path, {}, {"f": b"x\n"})
    os.mkfifo(tmp_path / "after" / "pipe")
    assert "pipe" not in edit.diff()


def test_a_file_that_becomes_a_folder_is_shown_as_both(tmp_path: Path) -> None:
    text = edit_of(tmp_path, {"x": b"file\n"}, {"x/y": b"inner\n"}).diff()
    assert "-file" in text
    assert "+inner" in text


def test_a_name_with_a_line_break_adds_no_line(tmp_path: Path) -> None:
    text = edit_of(tmp_path, {}, {"a\n+++ b/fake": b"x\n"}).diff()
    assert text.splitlines()[0] == r"--- a/a\n+++ b/fake"


def test_a_missing_snapshot_is_an_error_and_no_empty_diff(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    for after, before in (("here", "gone"), ("gone", "here")):
        with pytest.raises(LineageError, match=r"no snapshot folder at .*gone"):
            RecipeEdit(make_trial("001"), tmp_path / after, tmp_path / before).diff()
