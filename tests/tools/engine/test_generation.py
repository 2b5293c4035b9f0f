from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import tiny_model
from tests.tools.engine.conftest import write_rows
from tools.chat import render_prompt
from tools.dataset import load_dataset
from tools.engine import decode_cache, generation
from tools.engine.adapter_files import load_adapter
from tools.engine.base import LoadedBase
from tools.engine.generation import (
    Answer,
    Asked,
    StoppedError,
    choose_greedy,
    generate_answers,
    generate_for_all,
    shared_length,
    stop_ids_of,
)
from tools.engine.lora import Adapter, LoraShape
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


def alone(base: LoadedBase, prompts: list[tuple[int, ...]], max_new_tokens: int) -> list[Answer]:
    return [
        generate_answers(base, [prompt], adapter=None, max_new_tokens=max_new_tokens, batch_size=1)[0]
        for prompt in prompts
    ]


def passes_of(base: LoadedBase) -> list[tuple[int, int]]:
    """Return a list to which every pass through the decoder adds its rows and tokens a row."""
    seen: list[tuple[int, int]] = []

    def note(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(tuple(kwargs["input_ids"].shape))

    base.decoder.register_forward_pre_hook(note, with_kwargs=True)
    return seen


def end_often(base: LoadedBase, prompts: list[tuple[int, ...]]) -> None:
    """Make common tokens end an answer: rows then end at different steps."""
    free = generate_answers(base, prompts, adapter=None, max_new_tokens=20, batch_size=64)
    stops = base.tokenizer(free[0].text + free[5].text, add_special_tokens=False)["input_ids"][::3]
    base.model.generation_config.eos_token_id = stops


@pytest.mark.parametrize("batch_size", [1, 3, 5, 64])
def test_rows_that_end_make_room_and_every_token_is_read_once(
    any_base: LoadedBase, tmp_path: Path, batch_size: int
) -> None:
    prompts = prompts_of(any_base, tmp_path)
    end_often(any_base, prompts)
    expected = alone(any_base, prompts, 20)
    assert len({answer.n_tokens for answer in expected}) > 3
    passes = passes_of(any_base)
    answers = generate_answers(any_base, prompts, adapter=None, max_new_tokens=20, batch_size=batch_size)
    assert list(answers) == expected
    assert max(rows for rows, _ in passes) == min(batch_size, len(prompts))
    # No idle row is ever carried along.
    assert sum(rows for rows, width in passes if width == 1) == sum(a.n_tokens - 1 for a in answers)


def test_what_all_prompts_begin_with_is_read_once_and_changes_no_answer(
    any_base: LoadedBase, tmp_path: Path
) -> None:
    prompts = prompts_of(any_base, tmp_path)
    n_shared = shared_length(prompts)
    assert n_shared > 10
    stranger = (prompts[0][1], *prompts[0])
    assert shared_length([*prompts, stranger]) == 0
    passes = passes_of(any_base)
    apart = generate_answers(any_base, [*prompts, stranger], adapter=None, max_new_tokens=12, batch_size=5)
    assert passes[0] == (5, max(map(len, [*prompts, stranger])))
    passes.clear()
    shared = generate_answers(any_base, prompts, adapter=None, max_new_tokens=12, batch_size=5)
    assert passes[:2] == [(1, n_shared), (5, max(map(len, prompts)) - n_shared)]
    assert shared == apart[:-1]


def test_a_prompt_may_be_what_the_others_begin_with(base: LoadedBase, tmp_path: Path) -> None:
    start = prompts_of(base, tmp_path)[0]
    prompts = [(*start, 40, 41), start, (*start, 42), start]
    assert shared_length(prompts) == len(start) - 1
    answers = generate_answers(base, prompts, adapter=None, max_new_tokens=8, batch_size=2)
    assert list(answers) == alone(base, prompts, 8)


def test_shared_length_leaves_every_prompt_its_last_token() -> None:
    assert shared_length([]) == shared_length([(1, 2, 3)]) == shared_length([(1,), (1,)]) == 0
    assert shared_length([(1, 2, 3), (1, 2, 3)]) == 2
    assert shared_length([(1, 2, 3, 4), (1, 2, 9, 4), (1, 2)]) == 1
    assert shared_length([(1, 2, 3), (4, 2, 3)]) == 0


def test_long_answers_outgrow_the_first_room(base: LoadedBase, tmp_path: Path) -> None:
    prompts = prompts_of(base, tmp_path)[:5]
    base.model.generation_config.eos_token_id = None
    answers = generate_answers(base, prompts, adapter=None, max_new_tokens=200, batch_size=3)
    stops = stop_ids_of(base)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt])
        out = base.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=200,
            do_sample=False,
            eos_token_id=sorted(stops),
            pad_token_id=0,
        )
        said = out[0, len(prompt) :].tolist()
        assert list(answer.token_ids) == (said[:-1] if answer.is_complete else said)
    assert max(answer.n_tokens for answer in answers) > 150


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (decode_cache, "_MOST_SCORES", 0),
        (generation, "_FILL_TOKENS", 30),
        (generation, "_FREE_SHARE", 1.0),
    ],
    ids=["fused attention", "few prompts a pass", "batch after batch"],
)
@pytest.mark.parametrize("shares", [True, False])
def test_how_prompts_are_read_changes_no_answer(
    any_base: LoadedBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    name: str,
    value: float,
    shares: bool,
) -> None:
    prompts = prompts_of(any_base, tmp_path)
    prompts += [] if shares else [(prompts[0][1], *prompts[0])]
    end_often(any_base, prompts)
    usual = generate_answers(any_base, prompts, adapter=None, max_new_tokens=12, batch_size=6)
    monkeypatch.setattr(where, name, value)
    answers = generate_answers(any_base, prompts, adapter=None, max_new_tokens=12, batch_size=6)
    assert answers == usual


