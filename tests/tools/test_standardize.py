from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import tools.standardize
from tests.tiny import tiny_tokenizer
from tools.errors import MergeExportError
from tools.standardize import DEEPSEEK_TOKENIZER_CLASS_REMAP, standardize_hf_export

SHARDS = [
    ("model-00001-of-000002.safetensors", "model-00001-of-00002.safetensors"),
    ("model-00002-of-000002.safetensors", "model-00002-of-00002.safetensors"),
]


@pytest.fixture
def export(tmp_path) -> Path:
    folder = tmp_path / "merged-hf-bf16"
    folder.mkdir()
    for number, (name, _) in enumerate(SHARDS):
        (folder / name).write_bytes(bytes([number]) * 10)
    index = {"metadata": {"total_size": 20}, "weight_map": {"a": SHARDS[0][0], "b": SHARDS[1][0]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config = {"tokenizer_class": "TokenizersBackend", "bos_token": "ü"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def _json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_shards_index_and_tokenizer_class_become_standard(export):
    assert standardize_hf_export(str(export)) == (SHARDS, [("TokenizersBackend", "LlamaTokenizer")])
    assert sorted(path.name for path in export.glob("*.safetensors")) == [new for _, new in SHARDS]
    assert (export / SHARDS[1][1]).read_bytes() == b"\x01" * 10
    index = _json(export / "model.safetensors.index.json")
    assert index["weight_map"] == {"a": SHARDS[0][1], "b": SHARDS[1][1]}
    assert index["metadata"] == {"total_size": 20}
    assert _json(export / "tokenizer_config.json") == {"tokenizer_class": "LlamaTokenizer", "bos_token": "ü"}


def test_a_second_call_finds_nothing_and_writes_nothing(export):
    standardize_hf_export(export)
    before = _state(export)
    assert standardize_hf_export(export) == ([], [])
    assert _state(export) == before


def test_missing_index_and_tokenizer_config_are_tolerated(tmp_path):
    (tmp_path / SHARDS[0][0]).touch()
    assert standardize_hf_export(tmp_path) == ([SHARDS[0]], [])
    assert standardize_hf_export(tmp_path) == ([], [])


def test_an_empty_remap_leaves_the_tokenizer_and_a_custom_one_is_obeyed(export):
    assert standardize_hf_export(export, tokenizer_class_remap={}) == (SHARDS, [])
    remap = {"TokenizersBackend": "MistralTokenizer"}
    assert standardize_hf_export(export, tokenizer_class_remap=remap) == ([], list(remap.items()))


@pytest.mark.parametrize(
    "name",
    [
        "model-00001-of-00002.safetensors",
        "model.safetensors",
        "model-1-of-2.safetensors",
        "model-100000-of-100001.safetensors",
        "model-00001-of-000002.bin",
    ],
)
def test_names_that_are_not_too_wide_stay(tmp_path, name):
    (tmp_path / name).touch()
    assert standardize_hf_export(tmp_path) == ([], [])


def test_both_numbers_get_the_width_of_the_total(tmp_path):
    (tmp_path / "m-0000099999-of-0000123456.safetensors").touch()
    renames, _ = standardize_hf_export(tmp_path)
    assert renames == [("m-0000099999-of-0000123456.safetensors", "m-099999-of-123456.safetensors")]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "null",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "../x"}}',
    ],
)
def test_a_malformed_index_leaves_the_folder_untouched_and_a_second_try_works(export, text):
    index = export / "model.safetensors.index.json"
    good = index.read_text(encoding="utf-8")
    index.write_text(text, encoding="utf-8")
    before = _state(export)
    with pytest.raises(MergeExportError, match="index"):
        standardize_hf_export(export)
    assert _state(export) == before
    index.write_text(good, encoding="utf-8")
    assert standardize_hf_export(export)[0] == SHARDS


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json", "config.json"])
def test_a_malformed_configuration_leaves_the_folder_untouched(export, name):
    (export / name).write_text("{ not json", encoding="utf-8")
    before = _state(export)
    with pytest.raises(MergeExportError, match=name):
        standardize_hf_export(export)
    assert _state(export) == before


def test_a_name_that_is_taken_is_refused_and_nothing_moves(export):
    (export / SHARDS[1][1]).write_bytes(b"older export")
    before = _state(export)
    with pytest.raises(MergeExportError, match="taken twice"):
        standardize_hf_export(export)
    assert _state(export) == before


