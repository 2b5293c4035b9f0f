"""The Unsloth trainer: `python3 -P -m tools.lanes.scripts.train_unsloth SPEC.json`, in the container.

Rows are rendered and masked as on the local lane, by the same code. Rows are padded and
never packed: `packing` saves time elsewhere and changes no loss.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from tools.chat import render
from tools.dataset import load_dataset
from tools.engine.schedule import learning_rate_at
from tools.errors import BakehouseError, DatasetError
from tools.recipe import TrainRecipe

__all__ = ["main", "tokenize_rows"]

_LOG = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """Train what the spec in argv[0] says; 0 when the last checkpoint is saved."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    spec = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    try:
        _train(TrainRecipe.from_dict(spec["recipe"]), Path(spec["run_dir"]), int(spec["steps"]))
    except BakehouseError as err:
        _LOG.error("%s: %s", type(err).__name__, err)
        return 1
    return 0


def tokenize_rows(recipe: TrainRecipe, tokenizer: Any) -> list[dict[str, list[int]]]:
    """Return every row's token ids and labels, -100 where nothing is learned.

    Raises:
        DatasetError: rows are malformed, or longer than seq_length.
    """
    prompt = recipe.system_prompt_file
    system = None if prompt is None else Path(prompt).read_text(encoding="utf-8").strip() or None
    found: list[dict[str, list[int]]] = []
    too_long: list[str] = []
    for row in load_dataset(recipe.dataset_jsonl).rows:
        rendered = render(tokenizer, row.messages, system_prompt=system)
        pairs = zip(rendered.input_ids, rendered.loss_mask, strict=True)
        labels = [token if learned else -100 for token, learned in pairs]
        found.append({"input_ids": list(rendered.input_ids), "labels": labels})
        if len(labels) > recipe.seq_length:
            too_long.append(row.id)
    if too_long:
        raise DatasetError(
            f"{len(too_long)} rows are longer than seq_length {recipe.seq_length}: {too_long[:20]}; "
            "raise seq_length or shorten them"
        )
    return found


def _train(recipe: TrainRecipe, run_dir: Path, steps: int) -> None:
    # Unsloth has to come first: it patches what is imported after it.
    from unsloth import FastLanguageModel  # type: ignore[import-not-found]  # isort: skip
    import torch
    from datasets import Dataset  # type: ignore[import-not-found]
    from transformers import DataCollatorForSeq2Seq

    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=recipe.base_model,
        max_seq_length=recipe.seq_length,
        dtype=getattr(torch, recipe.torch_dtype),
        load_in_4bit=False,
    )
    rows = tokenize_rows(recipe, tokenizer)
    model = FastLanguageModel.get_peft_model(
        model,
        r=recipe.lora_rank,
        target_modules=list(recipe.lora_target_modules),
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        bias="none",
        use_gradient_checkpointing="unsloth",
        random_state=recipe.seed,
        use_rslora=recipe.use_rslora,
        layers_to_transform=None if recipe.lora_layers is None else list(recipe.lora_layers),
    )
    trainer = _trainer_class(recipe, steps)(
        model=model,
        processing_class=tokenizer,
        args=_arguments(recipe, run_dir, steps),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
    )
    saved = [path for path in run_dir.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    trainer.train(resume_from_checkpoint=bool(saved))


def _arguments(recipe: TrainRecipe, run_dir: Path, steps: int) -> Any:
    from trl import SFTConfig  # type: ignore[import-not-found]

    return SFTConfig(
        output_dir=str(run_dir),
        max_steps=steps,
        per_device_train_batch_size=recipe.micro_batch_size,
        gradient_accumulation_steps=recipe.global_batch_size // recipe.micro_batch_size,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        save_strategy="steps",
        save_steps=min(recipe.save_interval, steps),
        save_total_limit=None if recipe.most_recent_k == -1 else recipe.most_recent_k,
        logging_steps=1,
        seed=recipe.seed,
        data_seed=recipe.seed,
        bf16=recipe.torch_dtype == "bfloat16",
        fp16=recipe.torch_dtype == "float16",
        max_length=recipe.seq_length,
        packing=False,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        report_to=[],
    )


def _trainer_class(recipe: TrainRecipe, steps: int) -> Any:
    """Return trl's trainer with the learning rates of the local lane."""
    from torch.optim.lr_scheduler import LambdaLR
    from trl import SFTTrainer

    class Trainer(SFTTrainer):  # type: ignore[misc]
        lr_scheduler: Any

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            if self.lr_scheduler is None:
                self.lr_scheduler = LambdaLR(
                    optimizer or self.optimizer,
                    lambda step: learning_rate_at(recipe, min(step, steps - 1), steps) / recipe.learning_rate,
                )
            return self.lr_scheduler

    return Trainer


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
