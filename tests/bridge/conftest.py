"""A container in which real Megatron-Bridge runs on the CPU."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fake_docker import FakeDocker
from tests.tiny import tiny_model, tiny_tokenizer
from tools.recipe import TrainRecipe
from tools.standardize import standardize_hf_export

ROOT = Path(__file__).parent.parent.parent
ON_CPU = Path(__file__).parent / "on_cpu"
PYTHON = Path(os.environ.get("BAKEHOUSE_BRIDGE_PYTHON", ROOT / ".cache" / "bridge" / "bin" / "python"))

MakeModel = Callable[..., Path]


@pytest.fixture(scope="session")
def bridge_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python whose Megatron-Bridge needs no GPU, whatever program it runs."""
    if not PYTHON.exists():
        pytest.fail(f"{PYTHON} is missing; `make bridge` makes it")
    wrapper = tmp_path_factory.mktemp("python") / "python"
    wrapper.write_text(
        "#!/bin/bash\nexport TORCHDYNAMO_DISABLE=1 OMP_NUM_THREADS=1 CUDA_DEVICE_MAX_CONNECTIONS=1\n"
        "export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=ignore\n"
        # What torchrun tells its workers.
        "export RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1\n"
        "export MASTER_PORT=$((20000 + RANDOM % 9000))\n"
        f'export PYTHONPATH="{ON_CPU}:$PYTHONPATH"\nexec "{PYTHON}" "$@"\n',
        encoding="utf-8",
    )
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    return str(wrapper)


@pytest.fixture
def run_program(bridge_python: str, tmp_path: Path) -> Callable[..., Any]:
    """Runs a program of this folder and returns the last line it prints, as JSON."""

    def run(name: str, *arguments: object) -> Any:
        command = [bridge_python, str(Path(__file__).parent / name), *map(str, arguments)]
        done = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Saves a tiny model in a layout that transformers 4 and 5 read alike."""

    def make(architecture: str, *, yarn: bool = False) -> Path:
        tokenizer = tiny_tokenizer()
        rope: dict[str, Any] = {"rope_theta": 10000.0, "rope_type": "default"}
        if yarn:
            rope |= {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
        model = tiny_model(
            architecture,  # type: ignore[arg-type]
            vocab_size=len(tokenizer),
            tie_word_embeddings=False,
            rope_parameters=rope,
        )
        folder = tmp_path / f"{architecture}-base"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        standardize_hf_export(folder)
        return folder

    return make


@pytest.fixture
def recipe(
    make_model: MakeModel, bridge_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TrainRecipe:
    """A LoRA run of a tiny model on the nemo lane, its container stood in for."""
    monkeypatch.delenv("FK_SFT_PROGRESS_DIR", raising=False)
    docker = FakeDocker(tmp_path / "docker", "nemo-train", python=bridge_python)
    monkeypatch.setenv("PATH", f"{docker.bin}{os.pathsep}{os.environ['PATH']}")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"go to waypoint {n}"},
                {"role": "assistant", "content": f"ok {n}"},
            ]
        }
        for n in range(6)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return TrainRecipe(
        base_model=str(make_model("llama")),
        dataset_jsonl=str(tmp_path / "rows.jsonl"),
        output_dir=str(tmp_path / "out"),
        backend="nemo",
        torch_dtype="float32",
        lora_rank=4,
        lora_alpha=8,
        lora_dropout=0.0,
        learning_rate=1e-2,
        micro_batch_size=2,
        global_batch_size=4,
        max_steps=5,
        smoke_steps=2,
        save_interval=2,
        most_recent_k=-1,
        seq_length=128,
        packing=False,
    )
