"""Assertions about the files that a rollout left behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tools.errors import EvaluationError
from tools.evaluation.confined_files import ConfinedFolder, OutsideError, UnreadableError
from tools.evaluation.regex_search import RegexError, search_within

__all__ = ["ASSERTION_KINDS", "AssertionGrader", "AssertionResult", "GradeResult"]

ASSERTION_KINDS: Final = (
    "file_exists",
    "file_not_exists",
    "file_contents_contain",
    "file_contents_match_regex",
    "file_unchanged",
)


@dataclass(frozen=True, slots=True)
class AssertionResult:
    """One assertion's outcome; detail says why it failed or was skipped."""

    kind: str
    path: str
    passed: bool
    detail: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class GradeResult:
    """All outcomes of one task. It passed when there are assertions and all of them hold."""

    task_id: str
    passed: bool
    n_passed: int
    n_total: int
    assertions: list[AssertionResult]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class AssertionGrader:
    """Grades a folder against assertions; only reads, and only inside that folder.

    Args:
        regex_timeout_s: Processor time for one regular expression; over it, the assertion fails.
    """

    regex_timeout_s: float = 5.0

    @staticmethod
    def supported_kinds() -> tuple[str, ...]:
        """Return ASSERTION_KINDS."""
        return ASSERTION_KINDS

    def grade(
        self,
        task: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        post_state_root: str | Path,
        *,
        seed_files: Mapping[str, str] | None = None,
        task_id: str = "",
    ) -> GradeResult:
        """Check every assertion of a task against the folder that its rollout left.

        Args:
            task: A mapping with `verifiable_assertions`, and optionally `task_id` and
                `workspace_seed` ({"files": [{"kind": "text", "path", "content"}]}), or a list of
                assertions: kind, path, and `must_contain` (a list of texts, or one) or `regex`.
            seed_files: Content by path before the rollout, for `file_unchanged`; the workspace
                seed's where not given. Without a file's content that assertion is skipped and
                counts as passed.
        Raises:
            EvaluationError: task is neither, or post_state_root is no folder.
        """
        assertions, seeds, own_id = _unpack(task)
        folder = ConfinedFolder(post_state_root)
        seeds = seeds if seed_files is None else seed_files
        results = [self._check(folder, assertion, seeds) for assertion in assertions]
        n_passed = sum(result.passed for result in results)
        return GradeResult(
            task_id=task_id or own_id,
            passed=bool(results) and n_passed == len(results),
            n_passed=n_passed,
            n_total=len(results),
            assertions=results,
        )

    def _check(self, folder: ConfinedFolder, assertion: Any, seeds: Mapping[str, str]) -> AssertionResult:
        if not isinstance(assertion, Mapping):
            return AssertionResult("", "", False, f"assertion is {assertion!r}; an object is needed")
        kind, path = str(assertion.get("kind", "")), assertion.get("path", "")
        checks: dict[str, Callable[[], str]] = {
            "file_exists": lambda: "" if folder.exists(path) else "path missing",
            "file_not_exists": lambda: "file still present" if folder.exists(path) else "",
            "file_contents_contain": lambda: _missing(_text(folder.read(path)), assertion),
            "file_contents_match_regex": lambda: self._unmatched(_text(folder.read(path)), assertion),
            "file_unchanged": lambda: _changed(folder, path, seeds[path]),
        }
        try:
            if kind == "file_unchanged" and not (isinstance(path, str) and path in seeds):
                folder.exists(path)  # a path that leaves the root fails before it is skipped
                return AssertionResult(kind, str(path), True, "skipped (no seed content)")
            detail = checks[kind]() if kind in checks else f"unknown kind: {kind}"
        except (OutsideError, UnreadableError) as err:
            detail = str(err)
        return AssertionResult(kind, str(path), not detail, detail)

    def _unmatched(self, text: str, assertion: Mapping[str, Any]) -> str:
        pattern = assertion.get("regex")
        if not isinstance(pattern, str) or not pattern:
            return f"regex is {pattern!r}; a pattern is needed"
        try:
            return "" if search_within(pattern, text, self.regex_timeout_s) else "regex not matched"
        except RegexError as err:
            return f"error: {err}"


def _unpack(
    task: Mapping[str, Any] | Sequence[Mapping[str, Any]],
) -> tuple[Sequence[Any], Mapping[str, str], str]:
    """Return the assertions, the files before the rollout, and the task's id."""
    if not isinstance(task, Mapping):
        if not isinstance(task, list | tuple):
            raise EvaluationError(f"task is {type(task).__name__}; an object or a list is needed")
        return task, {}, ""
    assertions = task.get("verifiable_assertions")
    if not isinstance(assertions, list | tuple):
        raise EvaluationError(f"task {task.get('task_id')!r} has no list `verifiable_assertions`")
    seed = task.get("workspace_seed")
    files = seed.get("files") if isinstance(seed, Mapping) else None
    texts = {
        file["path"]: file["content"]
        for file in files or ()
        if isinstance(file, Mapping)
        and file.get("kind") == "text"
        and isinstance(file.get("path"), str)
        and isinstance(file.get("content"), str)
    }
    return assertions, texts, str(task.get("task_id", ""))


def _missing(text: str, assertion: Mapping[str, Any]) -> str:
    wanted = assertion.get("must_contain")
    needles = [wanted] if isinstance(wanted, str) else wanted
    if (
        not isinstance(needles, list | tuple)
        or not needles
        or not all(isinstance(item, str) for item in needles)
    ):
        return f"must_contain is {wanted!r}; a text or a list of texts is needed"
    missing = [needle for needle in needles if _unified(needle) not in text]
    return f"missing substrings: {missing}" if missing else ""


def _changed(folder: ConfinedFolder, path: str, seed: str) -> str:
    try:
        content = folder.read(path)
    except UnreadableError as err:
        return "file missing post-rollout" if str(err) == "file missing" else str(err)
    return "" if content == seed.encode("utf-8", "surrogatepass") else "contents diverged from seed"


def _text(content: bytes) -> str:
    return _unified(content.decode("utf-8", "replace"))


def _unified(text: str) -> str:
    """Return text with one kind of line break."""
    return text.replace("\r\n", "\n").replace("\r", "\n")