def test_two_shards_that_would_get_one_name_are_refused(tmp_path):
    (tmp_path / "model-00001-of-000002.safetensors").write_bytes(b"1")
    (tmp_path / "model-000001-of-000002.safetensors").write_bytes(b"2")
    with pytest.raises(MergeExportError, match="taken twice"):
        standardize_hf_export(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(MergeExportError, match="no folder"):
        standardize_hf_export(tmp_path / "nothing")


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_call_killed_at_any_step_is_completed_by_the_next(export, tmp_path, cut):
    """A child is killed before its cut-th change of the folder; the next call repairs."""
    pid = os.fork()
    if pid == 0:
        _die_before_change(cut)
        standardize_hf_export(export)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    finished = os.waitstatus_to_exitcode(status) == 0
    renames, remaps = standardize_hf_export(export)
    if not finished:
        assert (renames, remaps) == (SHARDS, [("TokenizersBackend", "LlamaTokenizer")])
    leftovers = {path.name for path in export.iterdir() if not path.name.endswith(".tmp")}
    assert leftovers == {
        *(new for _, new in SHARDS),
        "model.safetensors.index.json",
        "tokenizer_config.json",
    }
    assert _json(export / "model.safetensors.index.json")["weight_map"]["a"] == SHARDS[0][1]
    assert _json(export / "tokenizer_config.json")["tokenizer_class"] == "LlamaTokenizer"
    assert standardize_hf_export(export) == ([], [])


def _die_before_change(cut: int) -> None:
    """Kill this process before its cut-th rename, replacement or removal."""
    left = cut

    def counted(name: str) -> None:
        real = getattr(os, name)

        def call(*args: object, **kwargs: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), 9)
            return real(*args, **kwargs)

        setattr(os, name, call)

    for name in ("rename", "replace", "unlink"):
        counted(name)


@pytest.mark.parametrize(
    "record",
    [
        {"renames": [["../a", "b"]], "texts": {}, "remaps": []},
        {"renames": [], "texts": {"../../evil": "x"}, "remaps": []},
        {"renames": [], "texts": {"run.sh": "x"}, "remaps": []},
        {"renames": "x"},
        {},
    ],
)
def test_a_foreign_recovery_record_is_refused(export, record):
    (export / ".standardize.json").write_text(json.dumps(record), encoding="utf-8")
    before = _state(export)
    with pytest.raises(MergeExportError, match="remove it"):
        standardize_hf_export(export)
    assert _state(export) == before


def test_a_byte_level_tokenizer_keeps_its_spaces(tmp_path):
    from transformers import AutoTokenizer

    source = tiny_tokenizer()
    source.save_pretrained(tmp_path)
    config = _json(tmp_path / "tokenizer_config.json") | {"tokenizer_class": "TokenizersBackend"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    _, remaps = standardize_hf_export(tmp_path)
    assert remaps == [("TokenizersBackend", "PreTrainedTokenizerFast")]
    text = "two  spaces\nand 123 日本 ü"
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(text)["input_ids"] == source(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text


def test_a_new_style_config_gets_the_legacy_rope_keys_and_reads_the_same(tmp_path):
    from transformers import AutoConfig, LlamaConfig

    yarn = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
    for number, rope in enumerate([{"rope_type": "default", "rope_theta": 5e5}, yarn]):
        folder = tmp_path / str(number)
        LlamaConfig(hidden_size=32, num_attention_heads=4, rope_parameters=rope).save_pretrained(folder)
        wanted = AutoConfig.from_pretrained(folder).rope_parameters
        for key in ("rope_theta", "rope_scaling"):
            assert key not in _json(folder / "config.json")
        assert standardize_hf_export(folder) == ([], [])
        config = _json(folder / "config.json")
        assert config["rope_theta"] == rope["rope_theta"]
        assert (config["rope_scaling"] or {}).get("factor") == rope.get("factor")
        assert AutoConfig.from_pretrained(folder).rope_parameters == wanted
        before = _state(folder)
        standardize_hf_export(folder)
        assert _state(folder) == before


def test_the_documented_table_is_a_constant():
    assert dict(DEEPSEEK_TOKENIZER_CLASS_REMAP) == {"TokenizersBackend": "LlamaTokenizer"}
    assert tools.standardize.__all__
