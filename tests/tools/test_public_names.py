"""The documented names are importable from `tools`: users move over by changing an import."""

from __future__ import annotations

import pytest

import tools

TRAINING = [
    "CompareResult",
    "CompareRow",
    "CompareThresholds",
    "DEEPSEEK_R1_0528_QWEN3_TOKENIZER_HASH",
    "DEEPSEEK_TOKENIZER_CLASS_REMAP",
    "DEFAULT_COMPARE_THRESHOLDS",
    "DEFAULT_FRESHNESS_DAYS",
    "ConvertError",
    "DecideEntry",
    "DecideError",
    "DecideFinding",
    "DecidePick",
    "HFToMegatron",
    "LoraReferenceSnapshot",
    "MODE_FULL",
    "MODE_SMOKE",
    "MergeExportError",
    "MergeExportResult",
    "ProbeError",
    "ProbeQuestion",
    "ProbeReport",
    "ProbeRow",
    "ProbeSummary",
    "ReasoningProbe",
    "RecipeError",
    "SEED_ENTRIES_DIR",
    "StalenessReport",
    "THINK_REGEX",
    "TrainError",
    "TrainRecipe",
    "TrainResult",
    "USER_ENTRIES_DIR",
    "VALID_LIFECYCLES",
    "WeightDeltaTracker",
    "YARN_DEFAULTS",
    "load_entries",
    "merge_and_export",
    "parse_think",
    "patch_yarn_defaults",
    "poll_run_progress",
    "refresh",
    "register_llama_cpp_pretokenizer_hash",
    "run",
    "sft_progress_dir",
    "standardize_hf_export",
    "summarize_rows",
    "train_backend",
]
LINEAGE = ["FailureLabel", "Trial", "RecipeEdit", "LineageSnapshot", "LineageStore"]
EVAL = [
    "Bench",
    "BenchCall",
    "Judge",
    "JudgeResult",
    "JudgeError",
    "Trajectory",
    "TrajectoryIter",
    "RUBRIC_CORRECTNESS",
    "RUBRIC_FAITHFULNESS",
    "RUBRIC_RELEVANCE",
    "BUILTIN_RUBRICS",
    "REFUSAL_PATTERNS",
    "is_refusal",
    "summarize_metric",
    "ASSERTION_KINDS",
    "AssertionGrader",
    "AssertionResult",
    "GradeResult",
    "PassAtK",
    "PassAtKResult",
    "pass_at_k_estimator",
    "AgentRun",
    "TurnDetail",
    "summarize_agent_runs",
    "MatchedBaseComparison",
    "MatchedBaseComparisonResult",
    "GroupStats",
]


@pytest.mark.parametrize("name", [*TRAINING, *LINEAGE, *EVAL])
def test_a_documented_name_is_there(name: str) -> None:
    assert name in tools.__all__
    assert getattr(tools, name) is not None


def test_the_list_of_names_is_true_and_sorted() -> None:
    assert tools.__all__ == sorted(set(tools.__all__))
    for name in tools.__all__:
        getattr(tools, name)