def test_a_row_of_nan_does_not_reach_the_row_that_takes_its_slot(base: LoadedBase, tmp_path: Path) -> None:
    """The NaN lies beyond the end of the row that comes after, but not beyond its long neighbour's."""
    prompts = prompts_of(base, tmp_path)[:4]
    neighbour, broken = (
        (*prompts[0][:-1], *(token,) * n, prompts[0][-1]) for token, n in ((301, 40), (300, 30))
    )
    with torch.no_grad():
        base.model.get_input_embeddings().weight[300] = torch.nan
    # NaN chooses token 0; the broken row leaves at once, and its slot is taken.
    base.model.generation_config.eos_token_id = 0
    expected = alone(base, [neighbour, broken, *prompts], 40)
    assert expected[0].n_tokens > 5
    assert expected[1].n_tokens == 1
    answers = generate_answers(
        base, [neighbour, broken, *prompts], adapter=None, max_new_tokens=40, batch_size=2
    )
    assert list(answers) == expected


def test_nothing_asked_is_nothing_answered(base: LoadedBase, tmp_path: Path) -> None:
    prompts = prompts_of(base, tmp_path)
    assert generate_answers(base, [], adapter=None, max_new_tokens=4, batch_size=4) == ()
    answers = generate_answers(base, prompts, adapter=None, max_new_tokens=0, batch_size=4)
    assert answers == (Answer("", 0, False, ()),) * len(prompts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_of_equally_likely_tokens_is_taken(dtype: torch.dtype) -> None:
    logits_B_V = torch.zeros((3, 1000), dtype=dtype)
    logits_B_V[1, [70, 500, 999]] = 2
    logits_B_V[2, 999] = 1
    assert choose_greedy(logits_B_V, [0, 1, 2]).tolist() == [0, 70, 999]


def test_a_stop_is_heard_between_passes_and_leaves_the_base_fit_for_use(
    base: LoadedBase, tmp_path: Path
) -> None:
    prompts = prompts_of(base, tmp_path)
    before = generate_answers(base, prompts, adapter=None, max_new_tokens=4, batch_size=4)
    passes = passes_of(base)
    with pytest.raises(StoppedError):
        generate_answers(
            base,
            prompts,
            adapter=None,
            max_new_tokens=4,
            batch_size=4,
            should_stop=iter([False, False, True]).__next__,
        )
    assert len(passes) == 3
    assert base.model.config._attn_implementation == "sdpa"
    assert base.stack.placement is None
    assert generate_answers(base, prompts, adapter=None, max_new_tokens=4, batch_size=4) == before


def random_adapter(base: LoadedBase, seed: int, rank: int, targets: tuple[str, ...]) -> Adapter:
    """An adapter that changes every answer."""
    shape = LoraShape(rank, 2.0 * rank, targets)
    adapter = base.stack.new_adapter(f"a{seed}", shape, device=base.device, trainable=False)
    with torch.no_grad():
        adapter.flat.normal_(std=0.15, generator=torch.Generator().manual_seed(seed))
    return adapter


def asked_of_many(base: LoadedBase, prompts: list[tuple[int, ...]]) -> list[Asked]:
    """Adapters of different shapes and the bare base, with the same, other and no prompts."""
    longer = [(prompt[0], *prompts[0], *prompt) for prompt in prompts]
    every = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return [
        Asked(prompts, random_adapter(base, 1, 4, ("q_proj", "v_proj"))),
        Asked(prompts, random_adapter(base, 2, 8, every)),
        Asked(prompts[3:8], None),
        Asked([], random_adapter(base, 3, 2, every)),
        Asked(longer[:6], random_adapter(base, 4, 3, ("down_proj", "k_proj"))),
        Asked(prompts[5:6], random_adapter(base, 5, 4, ("o_proj",))),
    ]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
@pytest.mark.parametrize("fill_tokens", [30, 8192])
def test_adapters_in_one_batch_answer_as_each_does_alone(
    any_base: LoadedBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int,
    fill_tokens: int,
) -> None:
    prompts = prompts_of(any_base, tmp_path)
    end_often(any_base, prompts)
    asked = asked_of_many(any_base, prompts)
    apart = [
        generate_answers(any_base, item.prompts, adapter=item.adapter, max_new_tokens=20, batch_size=64)
        for item in asked
    ]
    assert apart[0] != apart[1]
    assert len({answer.n_tokens for answers in apart for answer in answers}) > 4
    monkeypatch.setattr(generation, "_FILL_TOKENS", fill_tokens)
    passes = passes_of(any_base)
    together = generate_for_all(any_base, asked, max_new_tokens=20, batch_size=batch_size)
    assert together == apart
    n_prompts = sum(len(item.prompts) for item in asked)
    assert max(rows for rows, _ in passes) <= min(batch_size, n_prompts)
    # No idle row is ever carried along.
    n_chosen = sum(answer.n_tokens - 1 for answers in apart for answer in answers)
    assert sum(rows for rows, width in passes if width == 1) == n_chosen


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_trained_adapters_in_one_batch_answer_as_peft_does(
    base: LoadedBase, member: Callable[..., StackMember], tmp_path: Path
) -> None:
    from peft import PeftModel

    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    members = [
        member("a", max_steps=60, learning_rate=2e-2, lora_rank=8, lora_target_modules=targets),
        member("b", max_steps=20, learning_rate=1e-2, lora_rank=4, lora_target_modules=targets[:2]),
        member("c", max_steps=40, learning_rate=2e-2, lora_rank=2, lora_target_modules=targets[4:], seed=7),
    ]
    results = train_stack(base, members)
    prompts, stops = prompts_of(base, tmp_path), stop_ids_of(base)
    asked = [Asked(prompts)]
    expected = [hf_answers(tiny_model(), base.tokenizer, prompts, stops)]
    for result in results:
        assert result.adapter_dir is not None
        adapter = load_adapter(base.stack, result.adapter_dir, device=base.device, dtype=torch.float32)
        asked.append(Asked(prompts, adapter))
        peft_model = PeftModel.from_pretrained(tiny_model(), result.adapter_dir).eval()
        expected.append(hf_answers(peft_model, base.tokenizer, prompts, stops))
    together = generate_for_all(base, asked, max_new_tokens=12, batch_size=20)
    assert [[answer.text for answer in answers] for answers in together] == expected
    assert len({tuple(texts) for texts in expected}) == 4


def test_what_each_adapter_s_prompts_begin_with_is_read_once_for_it(base: LoadedBase, tmp_path: Path) -> None:
    prompts = prompts_of(base, tmp_path)
    asked = asked_of_many(base, prompts)[:2]
    passes = passes_of(base)
    n_shared = shared_length(prompts)
    generate_for_all(base, asked, max_new_tokens=4, batch_size=64)
    assert passes[:2] == [(2, n_shared), (26, max(map(len, prompts)) - n_shared)]
    passes.clear()
    # The second comes when the first has left most of the slots.
    generate_for_all(base, asked, max_new_tokens=4, batch_size=13)
    assert [shape for shape in passes if shape == (1, n_shared)] == [(1, n_shared)] * 2


def test_answers_of_an_adapter_are_handed_over_when_they_are_whole(base: LoadedBase, tmp_path: Path) -> None:
    prompts = prompts_of(base, tmp_path)
    asked = asked_of_many(base, prompts)
    passes = passes_of(base)
    handed: dict[int, tuple[int, tuple[Answer, ...]]] = {}
    together = generate_for_all(
        base,
        asked,
        max_new_tokens=6,
        batch_size=4,
        on_answered=lambda place, answers: handed.update({place: (len(passes), answers)}),
    )
    assert {place: answers for place, (_, answers) in handed.items()} == dict(enumerate(together))
    when = [handed[place][0] for place in range(len(asked))]
    assert when[3] == 0
    assert when[0] < when[1] < when[2] < when[4] <= when[5] == len(passes)
    assert when[0] < len(passes) / 2
    assert generate_for_all(base, [], max_new_tokens=6, batch_size=4) == []


def test_whoever_chooses_is_told_which_prompt_of_all_a_row_answers(base: LoadedBase, tmp_path: Path) -> None:
    prompts = prompts_of(base, tmp_path)
    asked = asked_of_many(base, prompts)
    base.model.generation_config.eos_token_id = None
    n_prompts = sum(len(item.prompts) for item in asked)

    def choose(logits_B_V: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        return torch.tensor([300 + number for number in numbers])

    together = generate_for_all(base, asked, max_new_tokens=3, batch_size=5, choose=choose)
    said = [answer.token_ids for answers in together for answer in answers]
    assert said == [(300 + number,) * 3 for number in range(n_prompts)]
