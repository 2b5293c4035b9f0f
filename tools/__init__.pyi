"""What `tools` exports: the one list of public names, which the package loads lazily."""

from .capabilities import (
    DTYPE_BYTES as DTYPE_BYTES,
    SPARK as SPARK,
    Envelope as Envelope,
    inference_envelope as inference_envelope,
    kv_cache_bytes as kv_cache_bytes,
    practical_inference_envelope as practical_inference_envelope,
    weight_bytes as weight_bytes,
)
from .chat import (
    Rendered as Rendered,
    Span as Span,
    mask_spans as mask_spans,
    normalize_for_template as normalize_for_template,
    render as render,
    render_prompt as render_prompt,
    stop_token_ids as stop_token_ids,
)
from .comparison import (
    Comparison as Comparison,
    Interval as Interval,
    Scores as Scores,
    compare as compare,
    corrected_level as corrected_level,
    interval as interval,
)
from .convert import (
    YARN_DEFAULTS as YARN_DEFAULTS,
    HFToMegatron as HFToMegatron,
    patch_yarn_defaults as patch_yarn_defaults,
)
from .dataset import (
    Dataset as Dataset,
    Message as Message,
    Row as Row,
    check_dataset as check_dataset,
    data_digest as data_digest,
    load_dataset as load_dataset,
    write_dataset as write_dataset,
)
from .decisions import (
    LEGACY_ENTRIES_DIR as LEGACY_ENTRIES_DIR,
    SEED_ENTRIES_DIR as SEED_ENTRIES_DIR,
    USER_ENTRIES_DIR as USER_ENTRIES_DIR,
    VALID_LIFECYCLES as VALID_LIFECYCLES,
    DecideEntry as DecideEntry,
    DecideFinding as DecideFinding,
    DecidePick as DecidePick,
    EntryScan as EntryScan,
    Provenance as Provenance,
    decide as decide,
    load_entries as load_entries,
    scan_entries as scan_entries,
    train_backend as train_backend,
    write_entry as write_entry,
)
from .errors import (
    AdapterFileError as AdapterFileError,
    BakehouseError as BakehouseError,
    BudgetError as BudgetError,
    CapabilityError as CapabilityError,
    ChatError as ChatError,
    ConvertError as ConvertError,
    DatasetError as DatasetError,
    DecideError as DecideError,
    DiskFullError as DiskFullError,
    EndpointBusyError as EndpointBusyError,
    EvaluationError as EvaluationError,
    EvidenceError as EvidenceError,
    GpuLostError as GpuLostError,
    HardwareError as HardwareError,
    JobError as JobError,
    JournalError as JournalError,
    JudgeError as JudgeError,
    LeakError as LeakError,
    LineageError as LineageError,
    LockHeldError as LockHeldError,
    McpError as McpError,
    MergeExportError as MergeExportError,
    MissingExtraError as MissingExtraError,
    ModelError as ModelError,
    PatchError as PatchError,
    PlannerError as PlannerError,
    PlannerOutageError as PlannerOutageError,
    ProbeError as ProbeError,
    RecipeError as RecipeError,
    RepoError as RepoError,
    ScorerError as ScorerError,
    TaskError as TaskError,
    TeacherError as TeacherError,
    TrackerError as TrackerError,
    TrainError as TrainError,
    UnknownTrialError as UnknownTrialError,
    WeightsError as WeightsError,
)
from .evaluation import (
    ASSERTION_KINDS as ASSERTION_KINDS,
    BUILTIN_RUBRICS as BUILTIN_RUBRICS,
    REFUSAL_PATTERNS as REFUSAL_PATTERNS,
    RUBRIC_CORRECTNESS as RUBRIC_CORRECTNESS,
    RUBRIC_FAITHFULNESS as RUBRIC_FAITHFULNESS,
    RUBRIC_RELEVANCE as RUBRIC_RELEVANCE,
    SCORERS as SCORERS,
    AgentRun as AgentRun,
    AnthropicClient as AnthropicClient,
    AssertionGrader as AssertionGrader,
    AssertionResult as AssertionResult,
    Bench as Bench,
    BenchCall as BenchCall,
    ChatClient as ChatClient,
    GradeResult as GradeResult,
    GroupStats as GroupStats,
    Judge as Judge,
    JudgeResult as JudgeResult,
    MatchedBaseComparison as MatchedBaseComparison,
    MatchedBaseComparisonResult as MatchedBaseComparisonResult,
    OpenAICompatibleClient as OpenAICompatibleClient,
    PassAtK as PassAtK,
    PassAtKResult as PassAtKResult,
    ScoreOutcome as ScoreOutcome,
    Scorer as Scorer,
    ScoreRow as ScoreRow,
    ScoreSummary as ScoreSummary,
    Trajectory as Trajectory,
    TrajectoryIter as TrajectoryIter,
    TurnDetail as TurnDetail,
    error_kind as error_kind,
    get_scorer as get_scorer,
    is_forbidden as is_forbidden,
    is_refusal as is_refusal,
    pass_at_k_estimator as pass_at_k_estimator,
    read_scores as read_scores,
    score_answer as score_answer,
    summarise as summarise,
    summarize_agent_runs as summarize_agent_runs,
    summarize_metric as summarize_metric,
    write_scores as write_scores,
)
from .extras import (
    EXTRAS as EXTRAS,
    require_extra as require_extra,
)
from .freshness import (
    DEFAULT_FRESHNESS_DAYS as DEFAULT_FRESHNESS_DAYS,
    Environment as Environment,
    StalenessReport as StalenessReport,
    refresh as refresh,
    staleness as staleness,
)
from .generators.endpoint import EndpointGenerator as EndpointGenerator
from .generators.engine import (
    EngineGenerator as EngineGenerator,
    open_engine_generator as open_engine_generator,
)
from .generators.generator import Generation as Generation, Generator as Generator
from .generators.scoring import Generated as Generated, score_generated as score_generated
from .gguf_export import (
    GgufExport as GgufExport,
    export_gguf as export_gguf,
)
from .hardware import (
    Fit as Fit,
    Hardware as Hardware,
    ModelShape as ModelShape,
    check_fit as check_fit,
    detect as detect,
    estimate as estimate,
    read_shape as read_shape,
)
from .hub_push import (
    HubPush as HubPush,
    push_folder as push_folder,
)
from .jobs import (
    JobRecord as JobRecord,
    cancel_job as cancel_job,
    list_jobs as list_jobs,
    read_job as read_job,
    start_job as start_job,
    wait_job as wait_job,
)
from .journal import (
    Journal as Journal,
    JournalEvent as JournalEvent,
)
from .leakage import (
    Leak as Leak,
    check_leaks as check_leaks,
    find_leaks as find_leaks,
)
from .lineage import (
    FailureLabel as FailureLabel,
    LineageSnapshot as LineageSnapshot,
    LineageStore as LineageStore,
    RecipeEdit as RecipeEdit,
    Trial as Trial,
)
from .merge import (
    MergeExportResult as MergeExportResult,
    merge_and_export as merge_and_export,
)
from .models import (
    KNOWN_MODELS as KNOWN_MODELS,
    RegistryModel as RegistryModel,
    cache_root as cache_root,
    fetch_model as fetch_model,
    resolve_base_model as resolve_base_model,
)
from .parity import (
    Parity as Parity,
    check_parity as check_parity,
)
from .patch import (
    Change as Change,
    RecipePatch as RecipePatch,
    apply_patch as apply_patch,
    diff_recipes as diff_recipes,
    format_changes as format_changes,
    format_diff as format_diff,
    patch_between as patch_between,
    patch_from_mapping as patch_from_mapping,
    schema as schema,
)
from .patch_space import (
    DEFAULT_SPACE as DEFAULT_SPACE,
    FieldRange as FieldRange,
    PatchSpace as PatchSpace,
)
from .poll import (
    RunProgress as RunProgress,
    poll_run_progress as poll_run_progress,
    read_progress as read_progress,
)
from .pretokenizer import (
    DEEPSEEK_R1_0528_QWEN3_TOKENIZER_HASH as DEEPSEEK_R1_0528_QWEN3_TOKENIZER_HASH,
    register_llama_cpp_pretokenizer_hash as register_llama_cpp_pretokenizer_hash,
)
from .pretraining.corpus import Corpus as Corpus, read_corpus as read_corpus
from .pretraining.run import (
    PretrainResult as PretrainResult,
    PretrainSettings as PretrainSettings,
    pretrain as pretrain,
)
from .probe import (
    DEFAULT_COMPARE_THRESHOLDS as DEFAULT_COMPARE_THRESHOLDS,
    THINK_REGEX as THINK_REGEX,
    BatchGenerator as BatchGenerator,
    CompareResult as CompareResult,
    CompareRow as CompareRow,
    CompareThresholds as CompareThresholds,
    KnowledgeDelta as KnowledgeDelta,
    KnowledgeDeltaRow as KnowledgeDeltaRow,
    KnowledgeProbe as KnowledgeProbe,
    KnowledgeQuestion as KnowledgeQuestion,
    KnowledgeReport as KnowledgeReport,
    KnowledgeRow as KnowledgeRow,
    ModelGenerator as ModelGenerator,
    ProbeKind as ProbeKind,
    ProbeQuestion as ProbeQuestion,
    ProbeReport as ProbeReport,
    ProbeRow as ProbeRow,
    ProbeSummary as ProbeSummary,
    ReasoningProbe as ReasoningProbe,
    Response as Response,
    Sampling as Sampling,
    compare_knowledge as compare_knowledge,
    is_cut_off as is_cut_off,
    load_probe_kind as load_probe_kind,
    open_generator as open_generator,
    parse_think as parse_think,
    score_fact as score_fact,
    strip_think as strip_think,
    summarize_rows as summarize_rows,
)
from .recipe import (
    MODE_FULL as MODE_FULL,
    MODE_SMOKE as MODE_SMOKE,
    TrainRecipe as TrainRecipe,
)
from .repo import (
    ITERATION_TRAILER as ITERATION_TRAILER,
    Repo as Repo,
    Worktree as Worktree,
    ensure_worktree as ensure_worktree,
    find_repo as find_repo,
    open_worktree as open_worktree,
)
from .standardize import (
    DEEPSEEK_TOKENIZER_CLASS_REMAP as DEEPSEEK_TOKENIZER_CLASS_REMAP,
    is_byte_level as is_byte_level,
    standardize_hf_export as standardize_hf_export,
)
from .task import (
    Task as Task,
)
from .train import (
    TrainResult as TrainResult,
    run as run,
    sft_progress_dir as sft_progress_dir,
)
from .verdict import (
    Guard as Guard,
    Ruling as Ruling,
    Verdict as Verdict,
    forbidden_guard as forbidden_guard,
    probe_guard as probe_guard,
    reach_verdict as reach_verdict,
)
from .weights import (
    LoraReferenceSnapshot as LoraReferenceSnapshot,
    WeightDeltaTracker as WeightDeltaTracker,
)
from .workspace import (
    Workspace as Workspace,
)
