"""What a model learned or forgot between two reports of a knowledge probe."""

from __future__ import annotations

from dataclasses import dataclass

from tools.comparison import Comparison, Scores, compare
from tools.errors import ProbeError
from tools.probe.knowledge_report import KnowledgeReport
from tools.probe.ratios import CompareRow, compare_values

__all__ = ["KnowledgeDelta", "KnowledgeDeltaRow", "compare_knowledge"]


@dataclass(frozen=True)
class KnowledgeDeltaRow:
    """One question's scores; delta is None where a side has none."""

    question: str
    pre_score: float | None
    post_score: float | None
    delta: float | None
    pre_answer: str
    post_answer: str


@dataclass(frozen=True)
class KnowledgeDelta:
    """Two reports side by side, over the questions that both have a score for.

    `rows` holds the one metric that a guard looks at; `questions` is the table.
    """

    pre_tag: str
    post_tag: str
    questions: tuple[KnowledgeDeltaRow, ...]
    rows: tuple[CompareRow, ...]
    pre_score: float
    post_score: float
    comparison: Comparison | None
    """The gain with its interval; None for a single question."""
    n_paired: int
    all_pass: bool
    """The score after is at least the threshold's share of the one before, over enough questions."""
    nothing_to_lose: bool
    """The score before is 0: nothing can have been forgotten."""

    @property
    def delta(self) -> float:
        """Mean gain in score."""
        return self.post_score - self.pre_score

    def table(self) -> str:
        """Return the delta table as Markdown: one line a question, then the means."""
        head = ["| question | pre | post | delta |", "|---|---|---|---|"]
        lines = [
            f"| {_cell(row.question)} | {_number(row.pre_score)} | {_number(row.post_score)} "
            f"| {_number(row.delta, signed=True)} |"
            for row in self.questions
        ]
        interval = ""
        if self.comparison is not None:
            low, high = self.comparison.low, self.comparison.high
            interval = f" ({self.comparison.level:.0%} interval {low:+.2f} to {high:+.2f})"
        mean = (
            f"| **mean of {self.n_paired}** | {_number(self.pre_score)} | {_number(self.post_score)} "
            f"| {_number(self.delta, signed=True)}{interval} |"
        )
        return "\n".join((*head, *lines, mean))


def compare_knowledge(
    pre: KnowledgeReport, post: KnowledgeReport, *, threshold: float = 0.90, level: float = 0.95
) -> KnowledgeDelta:
    """Compare two reports of one probe set.

    Args:
        threshold: The share of the score before, and of the questions that had one, that must
            remain for `all_pass`.
        level: Of the gain's interval, two-sided.
    Raises:
        ProbeError: the questions or ideal answers differ, the scores were made in different ways,
            or no question has a score in both.
    """
    if pre.digest != post.digest:
        raise ProbeError(
            f"{pre.tag!r} and {post.tag!r} asked different questions; a probe set must stay as it was when "
            "its first report was made: run both again on one set"
        )
    if pre.scored_by != post.scored_by:
        raise ProbeError(
            f"{pre.tag!r} was scored by {pre.scored_by}, {post.tag!r} by {post.scored_by}; score both alike"
        )
    questions = tuple(
        KnowledgeDeltaRow(
            before.question,
            before.score,
            after.score,
            None if before.score is None or after.score is None else after.score - before.score,
            before.answer,
            after.answer,
        )
        for before, after in zip(pre.rows, post.rows, strict=True)
    )
    return _delta(pre, post, questions, threshold, level)


def _delta(
    pre: KnowledgeReport,
    post: KnowledgeReport,
    questions: tuple[KnowledgeDeltaRow, ...],
    threshold: float,
    level: float,
) -> KnowledgeDelta:
    paired = {
        row.question: (row.pre_score, row.post_score)
        for row in questions
        if row.pre_score is not None and row.post_score is not None
    }
    if not paired:
        raise ProbeError(f"no question has a score in both {pre.tag!r} and {post.tag!r}")
    items = tuple(paired)
    sides = [Scores(items, (0,), (tuple(pair[side] for pair in paired.values()),)) for side in (0, 1)]
    before, after = (side.mean for side in sides)
    metric = compare_values("knowledge_score", before, after, threshold)
    enough = len(paired) >= threshold * sum(row.pre_score is not None for row in questions)
    return KnowledgeDelta(
        pre_tag=pre.tag,
        post_tag=post.tag,
        questions=questions,
        rows=(metric,),
        pre_score=before,
        post_score=after,
        comparison=compare(*sides, level=level) if len(paired) > 1 else None,
        n_paired=len(paired),
        all_pass=enough and metric.status == "PASS",
        nothing_to_lose=enough and before == 0,
    )


def _number(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return "—"
    # Adding 0.0 turns the -0.00 of a rounded loss into 0.00.
    return f"{round(value, 2) + 0.0:{'+' if signed else ''}.2f}"


def _cell(text: str) -> str:
    flat = " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")
    return flat if len(flat) <= 80 else flat[:77] + "..."
