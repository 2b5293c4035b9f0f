"""llama.cpp's table of tokenizers, extended by one that it does not know yet."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Final

from tools.errors import ConvertError
from tools.files import write_bytes_atomic

__all__ = ["DEEPSEEK_R1_0528_QWEN3_TOKENIZER_HASH", "register_llama_cpp_pretokenizer_hash"]

DEEPSEEK_R1_0528_QWEN3_TOKENIZER_HASH: Final = (
    "0d75215efe33c49084836cb245f2fa78de4b3858f5a3e54d5e1fd27f4ce33b05"
)
"""The hash under which llama.cpp sees DeepSeek-R1-0528-Qwen3-8B where its tokenizer is loaded wrong.

It comes from an export whose tokenizer class drops the spaces. Loaded right, the same tokenizer
hashes to e636dc30..., which llama.cpp knows as `qwen2`: mend the export before this is needed.
"""

_LOG = logging.getLogger(__name__)
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_START: Final = re.compile(r"^[ \t]*# Marker: Start get_vocab_base_pre", re.MULTILINE)
_END: Final = re.compile(r"^[ \t]*# Marker: End get_vocab_base_pre", re.MULTILINE)
_UNKNOWN: Final = re.compile(r"^(?P<indent>[ \t]+)if res is None:", re.MULTILINE)
_ENTRY: Final = re.compile(
    r"""^(?P<indent>[ \t]+)if chkhsh == (?P<quote>["'])(?P<hash>[0-9a-fA-F]{64})(?P=quote):[^\n]*\n"""
    r"""(?:[ \t]*(?:\#[^\n]*)?\n)*[ \t]+res = [^\n]*(?:\n|\Z)""",
    re.MULTILINE,
)


def register_llama_cpp_pretokenizer_hash(
    convert_script: str | Path,
    *,
    chkhsh: str,
    pre_tokenizer: str,
    model_ref: str | None = None,
    note: str | None = None,
) -> bool:
    """Teach llama.cpp's converter which pre-tokenizer a tokenizer hash stands for.

    Safe to repeat, to be done again after a `git pull` of llama.cpp. The file is replaced whole
    and keeps its mode.

    Args:
        convert_script: `convert_hf_to_gguf.py` of a checkout, old or new; in a new one the table
            that it reads lies in `conversion/base.py`, which is then the file that changes.
        chkhsh: 64 hexadecimal digits, in either case.
        pre_tokenizer: llama.cpp's name for it, such as `qwen2`.
        model_ref: Where the tokenizer comes from; written beside the entry.
        note: Another comment beside it.
    Returns:
        True when an entry was written, False when the hash was there already.
    Raises:
        ConvertError: no script, no hash, or no table in the script.

    Source: fieldkit.training.register_llama_cpp_pretokenizer_hash.
    """
    digest = chkhsh.lower()
    if not _HASH.fullmatch(digest):
        raise ConvertError(f"chkhsh is {chkhsh[:80]!r}; it must be 64 hexadecimal digits (0-9, a-f)")
    if not pre_tokenizer.strip(" "):
        raise ConvertError("pre_tokenizer is empty; give llama.cpp's name for it, such as 'qwen2'")
    path, text = _find_table(Path(convert_script))
    start, end = _bounds(text)
    entries = list(_ENTRY.finditer(text, start, end))
    if any(entry["hash"].lower() == digest for entry in entries):
        _LOG.info("%s knows %s already", path, digest)
        return False
    indent, place = _place(path, text, start, end, entries)
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = [f'{indent}if chkhsh == "{digest}":']
    lines += [f"{indent}    # ref: {_comment(model_ref)}"] if model_ref else []
    lines += [f"{indent}    # {_comment(note)}"] if note else []
    lines.append(f"{indent}    res = {_literal(pre_tokenizer)}")
    block = "".join(line + newline for line in lines)
    before = text[:place] if text[:place].endswith("\n") else text[:place] + newline
    _replace(path, before + block + text[place:])
    return True


def _find_table(script: Path) -> tuple[Path, str]:
    """Return the file that holds the table, and its text as it stands."""
    if not script.is_file():
        raise ConvertError(f"{script} is no file; give convert_hf_to_gguf.py of a llama.cpp checkout")
    newer = script.parent / "conversion" / "base.py"
    for path in (script, newer):
        if path.is_file():
            text = _read(path)
            if "chkhsh ==" in text:
                # A link stays a link; what it points to changes.
                return path.resolve(), text
    raise ConvertError(
        f'neither {script} nor {newer} holds the chain `if chkhsh == "...":`; is this llama.cpp\'s '
        "convert_hf_to_gguf.py?"
    )


def _bounds(text: str) -> tuple[int, int]:
    """Return where the table's function begins and ends: between the markers where there are any."""
    start = _START.search(text)
    end = _END.search(text, start.end()) if start else None
    return (start.end(), end.start()) if start and end else (0, len(text))


def _place(path: Path, text: str, start: int, end: int, entries: list[re.Match[str]]) -> tuple[str, int]:
    """Return the indent of the table's entries and where a further one goes."""
    unknown = _UNKNOWN.search(text, entries[-1].end() if entries else start, end)
    if unknown is not None:
        # Behind the last line of the chain, before the empty lines that part it from what follows.
        last = len(text[: unknown.start()].rstrip())
        return unknown["indent"], text.index("\n", last) + 1
    if not entries:
        raise ConvertError(f'{path} holds no entry `if chkhsh == "...":` with a `res = ...` to go by')
    return entries[-1]["indent"], entries[-1].end()


def _comment(text: str) -> str:
    """Return text as what can stand on one line behind a `#`."""
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())


def _literal(text: str) -> str:
    # JSON's escapes are Python's too, as long as no character is left that needs a pair of them.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\x7f")


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ConvertError(f"{path} cannot be read: {err}") from err


def _replace(path: Path, text: str) -> None:
    try:
        write_bytes_atomic(path, text.encode("utf-8"), mode=path.stat().st_mode & 0o7777)
    except (OSError, UnicodeEncodeError) as err:
        raise ConvertError(f"{path} cannot be rewritten: {err}") from err
