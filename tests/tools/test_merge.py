"""Merges by real commands: the local lane's worker, and scripts behind an executable called docker."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.fake_docker import FakeDocker
from tests.tiny import tiny_tokenizer
from tools.errors import MergeExportError
from tools.merge import MergeExportResult, merge_and_export
from tools.merge_worker import prove_tokenizer
from tools.recipe import TrainRecipe

# peft reads an attribute that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

OLD, NEW = "model-00001-of-000001.safetensors", "model-00001-of-00001.safetensors"

# What the tools of Megatron-Bridge leave on disk, written from the arguments that they take.
MERGE_OLD = """\
import argparse, json, pathlib
take = argparse.ArgumentParser()
for name in ("--lora-checkpoint", "--hf-model-path", "--output"):
    take.add_argument(name, required=True)
got = take.parse_args()
assert pathlib.Path(got.lora_checkpoint, "run_config.yaml").is_file()
pathlib.Path(got.output, "iter_0000000").mkdir(parents=True)
"""
EXPORT_OLD = f"""\
import argparse, json, pathlib
take = argparse.ArgumentParser()
take.add_argument("action", choices=["export"])
for name in ("--hf-model", "--megatron-path", "--hf-path"):
    take.add_argument(name, required=True)
got = take.parse_args()
assert pathlib.Path(got.megatron_path, "iter_0000000").is_dir()
out = pathlib.Path(got.hf_path)
out.mkdir()
(out / "{OLD}").write_bytes(b"weights")
(out / "model.safetensors.index.json").write_text(json.dumps({{"weight_map": {{"w": "{OLD}"}}}}))
(out / "tokenizer_config.json").write_text('{{"tokenizer_class": "TokenizersBackend"}}')
"""
MERGE_NEW = """\
import argparse, pathlib
take = argparse.ArgumentParser()
for name in ("--lora-checkpoint", "--hf-model-path", "--output"):
    take.add_argument(name, required=True)
out = pathlib.Path(take.parse_args().output)
out.mkdir()
(out / "config.json").write_text("{}")
(out / "model.safetensors").write_bytes(b"weights")
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> TrainRecipe:
    docker = FakeDocker(tmp_path / "docker", "nemo-train")
    monkeypatch.setenv("PATH", f"{docker.bin}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    recipe = TrainRecipe(
        base_model="some/model",
        dataset_jsonl=str(tmp_path / "rows.jsonl"),
        output_dir=str(tmp_path / "out put"),
        backend="nemo",
        extra_env={"BRIDGE_DIR": str(tmp_path / "bridge")},
    )
    for number in (600, 625):
        checkpoint = recipe.run_dir("full") / f"iter_{number:07d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "run_config.yaml").touch()
    (recipe.run_dir("full") / "latest_checkpointed_iteration.txt").write_text("625", encoding="utf-8")
    _script(tmp_path, "examples/peft/merge_lora.py", MERGE_OLD)
    _script(tmp_path, "examples/conversion/convert_checkpoints.py", EXPORT_OLD)
    return recipe


