"""Make `.cache/bridge`, an environment with Megatron-Bridge for a CPU: plain venv and pip.

Megatron-Bridge asks for packages that build only where CUDA is, so that what it really imports
is installed beside it by name. A finished environment costs nothing and needs no network.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent / ".cache" / "bridge"
STEPS = (
    ("torch==2.13.0",),
    ("--no-deps", "megatron-core==0.16.1", "megatron-bridge==0.3.1"),
    (
        *("transformers<5", "datasets", "accelerate", "omegaconf", "tensorboard", "rich", "wandb", "six"),
        *("regex", "pyyaml", "tqdm", "hydra-core>1.3,<=1.3.2", "einops", "sentencepiece", "tiktoken"),
        *("triton", "nvidia-modelopt==0.41.0", "safetensors", "psutil"),
    ),
)


def main() -> int:
    """Bring the environment up to date; return an exit code."""
    stamp, wanted = HOME / ".installed", hashlib.sha256(repr(STEPS).encode()).hexdigest()
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
            return 0
        if HOME.is_symlink():
            HOME.unlink()
        shutil.rmtree(HOME, ignore_errors=True)
        sys.stderr.write("== making .cache/bridge (minutes, 3 GB)\n")
        subprocess.run([sys.executable, "-I", "-m", "venv", str(HOME)], check=True)
        environment = {**os.environ, "PIP_USER": "0"}
        for step in STEPS:
            command = [str(HOME / "bin" / "python"), "-I", "-m", "pip", "install", "--no-input", *step]
            done = subprocess.run(
                [*command, "--quiet", "--disable-pip-version-check"], env=environment, check=False
            )
            if done.returncode:
                sys.stderr.write("== pip did not finish; run the same command again\n")
                return 1
        partial = stamp.with_suffix(".partial")
        partial.write_text(wanted, encoding="utf-8")
        os.replace(partial, stamp)
    return 0


if __name__ == "__main__":
    sys.exit(main())
