"""Parity of exports: a right one passes, and each way to spoil one is seen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.tiny import tiny_model, tiny_tokenizer
from tools.errors import MergeExportError
from tools.merge import merge_and_export
from tools.parity import check_parity
from tools.recipe import TrainRecipe

# peft reads an attribute that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A tiny base, two adapters, real rows, and the export of the first adapter."""
    import torch
    from peft import LoraConfig, get_peft_model

    root = tmp_path_factory.mktemp("parity")
    tiny_model("llama").save_pretrained(root / "base")
    tiny_tokenizer().save_pretrained(root / "base")
    for seed, folder in ((0, root / "out/runs-full/iter_0000005"), (1, root / "other")):
        torch.manual_seed(seed)
        model = get_peft_model(
            tiny_model("llama"), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
        )
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(folder)
    (root / "out/runs-full/latest_checkpointed_iteration.txt").write_text("5", encoding="utf-8")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"take off to {n} metres"},
                {"role": "assistant", "content": f'{{"cmd": "takeoff", "alt": {n}}}'},
            ]
        }
        for n in range(12)
    ]
    (root / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    result = merge_and_export(recipe_of(root))
    assert result.standardize_applied
    return root


def recipe_of(root: Path) -> TrainRecipe:
    return TrainRecipe(
        base_model=str(root / "base"), dataset_jsonl=str(root / "rows.jsonl"), output_dir=str(root / "out")
    )


def check(root: Path, export: Path, *, adapter: Path | None = None, n_rows: int = 4):
    first = root / "out/runs-full/iter_0000005"
    return check_parity(str(root / "base"), adapter or first, export, root / "rows.jsonl", n_rows=n_rows)


@pytest.fixture
def export(house, tmp_path) -> Path:
    """A copy of the right export, to spoil."""
    return Path(shutil.copytree(house / "out/merged-hf-bf16", tmp_path / "export"))


def test_a_right_export_answers_like_its_adapter(house, export):
    found = check(house, export)
    assert found.problems == ()
    assert found.n_rows == 4
    assert found.same_choice > 0.9
    assert found.n_tokens > 40
    assert found.export < 1e-6
    # The adapter does something, so that agreement means something.
    assert found.adapter_effect > 0.1
    assert 0 < found.rounding < 0.04
    assert [path.name for path in export.parent.iterdir()] == ["export"]


def test_another_adapter_than_the_merged_one_is_seen(house, export):
    found = check(house, export, adapter=house / "other")
    assert found.export > 0.05
    assert any("export's logits" in problem for problem in found.problems)


def test_a_config_that_changed_on_the_way_is_seen(house, export):
    config = json.loads((export / "config.json").read_text(encoding="utf-8"))
    config["rope_parameters"]["rope_theta"] = config["rope_theta"] = 500.0
    (export / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert any("export's logits" in problem for problem in check(house, export).problems)


def test_a_tokenizer_that_changed_on_the_way_is_seen(house, export):
    tokenizer = json.loads((export / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:3]
    (export / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(MergeExportError, match="tokenizer is not the base model's"):
        check(house, export)


def test_what_cannot_be_compared_is_an_error(house, export, tmp_path):
    with pytest.raises(MergeExportError, match="no peft adapter"):
        check(house, export, adapter=tmp_path)
    with pytest.raises(MergeExportError, match="n_rows is 0"):
        check(house, export, n_rows=0)
    (export / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(MergeExportError, match=r"parity: (.|\n)*exit code 1"):
        check(house, export)
