"""Tiny models through real Megatron-Bridge and back, their logits compared."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.bridge

FIELDS = ["yarn_beta_fast", "yarn_beta_slow", "yarn_mscale", "yarn_mscale_all_dim"]


@pytest.mark.parametrize("yarn", [False, True], ids=["rope", "yarn"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_model_is_the_same_in_megatron_and_after_its_return(
    architecture, yarn, make_model, run_program, tmp_path
):
    model = make_model(architecture, yarn=yarn)
    found = run_program("convert_there_and_back.py", model, tmp_path)
    assert found["hf_model"] == str(model)
    assert found["megatron_path"] == str(tmp_path / "mcore")
    assert found["position_embedding_type"] == ("yarn" if yarn else "rope")
    assert set(found["yarn_patched_fields"]) >= set(FIELDS if yarn else [])
    assert bool(found["yarn_patched_fields"]) == yarn
    assert found["size"] > 1
    assert found["megatron"] < 2e-5
    assert found.get("from_disk", 0.0) < 2e-5
    assert found["back"] == 0.0
    tracker = tmp_path / "mcore" / "latest_checkpointed_iteration.txt"
    assert tracker.read_text(encoding="utf-8").strip() == "0"
    assert not list(tmp_path.glob(".mcore.old")) + list(tmp_path.glob(".mcore.partial"))


def test_yarn_changes_these_logits(make_model, run_program, tmp_path):
    """Without this the comparison above would prove nothing about YARN."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.arange(240).reshape(2, 120) % 300
    logits = []
    for yarn in (False, True):
        model = AutoModelForCausalLM.from_pretrained(make_model("llama", yarn=yarn), dtype=torch.float32)
        with torch.no_grad():
            logits.append(model(ids).logits)
    assert (logits[0] - logits[1]).abs().max() > 0.1
