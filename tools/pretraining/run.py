"""A corpus learned by a base and merged: prepare, measure, train, merge, measure again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tools.child import termination_as_exit
from tools.errors import DatasetError, LockHeldError, TrainError
from tools.extras import require_extra
from tools.files import digest_json, write_json_atomic
from tools.merge import MERGED_HF, merge_and_export
from tools.models import resolve_base_model
from tools.poll import poll_run_progress
from tools.pretraining.chunks import chunk_documents
from tools.pretraining.corpus import Corpus
from tools.pretraining.holding_out import HeldOut, hold_out
from tools.pretraining.perplexity import Perplexity, perplexity_of
from tools.recipe import MODE_FULL, TrainRecipe
from tools.run_folder import held, is_finished
from tools.token_rows import SUFFIX, write_token_rows
from tools.train import run
from tools.versions import library_versions

__all__ = ["PROVENANCE", "PretrainResult", "PretrainSettings", "pretrain"]

logger = logging.getLogger(__name__)

PROVENANCE: Final = "bakehouse-pretrained.json"
"""The file in the new base that says what it was made of."""

_TARGETS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_STAGES: Final = "stages.json"


@dataclass(frozen=True)
class PretrainSettings:
    """How a corpus is learned. The learning rate is low: a base takes in a domain by gentle updates."""

    base_model: str
    epochs: float = 1.0
    learning_rate: float = 2e-5
    lora_rank: int = 32
    lora_target_modules: tuple[str, ...] = _TARGETS
    seq_length: int = 1024
    """Tokens of a piece; a longer document is several."""
    micro_batch_size: int = 4
    global_batch_size: int = 16
    save_interval: int = 50
    torch_dtype: str = "bfloat16"
    seed: int = 42
    held_out: float = 0.05
    """Share of the corpus that is measured on and not learned from."""

    def recipe(self, rows: Path, out: Path) -> TrainRecipe:
        """Return the recipe of the training.

        Raises:
            RecipeError: a value is out of its range.
        """
        made = TrainRecipe.from_dict(
            {
                "base_model": self.base_model,
                "dataset_jsonl": str(rows),
                "output_dir": str(out),
                "epochs": self.epochs,
                "learning_rate": self.learning_rate,
                "lora_rank": self.lora_rank,
                "lora_alpha": 2 * self.lora_rank,
                "lora_dropout": 0.0,
                "lora_target_modules": list(self.lora_target_modules),
                "seq_length": self.seq_length,
                "micro_batch_size": self.micro_batch_size,
                "global_batch_size": self.global_batch_size,
                "save_interval": self.save_interval,
                "torch_dtype": self.torch_dtype,
                "seed": self.seed,
                "notes": "continued pretraining on plain text",
            }
        )
        made.validate()
        return made


@dataclass(frozen=True)
class PretrainResult:
    """The new base, and whether it predicts the held-out documents better than the old one."""

    base: str
    """The folder that a recipe names as base_model."""
    corpus_digest: str
    recipe_digest: str
    n_documents: int
    n_train_tokens: int
    steps: int
    before: Perplexity
    after: Perplexity

    @property
    def gained(self) -> bool:
        """The perplexity on the held-out documents fell."""
        return self.after.loss < self.before.loss


@dataclass(frozen=True)
class _Prepared:
    recipe: TrainRecipe
    held_rows: Path
    n_train_tokens: int
    digest: str
    """Over all that the result depends on."""


def pretrain(
    corpus: Corpus,
    settings: PretrainSettings,
    out: str | Path,
    *,
    on_stage: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[int, list[int]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> PretrainResult:
    """Learn a corpus with LoRA on every token and merge it into a new base folder below out.

    No chat template is used; attention stays inside each document. Called again after a kill,
    with the same corpus and settings, it goes on where it was; after its end it only reports.

    Args:
        on_stage: Told in a few words what is being done.
        on_progress: As `tools.train.run` takes it.
        should_stop: True ends the training; what it saved stays.
    Raises:
        DatasetError: too little text, or a tokenizer without an end token.
        RecipeError, ModelError: settings or base are unfit.
        TrainError, MergeExportError: a step failed.
        MissingExtraError: the extra `train` is not installed.
    """
    require_extra("train", purpose="pretraining")
    folder = Path(out).expanduser().resolve()
    try:
        with termination_as_exit(), held(folder / ".pretrain.lock", what=f"the pretraining in {folder}"):
            on_stage("preparing the corpus")
            prepared = _prepare(corpus, settings, folder)
            stages = _Stages(folder / _STAGES, prepared.digest)
            _refuse_another_base(folder, stages)
            return _carry_out(
                corpus, prepared, stages, folder, on_stage, on_progress=on_progress, should_stop=should_stop
            )
    except LockHeldError as err:
        raise TrainError(str(err)) from err


def _refuse_another_base(folder: Path, stages: _Stages) -> None:
    """A base that recipes may name already must not become another one under them."""
    made = folder / MERGED_HF / PROVENANCE
    if made.exists() and not stages.knows("told"):
        raise TrainError(
            f"{folder / MERGED_HF} is a base made of another corpus or by other settings; give this one "
            "another place, or remove that folder if no recipe names it"
        )


def _prepare(corpus: Corpus, settings: PretrainSettings, folder: Path) -> _Prepared:
    parts = hold_out(corpus.documents, settings.held_out, seed=settings.seed)
    base = resolve_base_model(settings.base_model)
    recipe = PretrainSettings(**{**asdict(settings), "base_model": base}).recipe(
        folder / f"train{SUFFIX}", folder
    )
    held_rows = folder / f"held-out{SUFFIX}"
    n_train_tokens = _write_rows(parts, recipe, held_rows)
    digest = digest_json([recipe.digest, corpus.digest, settings.held_out])
    return _Prepared(recipe, held_rows, n_train_tokens, digest)


def _write_rows(parts: HeldOut, recipe: TrainRecipe, held_rows: Path) -> int:
    """Write both files of token rows and return how many tokens there are to learn."""
    tokenizer = _tokenizer(recipe.base_model)
    train = list(chunk_documents(parts.train, tokenizer, recipe.seq_length))
    measured = list(chunk_documents(parts.held_out, tokenizer, recipe.seq_length))
    if not train or not measured:
        raise DatasetError("the corpus has too little text: nothing to learn from, or nothing to measure on")
    write_token_rows(Path(recipe.dataset_jsonl), train)
    write_token_rows(held_rows, measured)
    return sum(len(row.input_ids) - 1 for row in train)


def _tokenizer(base: str) -> Any:
    from transformers import AutoTokenizer

    path = Path(base)
    if path.suffix == ".gguf":
        return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    return AutoTokenizer.from_pretrained(base)


def _carry_out(
    corpus: Corpus,
    prepared: _Prepared,
    stages: _Stages,
    folder: Path,
    on_stage: Callable[[str], None],
    **training: Any,
) -> PretrainResult:
    recipe = prepared.recipe
    dtype = recipe.torch_dtype

    def measure(model: str, when: str) -> dict[str, Any]:
        on_stage(f"measuring the perplexity {when} training")
        return asdict(
            perplexity_of(model, prepared.held_rows, dtype=dtype, work=folder / f"perplexity-{when}")
        )

    def train() -> dict[str, Any]:
        # A kill may have come between its end and the record of it.
        if is_finished(recipe, MODE_FULL):
            return {"steps": poll_run_progress(recipe.run_dir(MODE_FULL))[0]}
        on_stage("training")
        return {"steps": run(recipe, mode=MODE_FULL, poll_interval=1.0, **training).final_iter}

    def merge(steps: int) -> dict[str, Any]:
        on_stage("merging")
        return {"base": merge_and_export(recipe, expect_iter=steps).merged_hf_dir}

    before = stages.take("before", lambda: measure(recipe.base_model, "before"))
    trained = stages.take("trained", train)
    merged = stages.take("merged", lambda: merge(trained["steps"]))
    after = stages.take("after", lambda: measure(merged["base"], "after"))
    result = PretrainResult(
        base=merged["base"],
        corpus_digest=corpus.digest,
        recipe_digest=recipe.digest,
        n_documents=len(corpus.documents),
        n_train_tokens=prepared.n_train_tokens,
        steps=trained["steps"],
        before=Perplexity(**before),
        after=Perplexity(**after),
    )
    stages.take("told", lambda: _write_provenance(result, recipe, corpus))
    return result


def _write_provenance(result: PretrainResult, recipe: TrainRecipe, corpus: Corpus) -> dict[str, Any]:
    told = {
        "version": 1,
        "created_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "base_model": recipe.base_model,
        "corpus": {
            "digest": result.corpus_digest,
            "files": corpus.n_files,
            "documents": result.n_documents,
            "duplicates_left_out": corpus.n_duplicates,
            "tokens": result.n_train_tokens,
        },
        "recipe": recipe.to_dict(),
        "recipe_digest": result.recipe_digest,
        "steps": result.steps,
        "held_out": {"before": asdict(result.before), "after": asdict(result.after)},
        "versions": library_versions(),
    }
    write_json_atomic(Path(result.base) / PROVENANCE, told)
    return {}


class _Stages:
    """What was done already for this very corpus and these settings, on disk."""

    def __init__(self, path: Path, digest: str) -> None:
        self._path = path
        self._digest = digest
        self._done: dict[str, Any] = {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["digest"] == digest and all(isinstance(one, dict) for one in found["done"].values()):
                self._done = dict(found["done"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            logger.debug("%s tells of nothing done", path)
        base = self._done.get("merged", {}).get("base")
        if base is not None and not (Path(base) / "config.json").is_file():
            # The base was removed, and with it what was said of it.
            self._done = {name: one for name, one in self._done.items() if name in ("before", "trained")}

    def knows(self, name: str) -> bool:
        """Return whether a stage is done."""
        return name in self._done

    def take(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what a stage gave, which is done now unless it was before."""
        if name not in self._done:
            self._done[name] = work()
            write_json_atomic(self._path, {"digest": self._digest, "done": self._done})
        found: dict[str, Any] = self._done[name]
        return found
