"""The decision corpus as a workspace sees it: which folders count, and what machine it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from tools.decisions import SEED_ENTRIES_DIR, USER_ENTRIES_DIR, DecideEntry
from tools.errors import BakehouseError
from tools.freshness import Environment, StalenessReport, refresh, staleness
from tools.workspace import Workspace


def entry_dirs(workspace: Workspace | None) -> Sequence[Path]:
    """Return the folders to look in: the workspace's approved entries, the user's, the shipped."""
    own = [] if workspace is None else [workspace.entries_dir]
    return [*own, USER_ENTRIES_DIR, SEED_ENTRIES_DIR]


def current_environment(workspace: Workspace | None) -> Environment:
    """Return what this machine and workspace have today, for decisions to be compared with."""
    from tools.hardware import detect
    from tools.model_digest import digest_base_model
    from tools.versions import library_versions

    base_model = digest = None
    if workspace is not None:
        try:
            recipe = workspace.load_recipe()
            base_model = recipe.base_model
            digest = digest_base_model(recipe.resolve(workspace.root).base_model)
        except BakehouseError:
            # An unreadable recipe says nothing about the corpus.
            base_model = None
    return Environment(base_model, digest, driver=detect().driver, library_versions=library_versions())


def corpus_reports(workspace: Workspace | None, freshness_days: int) -> list[StalenessReport]:
    """Return every entry that counts here, the oldest first, held against what this machine has."""
    return refresh(
        dirs=entry_dirs(workspace),
        freshness_days=freshness_days,
        environment=current_environment(workspace),
    )


def entry_is_stale(workspace: Workspace, freshness_days: int) -> Callable[[DecideEntry], bool]:
    """Return the judge of an entry that the corpus does not hold yet, such as one on the branch."""
    environment = current_environment(workspace)
    today = datetime.now().astimezone().date()

    def is_stale(entry: DecideEntry) -> bool:
        return bool(staleness(entry, today=today, environment=environment, freshness_days=freshness_days))

    return is_stale
