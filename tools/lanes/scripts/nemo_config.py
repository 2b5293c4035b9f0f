"""A recipe as Megatron-Bridge's configuration of a LoRA run."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tools.convert import build_provider, load_bridge
from tools.engine.schedule import learning_rate_at
from tools.lanes.scripts.nemo_rows import batch_rows, pack_rows, pad_rows, read_rows
from tools.recipe import TrainRecipe

__all__ = ["RunPaths", "build_config", "lora_fields", "use_learning_rates"]

_PRECISION: Final = {"bfloat16": "bf16_mixed", "float16": "fp16_mixed", "float32": None}


@dataclass(frozen=True)
class RunPaths:
    """Where a run reads and writes."""

    run_dir: Path
    rows: Path
    base: Path
    """The base model as a Megatron checkpoint."""


def build_config(recipe: TrainRecipe, paths: RunPaths, steps: int) -> Any:
    """Return Megatron-Bridge's ConfigContainer for the recipe."""
    import torch

    cfg: Any = importlib.import_module("megatron.bridge.training.config")
    lora = importlib.import_module("megatron.bridge.peft.lora").LoRA
    tokenizers = importlib.import_module("megatron.bridge.training.tokenizers.config")
    provider, _ = build_provider(load_bridge(recipe.base_model, recipe.torch_dtype), load_weights=False)
    provider.seq_length = recipe.seq_length * (recipe.micro_batch_size if recipe.packing else 1)
    # One mean over all learned tokens of a batch, as on the local lane.
    provider.calculate_per_token_loss = True
    precision = _PRECISION[recipe.torch_dtype]
    evaluation = {"eval_iters": 0, "eval_interval": steps}
    newer = hasattr(cfg, "ValidationConfig")
    return cfg.ConfigContainer(
        model=provider,
        train=cfg.TrainingConfig(
            train_iters=steps,
            micro_batch_size=recipe.micro_batch_size,
            global_batch_size=recipe.global_batch_size,
            exit_signal_handler=True,
            **({} if newer else evaluation),
        ),
        optimizer=_optimizer(cfg, recipe, precision),
        scheduler=_scheduler(cfg, recipe, steps),
        ddp=cfg.DistributedDataParallelConfig(
            grad_reduce_in_fp32=True, use_distributed_optimizer=False, check_for_nan_in_grad=True
        ),
        dataset=_dataset(cfg, recipe, paths.rows, steps),
        logger=cfg.LoggerConfig(log_interval=1),
        tokenizer=tokenizers.TokenizerConfig(
            tokenizer_type="HuggingFaceTokenizer", tokenizer_model=recipe.base_model
        ),
        checkpoint=cfg.CheckpointConfig(
            save=str(paths.run_dir),
            load=str(paths.run_dir),
            pretrained_checkpoint=str(paths.base),
            save_interval=min(recipe.save_interval, steps),
            most_recent_k=recipe.most_recent_k,
            ckpt_format="torch_dist",
        ),
        # Megatron takes no seed of 0.
        rng=cfg.RNGConfig(seed=recipe.seed % 2**32 or 2**32 - 1),
        dist=cfg.DistributedInitConfig(distributed_backend="nccl" if torch.cuda.is_available() else "gloo"),
        peft=lora(**lora_fields(recipe)),
        mixed_precision=precision,
        **({"validation": cfg.ValidationConfig(**evaluation)} if newer else {}),
    )


def lora_fields(recipe: TrainRecipe) -> dict[str, Any]:
    """Return the recipe's adapter in Megatron-Bridge's words."""
    targets = recipe.replace(backend="nemo").lora_target_modules_for_backend()
    return {
        "target_modules": list(targets),
        "dim": recipe.lora_rank,
        # The bridge multiplies by alpha / dim, whatever alpha is.
        "alpha": recipe.lora_scale() * recipe.lora_rank if recipe.use_rslora else recipe.lora_alpha,
        "dropout": recipe.lora_dropout,
        "dropout_position": "pre",
    }


def use_learning_rates(recipe: TrainRecipe, steps: int) -> None:
    """Make Megatron's scheduler give the learning rates of the local lane.

    Its own warm-up spends the first step on a rate of zero.
    """
    scheduler = importlib.import_module("megatron.core.optimizer_param_scheduler").OptimizerParamScheduler

    def get_lr(self: Any, param_group: dict[str, Any]) -> float:
        step = self.num_steps // recipe.global_batch_size
        return learning_rate_at(recipe, min(step, steps - 1), steps)

    scheduler.get_lr = get_lr


def _optimizer(cfg: Any, recipe: TrainRecipe, precision: str | None) -> Any:
    return cfg.OptimizerConfig(
        optimizer="adam",
        lr=recipe.learning_rate,
        min_lr=recipe.min_learning_rate,
        weight_decay=recipe.weight_decay,
        clip_grad=recipe.max_grad_norm,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_eps=1e-8,
        bf16=precision == "bf16_mixed",
        fp16=precision == "fp16_mixed",
        use_distributed_optimizer=False,
    )


def _scheduler(cfg: Any, recipe: TrainRecipe, steps: int) -> Any:
    return cfg.SchedulerConfig(
        lr_decay_style=recipe.lr_schedule,
        lr_decay_iters=steps,
        lr_warmup_iters=min(round(recipe.lr_warmup_fraction * steps), steps - 1),
        start_weight_decay=recipe.weight_decay,
        end_weight_decay=recipe.weight_decay,
    )


def _dataset(cfg: Any, recipe: TrainRecipe, path: Path, steps: int) -> Any:
    from torch.utils.data import Dataset

    class Batches(Dataset):  # type: ignore[type-arg]
        """Every row of every step, in order."""

        def __init__(self) -> None:
            self._rows = batch_rows(read_rows(path), recipe.global_batch_size, recipe.seed, steps)
            self.collate_fn = pack_rows if recipe.packing else pad_rows

        def __len__(self) -> int:
            return len(self._rows)

        def __getitem__(self, index: int) -> Any:
            return self._rows[index]

    @dataclass(kw_only=True)
    class Rows(cfg.DatasetProvider):  # type: ignore[misc]
        """What Megatron-Bridge builds its data loader from."""

        rows_path: str
        seq_length: int

        def build_datasets(self, context: Any) -> tuple[Any, None, None]:
            return Batches(), None, None

    return Rows(
        rows_path=str(path),
        seq_length=recipe.seq_length,
        dataloader_type="single",
        num_workers=0,
        persistent_workers=False,
    )
