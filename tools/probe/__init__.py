"""Probes: does a model still reason, and what does it know, before and after training."""

from __future__ import annotations

from tools.errors import ProbeError
from tools.probe.asking import BatchGenerator, Response
from tools.probe.fact_score import score_fact
from tools.probe.generator import ModelGenerator, Sampling, open_generator
from tools.probe.knowledge import Judge, KnowledgeProbe
from tools.probe.knowledge_delta import KnowledgeDelta, KnowledgeDeltaRow, compare_knowledge
from tools.probe.knowledge_report import KnowledgeReport, KnowledgeRow
from tools.probe.questions import KnowledgeQuestion, ProbeKind, ProbeQuestion, load_probe_kind
from tools.probe.ratios import (
    DEFAULT_COMPARE_THRESHOLDS,
    CompareResult,
    CompareRow,
    CompareThresholds,
)
from tools.probe.reasoning import ReasoningProbe
from tools.probe.report import ProbeReport
from tools.probe.rows import ProbeRow, ProbeSummary, summarize_rows
from tools.probe.think import THINK_REGEX, is_cut_off, parse_think, strip_think

__all__ = [
    "DEFAULT_COMPARE_THRESHOLDS",
    "THINK_REGEX",
    "BatchGenerator",
    "CompareResult",
    "CompareRow",
    "CompareThresholds",
    "Judge",
    "KnowledgeDelta",
    "KnowledgeDeltaRow",
    "KnowledgeProbe",
    "KnowledgeQuestion",
    "KnowledgeReport",
    "KnowledgeRow",
    "ModelGenerator",
    "ProbeError",
    "ProbeKind",
    "ProbeQuestion",
    "ProbeReport",
    "ProbeRow",
    "ProbeSummary",
    "ReasoningProbe",
    "Response",
    "Sampling",
    "compare_knowledge",
    "is_cut_off",
    "load_probe_kind",
    "open_generator",
    "parse_think",
    "score_fact",
    "strip_think",
    "summarize_rows",
]
