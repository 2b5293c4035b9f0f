"""The reviewer: the person that git knows, whose name a review carries."""

from __future__ import annotations

import re
from typing import Final

from tools.checkout import Repo
from tools.errors import RepoError
from tools.gitcommand import run_git

__all__ = ["find_reviewer"]

_IDENTITY: Final = re.compile(r"(?P<who>.+ <[^<>\s]+>) \d+ [+-]\d{4}\Z")


def find_reviewer(repo: Repo) -> str:
    """Return `name <email>` of whoever reviews.

    Raises:
        RepoError: git knows nobody here; a review without a name is none.
    """
    # Without useConfigOnly git makes an identity up from the machine's name.
    output = run_git(repo.root, "-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT")
    found = _IDENTITY.match(output.stdout) if output.ok else None
    if found is None:
        raise RepoError(
            "git does not know who you are, and a review carries a name; set one: "
            'git config user.name "Your Name" && git config user.email you@example.org'
        )
    return found["who"]
