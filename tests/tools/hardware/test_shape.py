"""Shapes of base models, from config.json and from GGUF headers."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tools.errors import ModelError
from tools.hardware import ModelShape, read_shape

SMOL = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 30,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
SMOL_SHAPE = ModelShape(30, 576, 1536, 9, 3, 64, 49152, tied=True)


def _config(folder: Path, config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_folder_is_read_from_its_config(tmp_path: Path) -> None:
    shape = read_shape(_config(tmp_path, SMOL))
    assert shape == SMOL_SHAPE
    # The published count of SmolLM2-135M is 134,515,008 with its norms.
    assert shape.n_params == pytest.approx(134_515_008, rel=1e-3)
    assert shape.kv_width == 192


def test_the_count_of_a_real_model_agrees_with_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=176, num_attention_heads=4, num_key_value_heads=2,
        num_hidden_layers=3, vocab_size=500, tie_word_embeddings=False,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert read_shape(tmp_path).n_params == pytest.approx(model.num_parameters(), rel=0.01)


def test_sizes_one_level_down_and_of_experts_are_found(tmp_path: Path) -> None:
    nested = {"text_config": {**SMOL, "num_experts": 8, "moe_intermediate_size": 256, "head_dim": 128}}
    shape = read_shape(_config(tmp_path, nested))
    assert (shape.n_experts, shape.intermediate, shape.head_dim) == (8, 256, 128)
    assert shape.projections["q_proj"] == (576, 9 * 128)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ([], "config is an object"),
        ({**SMOL, "hidden_size": "576"}, "hidden_size is '576'"),
        ({**SMOL, "hidden_size": -1}, "hidden_size is -1"),
        ({**SMOL, "num_hidden_layers": True}, "num_hidden_layers is True"),
        ({key: value for key, value in SMOL.items() if key != "vocab_size"}, "vocab_size is None"),
    ],
)
def test_a_config_that_does_not_say_the_sizes_is_refused(tmp_path: Path, config: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        read_shape(_config(tmp_path, config))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model at"):
        read_shape(tmp_path / "none")
    with pytest.raises(ModelError, match="cannot be read"):
        read_shape(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        read_shape(tmp_path)


def _gguf(path: Path, *, tied: bool) -> Path:
    gguf = pytest.importorskip("gguf")
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(30)
    writer.add_embedding_length(576)
    writer.add_feed_forward_length(1536)
    writer.add_head_count(9)
    writer.add_head_count_kv(3)
    writer.add_rope_freq_base(10000.0)
    writer.add_token_list([f"tök{n}" for n in range(300)])
    writer.add_token_types([1] * 300)
    names = ["token_embd.weight"] if tied else ["token_embd.weight", "output.weight"]
    for name in names:
        writer.add_tensor(name, np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_header_is_read_without_its_tensors(tmp_path: Path, tied: bool) -> None:
    shape = read_shape(_gguf(tmp_path / "model.gguf", tied=tied))
    assert shape == ModelShape(30, 576, 1536, 9, 3, 64, 300, tied=tied)


def test_a_gguf_file_cut_anywhere_in_its_header_is_refused(tmp_path: Path) -> None:
    data = _gguf(tmp_path / "whole.gguf", tied=True).read_bytes()
    end = data.index(b"token_embd.weight")
    cut = tmp_path / "cut.gguf"
    for length in range(0, end, 7):
        cut.write_bytes(data[:length])
        with pytest.raises(ModelError):
            read_shape(cut)


@pytest.mark.parametrize(
    "data",
    [
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63),
        b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0),
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**62) + b"x",
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + struct.pack("<Q", 1)
        + b"k"
        + struct.pack("<IIQ", 9, 4, 2**62),
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + struct.pack("<Q", 1)
        + b"k"
        + struct.pack("<IIQ", 9, 8, 2**62),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<I", 99),
        b"PK\x03\x04" + bytes(64),
    ],
)
def test_a_hostile_gguf_header_is_refused_at_once(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelError, match="no readable GGUF"):
        read_shape(path)
