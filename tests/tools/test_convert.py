"""What of the conversion needs no Megatron: the YARN patch, refusals, llama.cpp's table."""

from __future__ import annotations

import os
import stat
from types import SimpleNamespace

import pytest

from tools.convert import YARN_DEFAULTS, HFToMegatron, patch_yarn_defaults
from tools.errors import ConvertError, MergeExportError
from tools.pretokenizer import (
    DEEPSEEK_R1_0528_QWEN3_TOKENIZER_HASH,
    register_llama_cpp_pretokenizer_hash,
)

OLD_HASH = "a" * 64
NEW_HASH = DEEPSEEK_R1_0528_QWEN3_TOKENIZER_HASH

TABLE = f'''\
    # Marker: Start get_vocab_base_pre
    def get_vocab_base_pre(self, chkhsh) -> str:
        res = None

        # NOTE: generated
        if chkhsh == "{"b" * 64}":
            # ref: https://huggingface.co/some/model
            res = "llama-bpe"
        if chkhsh == "{OLD_HASH}":
            # ref: https://huggingface.co/other/model
            res = "qwen2"

        if res is None:
            raise NotImplementedError("not recognized")

        return res
        # Marker: End get_vocab_base_pre
'''
SCRIPT = (
    f"class Model:\n{TABLE}\n    def other(self, chkhsh):\n        if chkhsh == 1:\n            res = 2\n"
)


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "convert_hf_to_gguf.py"
    path.write_text(SCRIPT, encoding="utf-8")
    path.chmod(0o755)
    return path


def answer(path, chkhsh: str) -> str:
    """What the patched table says about a hash: the file is run."""
    namespace: dict = {}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), namespace)
    return namespace["Model"]().get_vocab_base_pre(chkhsh)


def test_a_provider_gets_the_defaults_that_it_lacks_and_no_others():
    provider = SimpleNamespace(position_embedding_type="yarn", yarn_beta_fast=16.0, yarn_beta_slow=None)
    assert patch_yarn_defaults(provider) == [name for name in YARN_DEFAULTS if name != "yarn_beta_fast"]
    assert (provider.yarn_beta_fast, provider.yarn_beta_slow) == (16.0, 1.0)
    assert provider.yarn_correction_range_round_to_int is True
    assert patch_yarn_defaults(provider) == []


def test_a_provider_without_yarn_is_left_alone():
    provider = SimpleNamespace(position_embedding_type="rope", yarn_beta_fast=None)
    assert patch_yarn_defaults(provider) == []
    assert provider.yarn_beta_fast is None
    assert patch_yarn_defaults(SimpleNamespace()) == []


def test_the_defaults_are_the_documented_ones():
    assert YARN_DEFAULTS == {
        "yarn_beta_fast": 32.0,
        "yarn_beta_slow": 1.0,
        "yarn_mscale": 1.0,
        "yarn_mscale_all_dim": 0.0,
        "yarn_correction_range_round_to_int": True,
    }


def test_outside_the_container_the_conversion_says_where_to_run(tmp_path):
    job = HFToMegatron(hf_model=tmp_path / "hf", megatron_path=tmp_path / "mcore")
    assert hash(job)
    assert job.torch_dtype == "bfloat16"
    with pytest.raises(ConvertError, match=r"megatron-bridge.*NeMo container"):
        job.run()
    assert not (tmp_path / "mcore").exists()
    with pytest.raises(ConvertError, match="float8"):
        HFToMegatron("a", "b", torch_dtype="float8").run()  # type: ignore[arg-type]
    assert issubclass(ConvertError, MergeExportError)
    assert issubclass(ConvertError, RuntimeError)


def test_a_new_hash_is_known_afterwards_and_the_others_still_are(script):
    assert register_llama_cpp_pretokenizer_hash(
        script, chkhsh=NEW_HASH, pre_tokenizer="qwen35", model_ref="https://huggingface.co/x/y", note="why"
    )
    assert answer(script, NEW_HASH) == "qwen35"
    assert answer(script, OLD_HASH) == "qwen2"
    with pytest.raises(NotImplementedError):
        answer(script, "c" * 64)
    text = script.read_text(encoding="utf-8")
    assert (
        text.replace(
            f'        if chkhsh == "{NEW_HASH}":\n            # ref: https://huggingface.co/x/y\n'
            '            # why\n            res = "qwen35"\n',
            "",
        )
        == SCRIPT
    )
    assert text.index(NEW_HASH) < text.index("if res is None")