def _script(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / "bridge" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_nemo_merges_exports_and_standardizes(recipe):
    result = merge_and_export(recipe, expect_iter=625)
    out = Path(recipe.output_dir)
    assert result == MergeExportResult(
        backend="nemo",
        source_iter=625,
        merged_hf_dir=str(out / "merged-hf-bf16"),
        merged_mcore_dir=str(out / "merged-mcore"),
        tokenizer_class_remapped=(("TokenizersBackend", "LlamaTokenizer"),),
        shard_renames=((OLD, NEW),),
        standardize_applied=True,
    )
    assert hash(result)
    assert (out / "merged-hf-bf16" / NEW).read_bytes() == b"weights"
    assert not list(out.glob(".*.old")) + list(out.glob(".*.partial")) + list(out.glob(".*.trash"))


def test_a_bridge_that_writes_hugging_face_at_once_needs_no_export(recipe, tmp_path):
    _script(tmp_path, "examples/peft/merge_lora.py", MERGE_NEW)
    (tmp_path / "bridge/examples/conversion/convert_checkpoints.py").unlink()
    result = merge_and_export(recipe)
    assert (result.merged_mcore_dir, result.standardize_applied) == (None, True)
    assert (Path(result.merged_hf_dir) / "model.safetensors").is_file()


def test_the_raw_export_can_be_had(recipe):
    result = merge_and_export(recipe, iter=600, standardize=False)
    assert (result.source_iter, result.shard_renames, result.standardize_applied) == (600, (), False)
    assert (Path(result.merged_hf_dir) / OLD).is_file()


def test_the_documented_commands_are_handed_to_a_runner(recipe):
    commands: list[list[str]] = []

    def runner(command: list[str]) -> int:
        commands.append(command)
        if len(commands) == 2:
            out = Path(recipe.output_dir) / "merged-hf-bf16"
            out.mkdir()
            (out / "model.safetensors").touch()
        return 0

    merge_and_export(recipe.replace(extra_env={}), runner=runner)
    merge, export = commands
    for command in commands:
        assert command[:7] == ["docker", "exec", "-w", "/tmp", "nemo-train", "bash", "-lc"]
    assert "torchrun --nproc_per_node=1 /opt/Megatron-Bridge/examples/peft/merge_lora.py" in merge[7]
    assert "/opt/Megatron-Bridge/examples/conversion/convert_checkpoints.py export" in export[7]
    assert "--megatron-path" in export[7]


def test_a_failure_names_its_stage_and_brings_the_old_export_back(recipe, tmp_path):
    old = Path(merge_and_export(recipe, standardize=False).merged_hf_dir)
    (old / "mark").touch()
    _script(
        tmp_path, "examples/conversion/convert_checkpoints.py", EXPORT_OLD + "raise SystemExit('no room')"
    )
    with pytest.raises(MergeExportError, match=r"export: (.|\n)*no room"):
        merge_and_export(recipe)
    assert (old / "mark").exists()
    _script(tmp_path, "examples/peft/merge_lora.py", "raise SystemExit(3)")
    with pytest.raises(MergeExportError, match=r"merge: .*exit code 3"):
        merge_and_export(recipe)
    assert (old / "mark").exists()


def test_an_export_that_is_not_whole_is_refused(recipe, tmp_path):
    cut = EXPORT_OLD + f'(out / "{OLD}").unlink()'
    _script(tmp_path, "examples/conversion/convert_checkpoints.py", cut)
    with pytest.raises(MergeExportError, match=r"export: .*not whole"):
        merge_and_export(recipe)
    _script(tmp_path, "examples/conversion/convert_checkpoints.py", "")
    with pytest.raises(MergeExportError, match=r"export: .*not whole"):
        merge_and_export(recipe)
    assert not (Path(recipe.output_dir) / "merged-hf-bf16").exists()


def test_the_checkpoint_has_to_be_the_expected_one_and_be_there(recipe):
    with pytest.raises(MergeExportError, match="625, not 500"):
        merge_and_export(recipe, expect_iter=500)
    with pytest.raises(MergeExportError, match="no checkpoint 50 "):
        merge_and_export(recipe, iter=50)
    (recipe.run_dir("full") / "latest_checkpointed_iteration.txt").unlink()
    with pytest.raises(MergeExportError, match="names no checkpoint"):
        merge_and_export(recipe)


def test_a_checkpoint_without_its_run_config_is_refused(recipe):
    (recipe.run_dir("full") / "iter_0000625" / "run_config.yaml").unlink()
    os.utime(recipe.run_dir("full") / "latest_checkpointed_iteration.txt", (1, 1))
    with pytest.raises(MergeExportError, match="default LoRA"):
        merge_and_export(recipe)


def test_a_run_config_that_is_still_to_come_is_waited_for(recipe):
    import threading

    config = recipe.run_dir("full") / "iter_0000625" / "run_config.yaml"
    config.unlink()
    late = threading.Timer(0.2, config.touch)
    late.start()
    assert merge_and_export(recipe).source_iter == 625
    late.join()


def test_bad_recipes_are_refused(recipe):
    with pytest.raises(MergeExportError, match="preflight"):
        merge_and_export(recipe.replace(lora_rank=0))


def test_unsloth_runs_the_callers_script_with_the_documented_variables(recipe, tmp_path, monkeypatch):
    docker = FakeDocker(tmp_path / "unsloth", "ps-train")
    monkeypatch.setenv("PATH", f"{docker.bin}{os.pathsep}{os.environ['PATH']}")
    checkpoint = recipe.run_dir("full") / "checkpoint-650"
    checkpoint.mkdir()
    script = (
        f'[ "$BASE_MODEL" = some/model ] && [ "$LORA_CKPT" = "{checkpoint}" ] && '
        'mkdir "$MERGED_HF" && echo x > "$MERGED_HF/model.safetensors"'
    )
    (tmp_path / "merge.sh").write_text(script, encoding="utf-8")
    wanted = recipe.replace(backend="unsloth", extra_env={"MERGE_SCRIPT": str(tmp_path / "merge.sh")})
    result = merge_and_export(wanted, iter=650)
    assert (result.backend, result.source_iter, result.merged_mcore_dir) == ("unsloth", 650, None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> TrainRecipe:
    """A run folder with an adapter of peft's own making, its product far from zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("local")
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )
    model = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    (folder / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    recipe = TrainRecipe(
        base_model=str(folder / "base"),
        dataset_jsonl=str(folder / "rows.jsonl"),
        output_dir=str(folder / "out"),
    )
    for number in (5, 10):
        peft = get_peft_model(
            LlamaForCausalLM.from_pretrained(folder / "base"),
            LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
        )
        peft.save_pretrained(recipe.run_dir("full") / f"iter_{number:07d}")
    (recipe.run_dir("full") / "latest_checkpointed_iteration.txt").write_text("10", encoding="utf-8")
    return recipe


def test_the_local_export_gives_the_logits_of_base_and_adapter(trained):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = merge_and_export(trained)
    assert (result.backend, result.source_iter) == ("local", 10)
    assert result.tokenizer_class_remapped in ((), (("TokenizersBackend", "PreTrainedTokenizerFast"),))
    merged = AutoModelForCausalLM.from_pretrained(result.merged_hf_dir, dtype="auto")
    assert merged.dtype == torch.bfloat16
    assert merged.config.rope_parameters["rope_theta"] == 5e5
    saved = json.loads((Path(result.merged_hf_dir) / "config.json").read_text(encoding="utf-8"))
    assert saved["rope_theta"] == 5e5
    base = AutoModelForCausalLM.from_pretrained(trained.base_model, dtype=torch.float32)
    plain = base.state_dict()["model.layers.0.self_attn.q_proj.weight"].clone()
    adapted = PeftModel.from_pretrained(base, trained.run_dir("full") / "iter_0000010")
    ids = AutoTokenizer.from_pretrained(result.merged_hf_dir)(
        "fly to 10\n日本", return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        wanted, got = adapted(ids).logits, merged.float()(ids).logits
    torch.testing.assert_close(got, wanted, atol=0.02, rtol=0.02)
    assert not torch.equal(merged.state_dict()["model.layers.0.self_attn.q_proj.weight"], plain)


def test_unsloth_merges_with_the_shipped_code_in_the_container(trained, tmp_path, monkeypatch):
    docker = FakeDocker(tmp_path / "docker", "ps-train")
    monkeypatch.setenv("PATH", f"{docker.bin}{os.pathsep}{os.environ['PATH']}")
    # Nothing of this checkout is on the container's path but what the lane ships.
    monkeypatch.chdir(tmp_path)
    result = merge_and_export(trained.replace(backend="unsloth"))
    assert (result.backend, result.source_iter, result.standardize_applied) == ("unsloth", 10, True)
    assert (Path(result.merged_hf_dir) / "model.safetensors").is_file()
    (call,) = docker.calls
    assert "tools.merge_worker" in call
    assert f"PYTHONPATH={trained.output_dir}" in call


def test_the_local_lane_takes_the_best_checkpoint_where_one_was_found(trained):
    best = trained.run_dir("full") / "best_checkpointed_iteration.txt"
    best.write_text("5", encoding="utf-8")
    try:
        assert merge_and_export(trained, standardize=False).source_iter == 5
        with pytest.raises(MergeExportError, match="5, not 10"):
            merge_and_export(trained, expect_iter=10)
    finally:
        best.unlink()


def test_a_tokenizer_that_lost_its_spaces_is_not_let_out(trained):
    old = Path(merge_and_export(trained).merged_hf_dir)
    prove_tokenizer(trained.base_model, old)
    tokenizer = json.loads((old / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    (old / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(MergeExportError, match="restore the base model's tokenizer"):
        prove_tokenizer(trained.base_model, old)


def test_a_known_model_that_was_never_fetched_is_an_error_that_says_how(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("BAKEHOUSE_CACHE", str(tmp_path))
    with pytest.raises(MergeExportError, match=r"merge: .*fetch"):
        merge_and_export(trained.replace(base_model="smollm2-135m-instruct-q4_1"))


def test_an_adapter_that_cannot_be_read_is_an_error_with_its_log(trained):
    weights = trained.run_dir("full") / "iter_0000010" / "adapter_model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[: len(good) // 2])
    try:
        with pytest.raises(MergeExportError, match=r"merge: the merge ended with exit code 1"):
            merge_and_export(trained)
    finally:
        weights.write_bytes(good)
