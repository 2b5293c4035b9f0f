"""Bearer tokens of an HTTP server: who holds one is a principal of that name."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Final

from tools.errors import McpError

TOKEN_VARIABLE: Final = "BAKEHOUSE_MCP_TOKEN"
MIN_TOKEN_CHARS: Final = 24
DEFAULT_PRINCIPAL: Final = "default"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}\Z")
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]+\Z")


class Tokens:
    """Knows tokens by their SHA-256 alone, so that no dump of this object holds one."""

    def __init__(self, tokens: Mapping[str, str]) -> None:
        """Take tokens by the name of their principal.

        Raises:
            McpError: there is none, or one is short, or two principals share one.
        """
        if not tokens:
            raise McpError(
                f"serving HTTP needs a bearer token; set ${TOKEN_VARIABLE}, or name a file with "
                "--token-file. `python -c 'import secrets; print(secrets.token_urlsafe(32))'` makes one"
            )
        for name, token in tokens.items():
            if not _NAME.match(name) or name == "local":
                raise McpError(
                    f"{name[:40]!r} is no principal's name; a-z, 0-9 and '-' are allowed, not local"
                )
            if len(token) < MIN_TOKEN_CHARS or not _TOKEN.match(token):
                raise McpError(
                    f"the token of {name!r} is too short or holds odd characters; use at least "
                    f"{MIN_TOKEN_CHARS} random letters and digits"
                )
        if len(set(tokens.values())) != len(tokens):
            raise McpError("two principals share a token; give each their own")
        self._digests = {name: _digest(token) for name, token in tokens.items()}

    def find(self, token: str) -> str | None:
        """Return whose token it is, in the same time whether right or wrong."""
        digest = _digest(token)
        found = None
        for name, known in self._digests.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found


def load_tokens(path: Path | None, environ: MutableMapping[str, str]) -> Tokens:
    """Return the operator's tokens and take the variable out of environ: no job must inherit it.

    Args:
        path: A file of `name token` lines, readable by its owner alone.
        environ: Holds a single token for the principal `default`.
    Raises:
        McpError: there is no token, or the file cannot be trusted or read.
    """
    tokens: dict[str, str] = {}
    single = environ.pop(TOKEN_VARIABLE, "")
    if single:
        tokens[DEFAULT_PRINCIPAL] = single.strip()
    if path is not None:
        tokens |= _read(path)
    return Tokens(tokens)


def _read(path: Path) -> dict[str, str]:
    try:
        if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise McpError(f"{path} can be read by others; run: chmod 600 {path}")
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as err:
        raise McpError(f"the token file {path} cannot be read: {err.strerror}") from err
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            continue
        if len(parts) != 2 or parts[0] in found:
            raise McpError(
                f"{path}:{number}: a line is a principal's name, a space and a token, each name once"
            )
        found[parts[0]] = parts[1]
    return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
