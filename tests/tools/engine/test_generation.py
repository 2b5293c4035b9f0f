from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import tiny_model
from tests.tools.engine.conftest import write_rows
from tools.chat import render_prompt
from tools.dataset import load_dataset
from tools.engine.adapter_files import load_adapter
from tools.engine.base import LoadedBase
from tools.engine.generation import StoppedError, generate_answers, stop_ids_of
from tools.engine.spec import StackMember
from tools.engine.trainer import train_stack


def prompts_of(base: LoadedBase, tmp_path: Path) -> list[tuple[int, ...]]:
    rows = load_dataset(write_rows(tmp_path / "dev.jsonl", 13)).rows
    return [render_prompt(base.tokenizer, row.prompt) for row in rows]


def hf_answers(
    model: Any, tokenizer: Any, prompts: list[tuple[int, ...]], stops: frozenset[int]
) -> list[str]:
    texts = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=sorted(stops),
            pad_token_id=0,
        )
        texts.append(tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True))
    return texts


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_base_answers_equal_generate_one_by_one(
    any_base: LoadedBase, tmp_path: Path, batch_size: int
) -> None:
    prompts = prompts_of(any_base, tmp_path)
    answers = generate_answers(any_base, prompts, adapter=None, max_new_tokens=12, batch_size=batch_size)
    expected = hf_answers(any_base.model, any_base.tokenizer, prompts, stop_ids_of(any_base))
    assert [answer.text for answer in answers] == expected
    assert len(set(expected)) > 3


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapter_answers_equal_peft_and_end_where_it_ends(
    base: LoadedBase, member: Callable[..., StackMember], tmp_path: Path
) -> None:
    from peft import PeftModel

    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    one = member("t", max_steps=80, learning_rate=2e-2, lora_rank=8, lora_target_modules=targets)
    (result,) = train_stack(base, [one])
    assert result.adapter_dir is not None
    prompts, stops = prompts_of(base, tmp_path), stop_ids_of(base)
    adapter = load_adapter(base.stack, result.adapter_dir, device=base.device, dtype=torch.float32)
    answers = generate_answers(base, prompts, adapter=adapter, max_new_tokens=12, batch_size=5)
    peft_model = PeftModel.from_pretrained(tiny_model(), result.adapter_dir).eval()
    assert [answer.text for answer in answers] == hf_answers(peft_model, base.tokenizer, prompts, stops)
    assert all(1 <= answer.n_tokens <= 12 for answer in answers)
    assert all(answer.is_complete or answer.n_tokens == 12 for answer in answers)


def test_rows_that_end_leave_and_the_others_go_on(base: LoadedBase, tmp_path: Path) -> None:
    """Make common tokens end an answer: rows then end at different steps."""
    prompts = prompts_of(base, tmp_path)
    free = generate_answers(base, prompts, adapter=None, max_new_tokens=20, batch_size=64)
    stops = base.tokenizer(free[0].text + free[5].text, add_special_tokens=False)["input_ids"][::3]
    base.model.generation_config.eos_token_id = stops
    answers = generate_answers(base, prompts, adapter=None, max_new_tokens=20, batch_size=64)
    assert len({answer.n_tokens for answer in answers}) > 3
    assert [a.text for a in answers] == [
        generate_answers(base, [prompt], adapter=None, max_new_tokens=20, batch_size=1)[0].text
        for prompt in prompts
    ]


def test_a_stop_is_heard_between_batches(base: LoadedBase, tmp_path: Path) -> None:
    prompts = prompts_of(base, tmp_path)
    with pytest.raises(StoppedError):
        generate_answers(
            base,
            prompts,
            adapter=None,
            max_new_tokens=4,
            batch_size=4,
            should_stop=iter([False, True]).__next__,
        )
