"""Judging answers and rollouts: scorers and score rows, benches, judges, graders, pass@k."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tools.evaluation.agent_runs import AgentRun, TurnDetail, summarize_agent_runs
    from tools.evaluation.assertions import ASSERTION_KINDS, AssertionGrader, AssertionResult, GradeResult
    from tools.evaluation.bench import Bench, BenchCall
    from tools.evaluation.chat_clients import AnthropicClient, OpenAICompatibleClient
    from tools.evaluation.group_stats import GroupStats
    from tools.evaluation.judge import (
        BUILTIN_RUBRICS,
        RUBRIC_CORRECTNESS,
        RUBRIC_FAITHFULNESS,
        RUBRIC_RELEVANCE,
        ChatClient,
        Judge,
        JudgeError,
        JudgeResult,
    )
    from tools.evaluation.matched_base import MatchedBaseComparison
    from tools.evaluation.matched_result import MatchedBaseComparisonResult
    from tools.evaluation.metrics import summarize_metric
    from tools.evaluation.pass_at_k import PassAtK, PassAtKResult, pass_at_k_estimator
    from tools.evaluation.refusals import REFUSAL_PATTERNS, is_refusal
    from tools.evaluation.scorers import SCORERS, ScoreOutcome, Scorer, get_scorer, is_forbidden
    from tools.evaluation.scores import (
        ScoreRow,
        ScoreSummary,
        error_kind,
        read_scores,
        score_answer,
        summarise,
        write_scores,
    )
    from tools.evaluation.trajectory import Trajectory, TrajectoryIter

_HOMES = {
    "ASSERTION_KINDS": "assertions",
    "AgentRun": "agent_runs",
    "AnthropicClient": "chat_clients",
    "AssertionGrader": "assertions",
    "AssertionResult": "assertions",
    "BUILTIN_RUBRICS": "judge",
    "Bench": "bench",
    "BenchCall": "bench",
    "ChatClient": "judge",
    "GradeResult": "assertions",
    "GroupStats": "group_stats",
    "Judge": "judge",
    "JudgeError": "judge",
    "JudgeResult": "judge",
    "MatchedBaseComparison": "matched_base",
    "MatchedBaseComparisonResult": "matched_result",
    "OpenAICompatibleClient": "chat_clients",
    "PassAtK": "pass_at_k",
    "PassAtKResult": "pass_at_k",
    "REFUSAL_PATTERNS": "refusals",
    "RUBRIC_CORRECTNESS": "judge",
    "RUBRIC_FAITHFULNESS": "judge",
    "RUBRIC_RELEVANCE": "judge",
    "SCORERS": "scorers",
    "ScoreOutcome": "scorers",
    "ScoreRow": "scores",
    "ScoreSummary": "scores",
    "Scorer": "scorers",
    "Trajectory": "trajectory",
    "TrajectoryIter": "trajectory",
    "TurnDetail": "agent_runs",
    "error_kind": "scores",
    "get_scorer": "scorers",
    "is_forbidden": "scorers",
    "is_refusal": "refusals",
    "pass_at_k_estimator": "pass_at_k",
    "read_scores": "scores",
    "score_answer": "scores",
    "summarise": "scores",
    "summarize_agent_runs": "agent_runs",
    "summarize_metric": "metrics",
    "write_scores": "scores",
}

__all__ = [
    "ASSERTION_KINDS",
    "AgentRun",
    "AnthropicClient",
    "AssertionGrader",
    "AssertionResult",
    "BUILTIN_RUBRICS",
    "Bench",
    "BenchCall",
    "ChatClient",
    "GradeResult",
    "GroupStats",
    "Judge",
    "JudgeError",
    "JudgeResult",
    "MatchedBaseComparison",
    "MatchedBaseComparisonResult",
    "OpenAICompatibleClient",
    "PassAtK",
    "PassAtKResult",
    "REFUSAL_PATTERNS",
    "RUBRIC_CORRECTNESS",
    "RUBRIC_FAITHFULNESS",
    "RUBRIC_RELEVANCE",
    "SCORERS",
    "ScoreOutcome",
    "ScoreRow",
    "ScoreSummary",
    "Scorer",
    "Trajectory",
    "TrajectoryIter",
    "TurnDetail",
    "error_kind",
    "get_scorer",
    "is_forbidden",
    "is_refusal",
    "pass_at_k_estimator",
    "read_scores",
    "score_answer",
    "summarise",
    "summarize_agent_runs",
    "summarize_metric",
    "write_scores",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
