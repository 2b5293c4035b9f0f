"""Train a bakeoff's recipes with others' tools: transformers and peft in a loop, or TRL.

    python benchmarks/bakeoff_peers.py JOB.json

Run by benchmarks/bakeoff.py, maybe in an environment of the peers' own: imports nothing of this
project but what lies beside it. The base is loaded once for all recipes of a job.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bakeoff_work import (
    ABSENT,
    Job,
    Measured,
    Recipe,
    Speed,
    Stopwatch,
    peak_bytes,
    rate_at,
    versions_of,
    write_measured,
)

PACKAGES = ["torch", "transformers", "peft", "trl", "liger-kernel", "accelerate", "datasets"]


def main(path: str) -> None:
    """Do what a job says."""
    job = Job.read(path)
    warnings.filterwarnings("ignore")
    try:
        run = Peft(job) if job.contender == "peft loop" else Trl(job)
    except ImportError as err:
        print(f"{type(err).__name__}: {err}", file=sys.stderr)
        sys.exit(ABSENT)
    write_measured(job, run.train_all())


def load_model(job: Job) -> Any:
    """Return the base in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        job.work.model, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    return model.to(job.work.device)


def lora_config(recipe: Recipe) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=0.0,
        target_modules=list(recipe.targets),
        task_type="CAUSAL_LM",
    )


class Peer:
    """A contender: trains recipe after recipe on one base."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.rows = job.work.token_rows()
        self.losses: dict[str, float] = {}
        self.speeds: list[Speed] = []
        self.tokens = 0
        self.after: Callable[[Recipe, Any], None] = lambda recipe, model: None

    def train_all(self) -> Measured:
        """Train every recipe of the job and measure."""
        model = load_model(self.job)
        for recipe in self.job.chosen:
            adapted = self.train(recipe, model)
            adapted.save_pretrained(Path(self.job.folder) / recipe.name)
            self.after(recipe, adapted)
            model = adapted.unload()
        return Measured(
            median(speed.wall for speed in self.speeds),
            median(speed.cpu for speed in self.speeds),
            self.tokens,
            self.losses,
            peak_bytes(self.job.work.device),
            versions_of(PACKAGES),
        )

    def train(self, recipe: Recipe, model: Any) -> Any:
        """Train one recipe and return the peft model."""
        raise NotImplementedError


class Peft(Peer):
    """transformers and peft in a plain loop: padded to the longest row of a batch, fused AdamW."""

    def __init__(self, job: Job) -> None:
        import peft  # noqa: F401
        import transformers  # noqa: F401

        super().__init__(job)

    def train(self, recipe: Recipe, model: Any) -> Any:
        import torch
        from peft import get_peft_model

        work = self.job.work
        torch.manual_seed(recipe.seed)
        adapted = get_peft_model(model, lora_config(recipe)).train()
        weights = [p for p in adapted.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0, fused=True)
        watch = Stopwatch(work.device)
        losses: list[Any] = []
        tokens = 0
        batches = self.batches(recipe.seed)
        for step in range(work.steps):
            if step == work.warm_steps:
                watch.start(tokens)
            rows = next(batches)
            loss = adapted(**self.collate(rows)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.param_groups[0]["lr"] = rate_at(recipe.learning_rate, step, work.steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
            tokens += sum(len(row["input_ids"]) for row in rows)
        self.speeds.append(watch.speed(tokens))
        self.tokens += tokens
        self.losses[recipe.name] = float(torch.stack(losses).mean())
        return adapted

    def batches(self, seed: int) -> Any:
        """Yield the rows of step after step, every epoch in an order of its own."""
        draw = random.Random(seed)
        size = self.job.work.rows_per_step
        while True:
            order = draw.sample(self.rows, len(self.rows))
            yield from (order[i : i + size] for i in range(0, len(order), size))

    def collate(self, rows: list[dict[str, list[int]]]) -> dict[str, Any]:
        import torch

        width = max(len(row["input_ids"]) for row in rows)
        ids, mask, labels = [], [], []
        for row in rows:
            pad = width - len(row["input_ids"])
            ids.append(row["input_ids"] + [0] * pad)
            mask.append([1] * len(row["input_ids"]) + [0] * pad)
            wanted = zip(row["input_ids"], row["completion_mask"], strict=True)
            labels.append([token if learned else -100 for token, learned in wanted] + [-100] * pad)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {name: torch.tensor(value).to(self.job.work.device) for name, value in batch.items()}


class Trl(Peer):
    """TRL's SFTTrainer; the contender's name says with which settings."""

    def __init__(self, job: Job) -> None:
        import trl  # noqa: F401

        super().__init__(job)
        self.settings = set(job.contender.removeprefix("trl ").split("+"))
        if "liger" in self.settings:
            import liger_kernel  # noqa: F401
        from datasets import Dataset, disable_progress_bars
        from transformers import AutoTokenizer

        disable_progress_bars()
        self.dataset = Dataset.from_list(self.rows)
        self.tokenizer = AutoTokenizer.from_pretrained(job.work.model)

    def config(self, recipe: Recipe) -> Any:
        from trl import SFTConfig

        work = self.job.work
        packed = "packed" in self.settings
        mean_tokens = sum(len(row["input_ids"]) for row in self.rows) / len(self.rows)
        return SFTConfig(
            output_dir=str(Path(self.job.folder) / "trl"),
            # A packed row holds what a step's rows hold.
            per_device_train_batch_size=1 if packed else work.rows_per_step,
            max_length=round(mean_tokens * work.rows_per_step) if packed else 8192,
            packing=packed,
            max_steps=work.steps,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            bf16="pure" not in self.settings,
            gradient_checkpointing=False,
            completion_only_loss=True,
            use_liger_kernel="liger" in self.settings,
            torch_compile="compiled" in self.settings,
            use_cpu=work.device == "cpu",
            dataloader_pin_memory=work.device == "cuda",
            seed=recipe.seed,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )

    def train(self, recipe: Recipe, model: Any) -> Any:
        from peft import get_peft_model
        from transformers import TrainerCallback
        from trl import SFTTrainer

        work = self.job.work
        watch = Stopwatch(work.device)
        batches: list[int] = []

        class Clock(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == work.warm_steps:
                    watch.start(sum(batches[: work.warm_steps]))

        if "pure" in self.settings:
            adapted = get_peft_model(model, lora_config(recipe), autocast_adapter_dtype=False)
            trainer = SFTTrainer(
                adapted,
                self.config(recipe),
                train_dataset=self.dataset,
                processing_class=self.tokenizer,
                callbacks=[Clock()],
            )
        else:
            trainer = SFTTrainer(
                model,
                self.config(recipe),
                train_dataset=self.dataset,
                processing_class=self.tokenizer,
                peft_config=lora_config(recipe),
                callbacks=[Clock()],
            )
        collate = trainer.data_collator

        def counted(examples: Any) -> Any:
            batches.append(sum(len(example["input_ids"]) for example in examples))
            return collate(examples)

        trainer.data_collator = counted
        self.losses[recipe.name] = float(trainer.train().training_loss)
        # The loader reads one batch ahead.
        tokens = sum(batches[: work.steps])
        self.speeds.append(watch.speed(tokens))
        self.tokens += tokens
        return trainer.model


if __name__ == "__main__":
    main(sys.argv[1])
