"""merge, export and push through the command line, on a trial's run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agent.bench import make_workspace, write_base
from tests.tiny import tiny_model
from tests.tools.test_gguf_export import CONVERTER

# peft reads an attribute that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TRIAL = "i0001-c1-s17"


def bakehouse(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-P", "-m", "agent", *map(str, arguments)],
        cwd=cwd,
        env=environment | {"HF_HOME": str(cwd / ".bakehouse" / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one trial, its adapter as a run leaves it."""
    import torch
    from peft import LoraConfig, get_peft_model

    root = tmp_path_factory.mktemp("export") / "a workspace"
    root.mkdir()
    base = write_base(root.parent / "base")
    make_workspace(root, base)
    run_dir = root / ".bakehouse" / "runs" / TRIAL / "runs-full"
    shape = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "initializer_range": 0.1}
    model = get_peft_model(tiny_model(**shape), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(run_dir / "iter_0000008")
    (run_dir / "latest_checkpointed_iteration.txt").write_text("8", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def merged(workspace: Path) -> Path:
    done = bakehouse("merge", "--trial", TRIAL, "--check", "--rows", 3, "--json", cwd=workspace)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["iteration"], facts["parity"]["n_rows"]) == (8, 3)
    assert facts["parity"]["adapter_effect"] > facts["parity"]["rounding"]
    return Path(facts["merged_hf_dir"])


def test_a_trial_is_merged_beside_its_run(workspace: Path, merged: Path) -> None:
    assert merged == workspace / ".bakehouse" / "runs" / TRIAL / "merged-hf-bf16"
    assert (merged / "model.safetensors").is_file()


def test_a_merged_model_becomes_a_gguf_file(workspace: Path, merged: Path, tmp_path: Path) -> None:
    (tmp_path / "conversion.py").write_text("NAMES = {}\n", encoding="utf-8")
    converter = CONVERTER.replace('"np"', '"pt"').replace(
        "data.astype(numpy.float32)", "data.float().numpy()"
    )
    (tmp_path / "convert_hf_to_gguf.py").write_text(converter, encoding="utf-8")
    out = tmp_path / "model.gguf"
    done = bakehouse("export", merged, "--gguf", out, "--llama-cpp", tmp_path, "--json", cwd=workspace)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["path"], facts["architecture"]) == (str(out), "llama")
    assert facts["size_bytes"] == out.stat().st_size


def test_nothing_is_pushed_without_a_token(workspace: Path, merged: Path) -> None:
    done = bakehouse("push", merged, "--repo", "acme/router", cwd=workspace)
    assert done.returncode == 1
    assert "hf auth login" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_trial_that_never_ran_is_an_error_that_names_those_that_did(workspace: Path) -> None:
    for trial in ("i0009-c9-s1", "none"):
        done = bakehouse("merge", "--trial", trial, cwd=workspace)
        assert done.returncode == 1
        assert TRIAL in done.stderr
    outside = bakehouse("merge", "--trial", "../../../base", cwd=workspace)
    assert outside.returncode == 1
    assert "leaves the workspace" in " ".join(outside.stderr.split())
