"""A Hugging Face export made standard: shard names, tokenizer class, legacy rope keys."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tools.errors import MergeExportError
from tools.files import write_json_atomic, write_text_atomic

__all__ = ["DEEPSEEK_TOKENIZER_CLASS_REMAP", "is_byte_level", "standardize_hf_export"]

DEEPSEEK_TOKENIZER_CLASS_REMAP: Final[Mapping[str, str]] = {"TokenizersBackend": "LlamaTokenizer"}
"""What an export's `tokenizer_class` becomes unless a caller says otherwise.

LlamaTokenizer loses the spaces of a byte-level tokenizer, DeepSeek-R1-Qwen3's among them, on
transformers 5.6 to 5.21. An export with such a tokenizer gets PreTrainedTokenizerFast by default.
"""

RECORD: Final = ".standardize.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"

_SHARD: Final = re.compile(
    r"(?P<prefix>[^/\\]+)-(?P<number>[0-9]{1,12})-of-(?P<total>[0-9]{1,12})\.safetensors\Z"
)
_INDEX_SUFFIX: Final = ".safetensors.index.json"
_BYTE_LEVEL_REMAP: Final = {"TokenizersBackend": "PreTrainedTokenizerFast"}

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class _Plan:
    """All that will change: files renamed, then files rewritten."""

    renames: tuple[tuple[str, str], ...]
    texts: Mapping[str, str]
    remaps: tuple[tuple[str, str], ...]

    @property
    def is_empty(self) -> bool:
        return not self.renames and not self.texts


def standardize_hf_export(
    hf_dir: str | Path, *, tokenizer_class_remap: Mapping[str, str] | None = None
) -> tuple[Pairs, Pairs]:
    """Make the export in hf_dir standard and return `(shard_renames, tokenizer_remaps)`.

    Shards numbered too wide (`-of-000002`) get the usual five digits, in their index too;
    tokenizer_config.json's `tokenizer_class` is looked up in the remap table; a config.json
    that has only `rope_parameters` gets `rope_theta` and `rope_scaling` beside it, without
    which transformers 4 silently takes its defaults. Everything is checked before anything
    is touched. A call that is killed half way is completed by the next. On a standard
    folder nothing is written.

    Args:
        hf_dir: The export.
        tokenizer_class_remap: Old to new class; `{}` leaves the tokenizer alone. By default
            DEEPSEEK_TOKENIZER_CLASS_REMAP, or PreTrainedTokenizerFast for a byte-level
            tokenizer, which LlamaTokenizer would break.
    Raises:
        MergeExportError: no folder, malformed JSON, or a new name that is taken.

    Source: fieldkit.training.standardize_hf_export.
    """
    folder = Path(hf_dir)
    if not folder.is_dir():
        raise MergeExportError(f"standardize: {folder} is no folder; give a Hugging Face export")
    unfinished = _read_record(folder)
    if unfinished is not None:
        _apply(folder, unfinished)
    plan = _make_plan(folder, tokenizer_class_remap)
    if not plan.is_empty:
        record = {"renames": plan.renames, "texts": dict(plan.texts), "remaps": plan.remaps}
        write_json_atomic(folder / RECORD, record)
        _apply(folder, plan)
    done = [one for one in (unfinished, plan) if one is not None]
    return [pair for one in done for pair in one.renames], [pair for one in done for pair in one.remaps]


def is_byte_level(folder: Path) -> bool:
    """Return whether folder's tokenizer.json splits text into bytes before its merges."""
    tokenizer = _load_object(folder / "tokenizer.json")
    if tokenizer is None:
        return False
    return any(_mentions_byte_level(tokenizer.get(part)) for part in ("pre_tokenizer", "decoder"))


def _mentions_byte_level(part: Any) -> bool:
    if isinstance(part, list):
        return any(_mentions_byte_level(one) for one in part)
    if not isinstance(part, dict):
        return False
    if part.get("type") == "ByteLevel":
        return True
    return _mentions_byte_level(part.get("pretokenizers")) or _mentions_byte_level(part.get("decoders"))


def _make_plan(folder: Path, remap: Mapping[str, str] | None) -> _Plan:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    renames = {name: new for name in names if (new := _standard_name(name)) != name}
    clashes = [
        new for new, count in Counter(renames.values()).items() if count > 1 or (folder / new).exists()
    ]
    if clashes:
        raise MergeExportError(
            f"standardize: {clashes} would be taken twice in {folder}; the folder holds shards of two "
            "exports. Remove the stale ones"
        )
    texts: dict[str, str] = {}
    for name in names:
        if name.endswith(_INDEX_SUFFIX):
            texts |= _new_index(folder / name, renames)
    remaps, tokenizer = _new_tokenizer_config(folder, remap)
    return _Plan(tuple(renames.items()), {**texts, **tokenizer, **_new_config(folder)}, remaps)


