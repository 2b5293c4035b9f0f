from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tools.folder_swap import replacing


def _make(folder: Path, text: str) -> None:
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_text(text, encoding="utf-8")


def _read(folder: Path) -> str | None:
    """Return what the folder holds, None where it is missing; a half one fails."""
    if not folder.exists():
        return None
    (text,) = {(folder / name).read_text(encoding="utf-8") for name in ("a", "b")}
    return text


def test_a_new_folder_takes_the_place_of_the_old(tmp_path):
    _make(tmp_path / "x", "old")
    with replacing(tmp_path / "x"):
        assert not (tmp_path / "x").exists()
        _make(tmp_path / "x", "new")
    assert _read(tmp_path / "x") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("old", ["old", None])
def test_a_failure_brings_the_old_one_back(tmp_path, old):
    if old:
        _make(tmp_path / "x", old)

    def fail_half_way() -> None:
        with replacing(tmp_path / "x"):
            (tmp_path / "x").mkdir()
            (tmp_path / "x" / "a").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert _read(tmp_path / "x") == old
    assert [path.name for path in tmp_path.iterdir()] == (["x"] if old else [])


def test_a_link_is_moved_and_never_followed(tmp_path):
    _make(tmp_path / "elsewhere", "mine")
    (tmp_path / "x").symlink_to(tmp_path / "elsewhere")
    with replacing(tmp_path / "x"):
        _make(tmp_path / "x", "new")
    assert _read(tmp_path / "x") == "new"
    assert _read(tmp_path / "elsewhere") == "mine"


@pytest.mark.parametrize("old", ["old", None])
@pytest.mark.parametrize("cut", range(1, 12))
def test_a_kill_at_any_step_leaves_the_old_or_the_new_after_the_next_call(tmp_path, old, cut):
    if old:
        _make(tmp_path / "x", old)
    pid = os.fork()
    if pid == 0:
        _die_before_change(cut)
        with replacing(tmp_path / "x"):
            _make(tmp_path / "x", "new")
        os._exit(0)
    os.waitpid(pid, 0)

    def fail() -> None:
        with replacing(tmp_path / "x"):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert _read(tmp_path / "x") in (old, "new")
    assert [path.name for path in tmp_path.iterdir()] in (["x"], [])


def _die_before_change(cut: int) -> None:
    """Kill this process before its cut-th change of the disk, the removal of a tree half done."""
    left = cut

    def step() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 9)

    def counted(holder: object, name: str) -> None:
        real = getattr(holder, name)

        def call(*args: object, **kwargs: object) -> object:
            step()
            return real(*args, **kwargs)

        setattr(holder, name, call)

    for name in ("rename", "unlink", "mkdir", "rmdir"):
        counted(os, name)
    counted(Path, "touch")
    counted(Path, "write_text")
    counted(shutil, "rmtree")
