"""pass@k: the chance that one of k samples solves a task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tools.errors import EvaluationError
from tools.evaluation.metrics import format_number

__all__ = ["PassAtK", "PassAtKResult", "pass_at_k_estimator"]

# exp(-40) is far below half the distance from 1.0 to the float before it.
_CERTAIN: Final = 40


def pass_at_k_estimator(n: int, c: int, k: int) -> float:
    """Return the unbiased estimate 1 - C(n-c, k) / C(n, k) of pass@k, rounded once.

    Args:
        n: Samples drawn.
        c: Samples that passed.
        k: Samples a user would draw, at most n.
    Raises:
        EvaluationError: not 0 <= c <= n, or not 1 <= k <= n, or no whole numbers.
    Source: Chen et al. 2021, arXiv:2107.03374.
    """
    if any(type(count) is not int for count in (n, c, k)):
        raise EvaluationError(f"n={n!r}, c={c!r}, k={k!r}; all three must be whole numbers")
    if not (0 <= c <= n and 1 <= k <= n):
        raise EvaluationError(f"n={n}, c={c}, k={k}; allowed: 0 <= c <= n and 1 <= k <= n")
    if n - c < k:
        return 1.0
    # Each of the k factors (n-c-i) / (n-i) is at most 1 - c/n, so the product is below exp(-ck/n).
    if c * k > _CERTAIN * n:
        return 1.0
    # C(n-c, k) / C(n, k) is the same with c and k exchanged; the fewer factors, the better.
    few, many = min(c, k), max(c, k)
    whole = math.perm(n, few)
    # One division of whole numbers: the difference of two near ones would lose all digits.
    return (whole - math.perm(n - many, few)) / whole


@dataclass(frozen=True, slots=True)
class PassAtKResult:
    """pass@k of one model on one set of tasks.

    per_task holds one dict per problem: task_id, n, passed, and what extras_fn gave. pass_at is
    the mean over problems, for each k; None where there was no problem.
    """

    n_problems: int
    samples_per_problem: int
    per_task: list[dict[str, Any]]
    pass_at: dict[int, float | None]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values of JSON, unrounded."""
        return {
            "n_problems": self.n_problems,
            "samples_per_problem": self.samples_per_problem,
            "pass_at": {f"pass@{k}": value for k, value in self.pass_at.items()},
            "per_task": [dict(row) for row in self.per_task],
        }

    def report(self) -> str:
        """Return one line for print, such as "pass@1 0.7050, pass@8 0.8415 (164 problems)"."""
        shown = ", ".join(f"pass@{k} {format_number(value, 4)}" for k, value in self.pass_at.items())
        return f"{shown} ({self.n_problems} problems, {self.samples_per_problem} samples each)"


@dataclass
class PassAtK:
    """Grades samples that were drawn elsewhere, and estimates pass@k for each k of ks."""

    ks: Sequence[int] = (1,)

    def score(
        self,
        problems: Sequence[Mapping[str, Any]],
        samples: Sequence[Sequence[str]],
        grader: Callable[[str, Any], bool],
        *,
        extras_fn: Callable[[Any, Sequence[str]], Mapping[str, Any]] | None = None,
        task_id_field: str = "task_id",
    ) -> PassAtKResult:
        """Grade samples[i] against problems[i].

        Args:
            samples: The same number of samples for every problem.
            grader: Says whether a sample solves a problem.
            extras_fn: Returns more columns for a problem's row.
        Raises:
            EvaluationError: the lengths differ, a sample list is one text, a k is impossible,
                or an extra would overwrite n, passed or task_id.
        """
        if len(problems) != len(samples):
            raise EvaluationError(
                f"{len(problems)} problems, {len(samples)} lists of samples; they must match"
            )
        if any(isinstance(drawn, str) for drawn in samples):
            raise EvaluationError("samples holds a text where a list of texts belongs")
        counts = sorted({len(drawn) for drawn in samples})
        if len(counts) > 1:
            raise EvaluationError(f"problems have {counts} samples; every problem needs the same number")
        self._check_ks(counts[0] if counts else None)
        rows: list[dict[str, Any]] = []
        for problem, drawn in zip(problems, samples, strict=True):
            row: dict[str, Any] = {
                "task_id": str(problem.get(task_id_field, "")),
                "n": len(drawn),
                "passed": sum(bool(grader(sample, problem)) for sample in drawn),
            }
            extras = dict(extras_fn(problem, drawn)) if extras_fn else {}
            if extras.keys() & row.keys():
                raise EvaluationError(
                    f"extras_fn returned {sorted(extras.keys() & row.keys())}; those are counted"
                )
            rows.append(row | extras)
        return self.from_rows(rows)

    def from_rows(self, rows: Sequence[Mapping[str, Any] | tuple[str, int, int]]) -> PassAtKResult:
        """Estimate from rows that were graded before: mappings or triples of task_id, n, passed.

        Raises:
            EvaluationError: a row lacks a count, the counts of samples differ, or a k is impossible.
        """
        table = [_row(row) for row in rows]
        counts = sorted({row["n"] for row in table})
        if len(counts) > 1:
            raise EvaluationError(f"rows have {counts} samples; every problem needs the same number")
        self._check_ks(counts[0] if counts else None)
        pass_at: dict[int, float | None] = {}
        for k in self.ks:
            estimates = [pass_at_k_estimator(row["n"], row["passed"], k) for row in table]
            pass_at[k] = math.fsum(estimates) / len(estimates) if estimates else None
        return PassAtKResult(len(table), counts[0] if counts else 0, table, pass_at)

    def _check_ks(self, n: int | None) -> None:
        if not self.ks:
            raise EvaluationError("ks is empty; name at least one k, e.g. (1,)")
        bad = [k for k in self.ks if type(k) is not int or k < 1 or (n is not None and k > n)]
        if bad:
            allowed = "1 or more" if n is None else f"1 to {n}, the samples per problem"
            raise EvaluationError(f"ks holds {bad}; allowed: whole numbers, {allowed}")


def _row(row: Mapping[str, Any] | tuple[str, int, int]) -> dict[str, Any]:
    named = dict(row) if isinstance(row, Mapping) else dict(zip(("task_id", "n", "passed"), row, strict=True))
    for key in ("n", "passed"):
        if type(named.get(key)) is not int:
            raise EvaluationError(
                f"row {named.get('task_id')!r}: {key} is {named.get(key)!r}; a count is needed"
            )
    return named
