"""The secret scan: credentials that must not be committed."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Secret", "find_secrets"]

# Neither end may touch a character of base64: a picture inside a report holds every short
# run of letters sooner or later. A letter that ends an escape of JSON is no such character.
_START, _END = r"(?:(?<![A-Za-z0-9+/_-])|(?<=\\[nrt]))", r"(?![A-Za-z0-9+/_-])"
# Kind, a text that each key holds (looked for first: it is fast), and its pattern.
_KEYS = (
    ("Anthropic API key", "sk-ant-", r"sk-ant-[A-Za-z0-9_-]{20,}"),
    ("API key", "sk-", r"sk-(?!ant-)(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{20,}"),
    ("AWS access key", "AKIA", r"AKIA[0-9A-Z]{16}"),
    ("AWS access key", "ASIA", r"ASIA[0-9A-Z]{16}"),
    ("GitHub token", "gh", r"gh[pousr]_[A-Za-z0-9]{30,}"),
    ("GitHub token", "github_pat_", r"github_pat_[A-Za-z0-9_]{22,}"),
    ("GitLab token", "glpat-", r"glpat-[A-Za-z0-9_-]{20,}"),
    ("Hugging Face token", "hf_", r"hf_[A-Za-z0-9]{20,}"),
    ("Slack token", "xox", r"xox[a-z]-[A-Za-z0-9-]{10,}"),
    ("Slack token", "xapp-", r"xapp-[A-Za-z0-9-]{10,}"),
    ("Google API key", "AIza", r"AIza[0-9A-Za-z_-]{35}"),
    ("JSON web token", "eyJ", r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"),
)
_PATTERNS = tuple((kind, hint, re.compile(_START + body + _END)) for kind, hint, body in _KEYS)
_PRIVATE_KEY = re.compile(r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_URL_PASSWORD = re.compile(r"://[^\s/:@\"'<>]{1,64}:(?P<value>[^\s/@\"'<>]{6,128})@")
_ASSIGNMENT = re.compile(
    r"(?i)(?:[_.-](?:token|key)|apikey|(?P<strict>secret|passwd|password))"
    r"(?:\\?[\"'])?\s{0,4}[:=]\s{0,4}(?:\\?[\"'])?(?P<value>[^\s\"'\\,;<>(){}\[\]$]{12,512})"
)
_NAME_BEFORE = re.compile(r"[A-Za-z0-9_.-]*$")
# Keys that look things up, and the halves that are meant to be seen.
_OPEN_NAMES = ("public", "cache", "primary", "foreign", "sort", "partition", "group", "dedup", "idempotency")
_NAME_CHARACTERS = 48
_SHOWN = 4
_PLACEHOLDERS = ("password", "passwd", "secret", "changeme")


@dataclass(frozen=True)
class Secret:
    """A credential found in a text, its value masked."""

    line: int
    kind: str
    masked: str

    def __str__(self) -> str:
        return f"{self.line}: {self.kind} {self.masked}"


def find_secrets(data: bytes | str) -> tuple[Secret, ...]:
    """Return the credentials in data, in the order of their lines.

    Known key formats, private keys, passwords in URLs, and random-looking values assigned
    to a name such as `HUB_TOKEN`, `service_key` or `password` are found.
    """
    lines = _decode(data).split("\n")
    return tuple(secret for number, line in enumerate(lines, start=1) for secret in _scan_line(line, number))


def _decode(data: bytes | str) -> str:
    if isinstance(data, str):
        return data
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    # Latin-1 keeps every byte, so that a key inside a binary file is seen as well.
    return data.decode("latin-1")


def _scan_line(line: str, number: int) -> Iterator[Secret]:
    known = [
        Secret(number, kind, _mask(match[0]))
        for kind, hint, pattern in _PATTERNS
        if hint in line
        for match in pattern.finditer(line)
    ]
    yield from known
    if _PRIVATE_KEY.search(line):
        yield Secret(number, "private key", "-----BEGIN … PRIVATE KEY-----")
    for match in _URL_PASSWORD.finditer(line):
        if not _is_placeholder(match["value"]):
            yield Secret(number, "password in a URL", _mask(match["value"]))
    if not known:
        yield from _scan_assignments(line, number)


def _scan_assignments(line: str, number: int) -> Iterator[Secret]:
    for match in _ASSIGNMENT.finditer(line):
        before = line[max(0, match.start() - _NAME_CHARACTERS) : match.start()]
        prefix = _NAME_BEFORE.search(before)
        name = (prefix[0] if prefix else "") + re.split(r"[\"'\\\s:=]", match[0])[0]
        if re.sub(r"[_.-]?key$", "", name.lower()).endswith(_OPEN_NAMES):
            continue
        if _looks_random(match["value"], strict=match["strict"] is not None):
            yield Secret(number, f"value of {name}", _mask(match["value"]))


def _mask(value: str) -> str:
    return f"{value[: min(_SHOWN, len(value) // 4)]}… ({len(value)} characters)"


def _is_placeholder(value: str) -> bool:
    return len(set(value)) <= 3 or value.lower() in _PLACEHOLDERS


def _looks_random(value: str, *, strict: bool) -> bool:
    """Return whether value could be a credential; strict: for a name that can hold nothing else."""
    if not (any(c.isdigit() for c in value) and any(c.isalpha() for c in value)):
        return False
    if re.fullmatch(r"[0-9a-fA-F-]{24,}", value):
        return _entropy_bits(value) >= 2.8
    # Words joined by dashes or slashes are names and paths; a key has one long random part.
    part = value if strict else max(re.split(r"[-_./:]", value), key=len)
    return len(part) >= (12 if strict else 16) and _entropy_bits(part) >= 3.0


def _entropy_bits(value: str) -> float:
    counts = Counter(value).values()
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counts)
