"""The decision corpus: questions answered in a context, with the evidence for each answer."""

from __future__ import annotations

from tools.decisions.corpus import (
    LEGACY_ENTRIES_DIR,
    SEED_ENTRIES_DIR,
    USER_ENTRIES_DIR,
    EntryProblem,
    EntryScan,
    load_entries,
    scan_entries,
)
from tools.decisions.entry import VALID_LIFECYCLES, DecideEntry, DecideFinding
from tools.decisions.lookup import DecidePick, decide, train_backend
from tools.decisions.provenance import Provenance
from tools.decisions.writing import write_entry
from tools.errors import DecideError

__all__ = [
    "LEGACY_ENTRIES_DIR",
    "SEED_ENTRIES_DIR",
    "USER_ENTRIES_DIR",
    "VALID_LIFECYCLES",
    "DecideEntry",
    "DecideError",
    "DecideFinding",
    "DecidePick",
    "EntryProblem",
    "EntryScan",
    "Provenance",
    "decide",
    "load_entries",
    "scan_entries",
    "train_backend",
    "write_entry",
]
