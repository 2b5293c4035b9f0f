"""Failures on dev: what the best recipe so far gets wrong there, and nothing about any other split."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agent.data_work.gate import load_judged, tied_ids
from agent.incumbent import load_incumbent
from agent.publishing import INCUMBENT_FILE
from agent.score_sets import find_scores, newest
from tools.dataset import Dataset, load_dataset
from tools.errors import EvidenceError
from tools.evaluation.scores import ScoreRow
from tools.files import digest_file
from tools.rows import Row
from tools.task import Task
from tools.workspace import Workspace

__all__ = ["Failure", "group_failures", "read_failures"]

_SHOWN_CHARS = 2000


@dataclass(frozen=True)
class Failure:
    """A dev row that was answered wrongly."""

    row: Row
    output: str
    error: str

    @property
    def kind(self) -> str:
        """What went wrong, in words that failures of one sort share."""
        expected, answered = _command(self.row.expected), _command(self.output)
        error = self.error if _is_plain(self.error.partition(":")[2]) else self.error.partition(":")[0]
        if expected is None:
            return error
        if answered is not None and answered != expected:
            return f"{expected} taken for {answered}"
        return f"{expected}: {error}"

    def shown(self) -> dict[str, Any]:
        """Return it as a teacher is shown it."""
        asked = [{"role": turn.role, "content": turn.content[:_SHOWN_CHARS]} for turn in self.row.prompt]
        user = asked[0]["content"] if len(asked) == 1 else asked
        return {"user": user, "right": self.row.expected, "answered": self.output[:_SHOWN_CHARS]}


def read_failures(workspace: Workspace, task: Task) -> tuple[Failure, ...]:
    """Return what the incumbent of the last bakeoff answered wrongly on dev.

    Questions and right answers come from the dev split itself; of the score rows only the given
    answers are taken, and rows whose id dev does not have are refused. A dev row that is tied to
    another judged split is left out, for its text would give that split away.

    Raises:
        EvidenceError: no bakeoff has scored this dev split, its score rows name other items, or
            nothing is wrong.
    """
    dev = load_dataset(workspace.split_file(task, "dev"))
    outputs = _wrong_answers(workspace, task, dev)
    others = {split: rows for split, rows in load_judged(workspace, task).items() if split != "dev"}
    wrong = [row for row in dev if row.id in outputs]
    tied = tied_ids(wrong, others)
    failures = tuple(
        Failure(row, outputs[row.id].output or "", outputs[row.id].error or "wrong")
        for row in wrong
        if row.id not in tied
    )
    if not failures:
        raise EvidenceError("the best recipe gets every dev row right; there is no failure to work on")
    return failures


def group_failures(failures: Sequence[Failure]) -> tuple[tuple[str, tuple[Failure, ...]], ...]:
    """Return failures by kind, the most frequent kind first."""
    groups: dict[str, list[Failure]] = defaultdict(list)
    for failure in failures:
        groups[failure.kind].append(failure)
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    return tuple((kind, tuple(group)) for kind, group in ordered)


def _wrong_answers(workspace: Workspace, task: Task, dev: Dataset) -> dict[str, ScoreRow]:
    incumbent = load_incumbent(newest(workspace).root / INCUMBENT_FILE)
    if incumbent is None:
        raise EvidenceError("no bakeoff has scored dev yet; run `bakehouse bakeoff` first")
    if incumbent.locks.splits.get("dev") != digest_file(workspace.split_file(task, "dev")):
        raise EvidenceError("dev changed since the last bakeoff, so its failures are of other rows; run one")
    known = {row.id for row in dev}
    wrong: dict[str, ScoreRow] = {}
    for trial in incumbent.trials:
        for scored in find_scores(workspace, trial.trial_id, "dev"):
            if scored.item_id not in known:
                raise EvidenceError(
                    f"the dev scores of {trial.trial_id} name an item that dev does not hold; only failures "
                    "on dev may be worked on, so nothing was sent"
                )
            if scored.score < 1:
                wrong.setdefault(scored.item_id, scored)
    return wrong


def _command(text: str) -> str | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    command = value.get("cmd") if isinstance(value, dict) else None
    return command if isinstance(command, str) and command and _is_plain(command) else None


def _is_plain(text: str) -> bool:
    # A kind is read as words of ours, so what a model made up must not bring its own sentences.
    return not text or (text.isidentifier() and len(text) <= 40)