def _standard_name(name: str) -> str:
    match = _SHARD.match(name)
    if match is None:
        return name
    number, total = int(match["number"]), int(match["total"])
    width = max(5, len(str(total)))
    if len(match["number"]) <= width and len(match["total"]) <= width:
        return name
    return f"{match['prefix']}-{number:0{width}d}-of-{total:0{width}d}.safetensors"


def _new_index(path: Path, renames: Mapping[str, str]) -> dict[str, str]:
    index = _load_object(path) or {}
    weights = index.get("weight_map")
    if not isinstance(weights, dict) or not all(
        isinstance(file, str) and "/" not in file and "\\" not in file for file in weights.values()
    ):
        raise MergeExportError(f"standardize: {path} has no weight_map of tensor names to file names")
    changed = {key: renames.get(file, file) for key, file in weights.items()}
    return {} if changed == weights else {path.name: _dump({**index, "weight_map": changed})}


def _new_tokenizer_config(
    folder: Path, remap: Mapping[str, str] | None
) -> tuple[tuple[tuple[str, str], ...], dict[str, str]]:
    config = _load_object(folder / TOKENIZER_CONFIG)
    if remap is None:
        remap = _BYTE_LEVEL_REMAP if is_byte_level(folder) else DEEPSEEK_TOKENIZER_CLASS_REMAP
    old = None if config is None else config.get("tokenizer_class")
    new = remap.get(old) if isinstance(old, str) else None
    if config is None or not isinstance(old, str) or new is None or new == old:
        return (), {}
    return ((old, new),), {TOKENIZER_CONFIG: _dump({**config, "tokenizer_class": new})}


def _new_config(folder: Path) -> dict[str, str]:
    config = _load_object(folder / "config.json")
    if config is None:
        return {}
    changed = with_legacy_rope(config)
    if isinstance(config.get("text_config"), dict):
        changed["text_config"] = with_legacy_rope(config["text_config"])
    return {} if changed == config else {"config.json": _dump(changed)}


def with_legacy_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return config with the rope keys of transformers 4 beside those of transformers 5."""
    rope = config.get("rope_parameters")
    found = dict(config)
    if not isinstance(rope, dict) or not isinstance(rope.get("rope_theta"), int | float):
        return found
    found.setdefault("rope_theta", rope["rope_theta"])
    kind = rope.get("rope_type", "default")
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    found.setdefault("rope_scaling", None if kind == "default" else scaling)
    return found


def _apply(folder: Path, plan: _Plan) -> None:
    """Carry the plan out; every step may have been done by a call that was killed."""
    for old, new in plan.renames:
        before, after = (folder / old).exists(), (folder / new).exists()
        if before == after:
            state = "both are there" if before else "neither is there"
            raise MergeExportError(
                f"standardize: {old} was to become {new}, but {state}; an earlier call was cut short "
                f"and the folder changed since. Export anew, or mend it and remove {folder / RECORD}"
            )
        if before:
            os.rename(folder / old, folder / new)
    for name, text in plan.texts.items():
        write_text_atomic(folder / name, text)
    (folder / RECORD).unlink(missing_ok=True)


def _read_record(folder: Path) -> _Plan | None:
    """Return what an earlier call had set out to do, its names checked: the file may be foreign."""
    record = _load_object(folder / RECORD)
    if record is None:
        return None
    try:
        renames = tuple((str(old), str(new)) for old, new in record["renames"])
        remaps = tuple((str(old), str(new)) for old, new in record["remaps"])
        texts = {str(name): str(text) for name, text in record["texts"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise MergeExportError(f"standardize: {folder / RECORD} is no record of ours; remove it") from err
    fine = all(new != old and new == _standard_name(old) for old, new in renames) and all(
        name in (TOKENIZER_CONFIG, "config.json") or (name.endswith(_INDEX_SUFFIX) and "/" not in name)
        for name in texts
    )
    if not fine:
        raise MergeExportError(f"standardize: {folder / RECORD} names files that are not ours; remove it")
    return _Plan(renames, texts, remaps)


def _load_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in path, None where there is no such file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as err:
        raise MergeExportError(f"standardize: {path} is not valid JSON: {err}") from err
    if not isinstance(data, dict):
        raise MergeExportError(f"standardize: {path} holds a {type(data).__name__}, not a JSON object")
    return data


def _dump(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
