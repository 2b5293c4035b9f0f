"""The engine as a generator, against the engine itself."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny_model, tiny_tokenizer
from tools.chat import render_prompt
from tools.engine.base import LoadedBase, wrap_base
from tools.engine.generation import generate_answers
from tools.generators.engine import EngineGenerator, open_engine_generator
from tools.generators.generator import Generator
from tools.probe.generator import Sampling
from tools.rows import Message


@pytest.fixture
def base() -> LoadedBase:
    torch.set_num_threads(1)
    return wrap_base(tiny_model(), tiny_tokenizer(), name="tiny")


def ask(*texts: str) -> list[tuple[Message, ...]]:
    return [(Message("user", text),) for text in texts]


def test_greedy_answers_are_those_of_the_engine(base):
    conversations = ask("take off", "land now", "hover here")
    wanted = generate_answers(
        base,
        [render_prompt(base.tokenizer, turns) for turns in conversations],
        adapter=None,
        max_new_tokens=6,
        batch_size=2,
    )
    found = EngineGenerator(base, sampling=Sampling(6, 0.0), batch_size=3).generate(conversations)
    assert [(one.text, one.output_tokens, one.is_complete) for one in found] == [
        (one.text, one.n_tokens, one.is_complete) for one in wanted
    ]
    assert all(one.input_tokens for one in found)


def test_a_conversation_that_the_template_refuses_says_why_and_the_others_are_answered(base):
    found = EngineGenerator(base, sampling=Sampling(4, 0.0)).generate(ask("land", "a <|im_end|> b", "hover"))
    assert [one.text is None for one in found] == [False, True, False]
    assert "control token" in str(found[1].error)


def test_a_drawn_answer_depends_on_its_seed_and_not_on_its_neighbours(base):
    def drawn(seed: int, *texts: str) -> str | None:
        return EngineGenerator(base, sampling=Sampling(8, 1.0, seed)).generate(ask(*texts))[0].text

    assert drawn(1, "land") == drawn(1, "land", "hover", "go home")
    assert len({drawn(seed, "land") for seed in range(6)}) > 1


def test_a_model_is_opened_from_its_folder(base, tmp_path):
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    opened = open_engine_generator(str(tmp_path), dtype="float32", sampling=Sampling(4, 0.0))
    assert isinstance(opened, Generator)
    assert opened.name == str(tmp_path)
    (found,) = opened.generate(ask("land"))
    (wanted,) = EngineGenerator(base, sampling=Sampling(4, 0.0)).generate(ask("land"))
    assert found == wanted
