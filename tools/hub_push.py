"""A model folder on a Hugging Face hub: private unless said otherwise, checked before a byte leaves."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tools.errors import MergeExportError
from tools.extras import require_extra
from tools.secret_scan import find_secrets

__all__ = ["HubPush", "files_to_push", "push_folder"]

_REPO: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}\Z")
_MAX_TEXT_BYTES: Final = 64 * 2**20


@dataclass(frozen=True)
class HubPush:
    """What was uploaded, and where."""

    repo: str
    url: str
    commit: str
    private: bool
    files: tuple[str, ...]


def push_folder(
    folder: str | Path,
    repo: str,
    *,
    private: bool = True,
    message: str = "Upload model",
    endpoint: str | None = None,
) -> HubPush:
    """Upload folder to a model repository in one commit; the repository is made where it is missing.

    The token is that of the environment (HF_TOKEN) or of `hf auth login`; there is no argument for it.

    Args:
        folder: A model in Hugging Face layout, or a folder with a .gguf file. Hidden files stay here.
        repo: `name/model`.
        private: The repository has to be private. False makes a new one public.
        message: The commit's.
        endpoint: The hub; by default $HF_ENDPOINT, else huggingface.co.
    Raises:
        MergeExportError: the folder is not whole or holds a credential, no token is at hand, the
            repository is public though private was asked for, or the hub refused.
        MissingExtraError: the extra `train` is not installed.
    """
    require_extra("train", purpose="pushing to a hub")
    if not _REPO.match(repo):
        raise MergeExportError(f"repo is {repo!r}; it must be `name/model`, as in 'acme/drone-router'")
    root = Path(folder).resolve()
    names = files_to_push(root)
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if not token:
        raise MergeExportError("push: no token; set HF_TOKEN or run `hf auth login` first")
    api = HfApi(endpoint=endpoint, token=token)
    try:
        return _push(api, root, repo, names, private=private, message=message)
    except MergeExportError:
        raise
    except _hub_errors() as err:
        # The hub's own words, in which a token has no business.
        raise MergeExportError(f"push: {str(err).replace(token, '[token]')}") from None


def files_to_push(root: Path) -> tuple[str, ...]:
    """Return the files of a model folder that would be uploaded.

    Raises:
        MergeExportError: no weights, a shard that its index names is missing, a link, or a
            credential in a text file.
    """
    if not root.is_dir():
        raise MergeExportError(f"push: {root} is no folder")
    found: list[str] = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if any(part.startswith(".") for part in Path(name).parts):
            continue
        if path.is_symlink():
            raise MergeExportError(f"push: {name} is a link; only plain files are uploaded")
        if path.is_file():
            found.append(name)
    _check_weights(root, found)
    _check_secrets(root, found)
    return tuple(found)


def _check_weights(root: Path, names: Sequence[str]) -> None:
    if not any(name.endswith((".safetensors", ".gguf")) for name in names):
        raise MergeExportError(f"push: {root} holds no weights (.safetensors or .gguf)")
    index = root / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        wanted = {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise MergeExportError(f"push: {index} cannot be read: {err!r}") from err
    missing = sorted(wanted - set(names))
    if missing:
        raise MergeExportError(f"push: {root} is not whole; missing: {missing[:10]}")


def _check_secrets(root: Path, names: Sequence[str]) -> None:
    for name in names:
        path = root / name
        # A vocabulary is random text by nature, and weights are no text.
        if name.endswith((".safetensors", ".gguf", "tokenizer.json", "vocab.json", "merges.txt")):
            continue
        if path.stat().st_size <= _MAX_TEXT_BYTES and (secrets := find_secrets(path.read_bytes())):
            raise MergeExportError(f"push: {name}:{secrets[0]} looks like a credential; remove it first")


def _push(api: Any, root: Path, repo: str, names: Sequence[str], *, private: bool, message: str) -> HubPush:
    url = api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
    is_private = bool(api.repo_info(repo, repo_type="model").private)
    if private and not is_private:
        raise MergeExportError(
            f"push: {repo} exists and is public; nothing was uploaded. Make it private on the hub, name "
            "another repository, or say that it may be public"
        )
    done = api.upload_folder(
        repo_id=repo,
        repo_type="model",
        folder_path=root,
        allow_patterns=[_literal_pattern(name) for name in names],
        commit_message=message,
    )
    return HubPush(repo, str(url), str(done.oid), is_private, tuple(names))


def _literal_pattern(name: str) -> str:
    """Return a pattern for fnmatch that matches this name alone."""
    return re.sub(r"([*?\[])", r"[\1]", name)


def _hub_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    found: list[type[Exception]] = [HfHubHTTPError, HFValidationError, OSError, ValueError, RuntimeError]
    for module in ("httpx", "httpx2", "requests"):
        # Which of them huggingface_hub speaks through depends on its version.
        try:
            loaded = __import__(module)
        except ImportError:
            continue
        found.append(getattr(loaded, "HTTPError", OSError))
    return tuple(found)
