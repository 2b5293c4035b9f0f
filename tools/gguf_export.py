"""A Hugging Face export as one GGUF file, by the converter of a llama.cpp checkout."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tools.child import Child, tail, termination_as_exit, watch
from tools.errors import ConvertError, LockHeldError, TrainError
from tools.extras import require_extra
from tools.files import digest_file
from tools.lanes.local import explain_end
from tools.run_folder import held

__all__ = ["OUT_TYPES", "GgufExport", "export_gguf"]

OUT_TYPES: Final = ("f32", "f16", "bf16", "q8_0", "auto")
"""Precisions that llama.cpp's converter writes itself; smaller ones are its `llama-quantize`'s work."""

CONVERTER: Final = "convert_hf_to_gguf.py"
_UNKNOWN_HASH: Final = re.compile(r"chkhsh:\s*([0-9a-f]{64})")


@dataclass(frozen=True)
class GgufExport:
    """A GGUF file that was read again after it was written."""

    path: str
    architecture: str
    n_tensors: int
    size_bytes: int
    sha256: str


def export_gguf(
    hf_dir: str | Path,
    *,
    llama_cpp: str | Path,
    out: str | Path | None = None,
    outtype: str = "bf16",
    python: str | None = None,
    timeout_s: float | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> GgufExport:
    """Convert the export in hf_dir and return what was written, once it is proved to be readable.

    The file takes its place whole or not at all. llama.cpp's code is run as a child process:
    give a checkout that you trust.

    Args:
        hf_dir: A merged model in Hugging Face layout.
        llama_cpp: A checkout of llama.cpp.
        out: The file; by default `<hf_dir>-<outtype>.gguf` beside the folder.
        outtype: One of OUT_TYPES.
        python: An interpreter with what llama.cpp's requirements.txt names; by default this one.
        timeout_s: Wall clock limit.
        should_stop: True ends the conversion.
    Raises:
        ConvertError: something is missing, or the converter failed or left no readable file.
        MissingExtraError: the extra `train` is not installed, with which the file is checked.
    """
    require_extra("train", purpose="checking a GGUF file")
    source, script = Path(hf_dir).resolve(), Path(llama_cpp).expanduser().resolve() / CONVERTER
    _check_arguments(source, script, outtype)
    target = Path(out).resolve() if out else source.with_name(f"{source.name}-{outtype}.gguf")
    partial = target.with_name(f".{target.name}.partial")
    log_path = target.with_name(f"{target.name}.log")
    target.parent.mkdir(parents=True, exist_ok=True)
    # A script's own folder comes first on its path, where llama.cpp's other modules are.
    interpreter = python or sys.executable
    argv = [interpreter, str(script), str(source), "--outfile", str(partial), "--outtype", outtype]
    try:
        with termination_as_exit(), held(target.with_name(f".{target.name}.lock"), what=str(target)):
            partial.unlink(missing_ok=True)
            try:
                with Child.start(argv, log_path=log_path) as child:
                    end = watch(child, interval_s=0, timeout_s=timeout_s, should_stop=should_stop)
                _explain(end, log_path, timeout_s)
                architecture, n_tensors = _read_gguf(partial, log_path)
                os.replace(partial, target)
            finally:
                partial.unlink(missing_ok=True)
    except LockHeldError as err:
        raise ConvertError(str(err)) from err
    return GgufExport(
        path=str(target),
        architecture=architecture,
        n_tensors=n_tensors,
        size_bytes=target.stat().st_size,
        sha256=digest_file(target),
    )


def _check_arguments(source: Path, script: Path, outtype: str) -> None:
    if outtype not in OUT_TYPES:
        raise ConvertError(f"outtype is {outtype!r}; allowed: {list(OUT_TYPES)}")
    if not (source / "config.json").is_file() or not any(source.glob("*.safetensors")):
        raise ConvertError(f"{source} is no model in Hugging Face layout; `bakehouse merge` makes one")
    if not script.is_file():
        raise ConvertError(f"{script} is missing; llama_cpp has to be a checkout of llama.cpp")


def _explain(end: Any, log_path: Path, timeout_s: float | None) -> None:
    try:
        explain_end(end, "llama.cpp's converter", log_path, timeout_s)
    except TrainError as err:
        unknown = _UNKNOWN_HASH.search(tail(log_path, lines=200, max_bytes=65536))
        hint = ""
        if unknown:
            hint = (
                f"\nllama.cpp does not know this tokenizer; if you know which pre-tokenizer it is, register "
                f"{unknown[1]} with register_llama_cpp_pretokenizer_hash"
            )
        raise ConvertError(f"{err}{hint}") from err


def _read_gguf(path: Path, log_path: Path) -> tuple[str, int]:
    """Return the architecture and the number of tensors of a whole GGUF file."""
    from gguf import GGUFReader

    if not path.is_file():
        raise ConvertError(f"llama.cpp's converter ended well but wrote no file; log: {log_path}")
    try:
        reader = GGUFReader(str(path))
        field = reader.get_field("general.architecture")
        architecture = "" if field is None else str(field.contents())
        whole = all(tensor.data.nbytes == tensor.n_bytes for tensor in reader.tensors)
        n_tensors = len(reader.tensors)
    except (OSError, ValueError, IndexError, KeyError, TypeError) as err:
        raise ConvertError(f"what llama.cpp's converter wrote is no whole GGUF file: {err}") from err
    if not architecture or not n_tensors or not whole:
        raise ConvertError(
            f"what llama.cpp's converter wrote holds architecture {architecture!r} and {n_tensors} tensors; "
            f"log: {log_path}"
        )
    return architecture, n_tensors
