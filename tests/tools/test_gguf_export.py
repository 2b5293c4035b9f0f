"""GGUF files through a converter that stands where llama.cpp's does and writes real ones."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.tiny import tiny_model, tiny_tokenizer
from tools.errors import ConvertError
from tools.gguf_export import export_gguf

CONVERTER = """\
import argparse, json, pathlib, sys
import gguf, numpy, torch
from conversion import NAMES
from safetensors import safe_open
take = argparse.ArgumentParser()
take.add_argument("model", type=pathlib.Path)
take.add_argument("--outfile", required=True)
take.add_argument("--outtype", choices=["f32", "f16", "bf16", "q8_0", "auto"], required=True)
got = take.parse_args()
config = json.loads((got.model / "config.json").read_text())
writer = gguf.GGUFWriter(got.outfile, config["model_type"])
writer.add_block_count(config["num_hidden_layers"])
with safe_open(got.model / "model.safetensors", "np") as tensors:
    for name in tensors.keys():
        data = tensors.get_tensor(name)
        writer.add_tensor(NAMES.get(name, name), data.astype(numpy.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "merged hf"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def checkout(tmp_path) -> Path:
    folder = tmp_path / "llama.cpp"
    (folder / "conversion").mkdir(parents=True)
    # A module beside the script, as in newer trees, and a folder with the name of a package of ours.
    (folder / "conversion" / "__init__.py").write_text('NAMES = {"lm_head.weight": "output.weight"}\n')
    (folder / "tools").mkdir()
    _script(folder, CONVERTER)
    return folder


def _script(checkout: Path, text: str) -> None:
    (checkout / "convert_hf_to_gguf.py").write_text(text, encoding="utf-8")


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".partial")]


def test_a_model_becomes_one_readable_file(model, checkout, tmp_path):
    import gguf
    import torch
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out dir" / "model.gguf"
    done = export_gguf(model, llama_cpp=checkout, out=out, outtype="f32")
    assert (done.path, done.architecture) == (str(out), "llama")
    assert done.size_bytes == out.stat().st_size
    weights = dict(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).named_parameters())
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(str(out)).tensors}
    assert done.n_tensors == len(tensors) == len(weights)
    wanted = weights["model.norm.weight"].detach().numpy()
    assert (tensors["model.norm.weight"].data == wanted).all()
    assert "output.weight" in tensors
    assert leftovers(out.parent) == []


def test_the_file_lies_beside_the_model_unless_told_otherwise(model, checkout):
    done = export_gguf(model, llama_cpp=checkout)
    assert done.path == str(model.with_name("merged hf-bf16.gguf"))
    Path(done.path).unlink()


def test_a_failed_conversion_leaves_the_former_file_and_names_the_reason(model, checkout, tmp_path):
    out = tmp_path / "model.gguf"
    before = export_gguf(model, llama_cpp=checkout, out=out)
    for text, reason in (
        ("raise SystemExit('no such architecture')", "no such architecture"),
        ("pass", "wrote no file"),
        (CONVERTER + "open(got.outfile, 'r+b').truncate(4000)\n", "no whole GGUF"),
        (CONVERTER + "open(got.outfile, 'r+b').truncate(3)\n", "no whole GGUF"),
        (CONVERTER + "open(got.outfile, 'wb').write(b'PK' * 5000)\n", "no whole GGUF"),
        (CONVERTER.replace("    for name in", "    for name in () and"), "0 tensors"),
    ):
        _script(checkout, text)
        with pytest.raises(ConvertError, match=reason):
            export_gguf(model, llama_cpp=checkout, out=out)
        assert out.stat().st_size == before.size_bytes
        assert leftovers(tmp_path) == []


def test_an_unknown_tokenizer_is_named_with_what_to_do(model, checkout):
    _script(checkout, f"print('** chkhsh:  {'c' * 64}')\nraise NotImplementedError('BPE pre-tokenizer')")
    with pytest.raises(ConvertError, match=f"register {'c' * 64} with register_llama_cpp"):
        export_gguf(model, llama_cpp=checkout)


def test_a_conversion_can_be_stopped_and_has_a_time_limit(model, checkout, tmp_path):
    _script(checkout, "import pathlib, sys, time\npathlib.Path(sys.argv[3]).touch()\ntime.sleep(600)")
    out = tmp_path / "model.gguf"
    with pytest.raises(ConvertError, match="over its limit"):
        export_gguf(model, llama_cpp=checkout, out=out, timeout_s=0.5)
    stop = threading.Event()
    stop.set()
    with pytest.raises(ConvertError, match="stopped on request"):
        export_gguf(model, llama_cpp=checkout, out=out, should_stop=stop.is_set)
    assert leftovers(tmp_path) == []


def test_what_cannot_work_is_refused_before_anything_is_started(model, checkout, tmp_path):
    with pytest.raises(ConvertError, match="'q4_0'"):
        export_gguf(model, llama_cpp=checkout, outtype="q4_0")
    with pytest.raises(ConvertError, match="no model in Hugging Face layout"):
        export_gguf(tmp_path, llama_cpp=checkout)
    with pytest.raises(ConvertError, match="a checkout of llama"):
        export_gguf(model, llama_cpp=tmp_path)
