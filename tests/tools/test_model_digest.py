"""The digest of a base model: another model under the same name is told, a moved one is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tools.model_digest import digest_base_model

LARGE = 1 << 23


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"hidden_size": 64}', encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 16)
    return folder


def test_where_a_model_lies_and_what_is_written_about_it_change_nothing(model: Path, tmp_path: Path) -> None:
    digest = digest_base_model(str(model))
    assert digest is not None
    assert len(digest) == 64
    copy = shutil.copytree(model, tmp_path / "elsewhere")
    (copy / "README.md").write_text("a model", encoding="utf-8")
    assert digest_base_model(str(copy)) == digest


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_byte_of_what_counts_changes_it(model: Path, name: str) -> None:
    before = digest_base_model(str(model))
    data = bytearray((model / name).read_bytes())
    data[len(data) // 2] ^= 1
    (model / name).write_bytes(data)
    assert digest_base_model(str(model)) != before


@pytest.mark.parametrize("place", [0, LARGE // 2, LARGE - 1])
def test_of_a_large_file_beginning_middle_and_end_are_read(model: Path, place: int) -> None:
    weights = model / "model.safetensors"
    with weights.open("wb") as file:
        file.truncate(LARGE)
    before = digest_base_model(str(model))
    with weights.open("r+b") as file:
        # Training moves all weights; a stretch of them stands for it.
        file.seek(max(0, min(place - (1 << 16), LARGE - (1 << 17))))
        file.write(b"\1" * (1 << 17))
    assert digest_base_model(str(model)) != before


def test_a_file_in_gguf_counts_whatever_it_is_called(tmp_path: Path) -> None:
    one, other = tmp_path / "one.gguf", tmp_path / "other.gguf"
    one.write_bytes(b"GGUF and so on")
    shutil.copyfile(one, other)
    assert digest_base_model(str(one)) == digest_base_model(str(other)) is not None


def test_what_is_not_here_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAKEHOUSE_CACHE", str(tmp_path))
    for name in (str(tmp_path / "gone"), "smollm2-135m-instruct-q4_1", "nobody-there/no-such-model"):
        assert digest_base_model(name) is None