def test_the_second_time_nothing_is_written(script):
    assert register_llama_cpp_pretokenizer_hash(script, chkhsh=NEW_HASH.upper(), pre_tokenizer="qwen35")
    before = (script.read_bytes(), script.stat().st_ino)
    assert not register_llama_cpp_pretokenizer_hash(script, chkhsh=NEW_HASH, pre_tokenizer="qwen35")
    assert (script.read_bytes(), script.stat().st_ino) == before
    assert not register_llama_cpp_pretokenizer_hash(script, chkhsh=OLD_HASH, pre_tokenizer="x")


def test_a_hash_in_a_comment_does_not_count_as_known(script):
    text = SCRIPT.replace("# NOTE: generated", f"# NOTE: not {NEW_HASH}")
    script.write_text(text, encoding="utf-8")
    assert register_llama_cpp_pretokenizer_hash(script, chkhsh=NEW_HASH, pre_tokenizer="qwen35")
    assert answer(script, NEW_HASH) == "qwen35"


def test_the_mode_the_link_and_the_line_ends_stay(script, tmp_path):
    script.write_bytes(SCRIPT.replace("\n", "\r\n").encode())
    link = tmp_path / "link.py"
    link.symlink_to(script)
    assert register_llama_cpp_pretokenizer_hash(link, chkhsh=NEW_HASH, pre_tokenizer="qwen35")
    assert link.is_symlink()
    assert stat.S_IMODE(script.stat().st_mode) == 0o755
    data = script.read_bytes()
    assert data.count(b"\n") == data.count(b"\r\n")


def test_a_newer_checkout_is_patched_where_its_table_is(tmp_path):
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text("from conversion import main\nmain()\n", encoding="utf-8")
    base = tmp_path / "conversion" / "base.py"
    base.parent.mkdir()
    base.write_text(SCRIPT, encoding="utf-8")
    assert register_llama_cpp_pretokenizer_hash(script, chkhsh=NEW_HASH, pre_tokenizer="qwen35")
    assert answer(base, NEW_HASH) == "qwen35"
    assert NEW_HASH not in script.read_text(encoding="utf-8")
    assert not register_llama_cpp_pretokenizer_hash(base, chkhsh=NEW_HASH, pre_tokenizer="qwen35")


def test_a_chain_without_markers_and_without_an_end_is_enough(tmp_path):
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text(
        f'class Model:\n    def get_vocab_base_pre(self, chkhsh):\n        res = ""\n'
        f'        if chkhsh == "{OLD_HASH}":\n            res = "qwen2"\n        return res',
        encoding="utf-8",
    )
    assert register_llama_cpp_pretokenizer_hash(script, chkhsh=NEW_HASH, pre_tokenizer="qwen35")
    assert (answer(script, NEW_HASH), answer(script, OLD_HASH)) == ("qwen35", "qwen2")


@pytest.mark.parametrize(
    "hostile",
    ['x"\nimport os', "x\\", 'a"; res = "b', "line\rbreak", "nul\0", "\u2028", "\x85", "🦙", "\x7f", "'''"],
)
def test_what_is_inserted_is_data_and_never_code(script, hostile):
    register_llama_cpp_pretokenizer_hash(
        script, chkhsh=NEW_HASH, pre_tokenizer=hostile, model_ref=hostile, note=hostile
    )
    assert answer(script, NEW_HASH) == hostile
    assert answer(script, OLD_HASH) == "qwen2"


def test_what_cannot_be_patched_is_refused_and_left_alone(script, tmp_path):
    for chkhsh in ("", "abc", "g" * 64, "a" * 65, f"{OLD_HASH}\n"):
        with pytest.raises(ConvertError, match="64 hexadecimal"):
            register_llama_cpp_pretokenizer_hash(script, chkhsh=chkhsh, pre_tokenizer="x")
    with pytest.raises(ConvertError, match="empty"):
        register_llama_cpp_pretokenizer_hash(script, chkhsh=NEW_HASH, pre_tokenizer=" ")
    with pytest.raises(ConvertError, match="no file"):
        register_llama_cpp_pretokenizer_hash(tmp_path / "none.py", chkhsh=NEW_HASH, pre_tokenizer="x")
    with pytest.raises(ConvertError, match="cannot be rewritten"):
        register_llama_cpp_pretokenizer_hash(script, chkhsh=NEW_HASH, pre_tokenizer="\ud800")
    assert script.read_text(encoding="utf-8") == SCRIPT
    for text in ("print('another program')\n", "if chkhsh == 1:\n    pass\n"):
        script.write_text(text, encoding="utf-8")
        with pytest.raises(ConvertError, match="chkhsh =="):
            register_llama_cpp_pretokenizer_hash(script, chkhsh=NEW_HASH, pre_tokenizer="x")
        assert script.read_text(encoding="utf-8") == text
    assert os.listdir(tmp_path) == ["convert_hf_to_gguf.py"]
