"""The default path, on real models: a tiny Llama on disk, and adapters of several kinds on it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import CHATML, tiny_model, tiny_tokenizer
from tools.engine.generation import generate_answers
from tools.errors import ChatError, ModelError, ProbeError
from tools.probe import (
    KnowledgeProbe,
    KnowledgeQuestion,
    KnowledgeReport,
    ModelGenerator,
    ProbeQuestion,
    ProbeReport,
    ReasoningProbe,
    Sampling,
    open_generator,
)
from tools.probe.sampling import chooser

QUESTIONS = tuple(ProbeQuestion(f"q{i}", "c", f"go to waypoint {'B' * i} {i}") for i in range(5))
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def save_model(folder: Path, template: str = "chatml") -> Path:
    tiny_model().save_pretrained(folder)
    tiny_tokenizer(template).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("base")))


def save_adapter(folder: Path, **settings: Any) -> Path:
    """Save a peft adapter with weights that change the answers."""
    from peft import LoraConfig, get_peft_model

    fields: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    wrapped = get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM", **fields | settings))
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(5)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    wrapped.save_pretrained(folder)
    return folder


def responses(report: ProbeReport) -> list[str]:
    assert not report.failed
    return [row.response for row in report.rows]


def run(model: str, **arguments: Any) -> ProbeReport:
    return ReasoningProbe(QUESTIONS).run(model, **{"max_new_tokens": 12, "batch_size": 3} | arguments)


def test_the_default_path_answers_with_a_model_from_disk(model: str) -> None:
    seen: list[str] = []
    report = run(model, on_progress=lambda _i, _n, row: seen.append(row.qid))
    assert seen == [f"q{i}" for i in range(5)]
    assert len(set(responses(report))) > 2
    assert report.counted_by == f"tokenizer of {model}"
    assert (report.n, report.seed, report.max_new_tokens) == (5, 0, 12)


def exact(
    model: str, *, lora_path: Path | None = None, batch_size: int = 3, **sampling: Any
) -> ModelGenerator:
    """In float32, where the size of a batch rounds nothing that shows."""
    drawn = Sampling(**{"max_new_tokens": 12} | sampling)
    return open_generator(model, lora_path, sampling=drawn, batch_size=batch_size, dtype="float32")


def test_an_answer_depends_on_the_seed_and_the_question_alone(model: str) -> None:
    first = responses(run(model, generator=exact(model)))
    assert responses(run(model, generator=exact(model, batch_size=1))) == first
    assert responses(run(model, generator=exact(model, batch_size=5))) == first
    assert responses(run(model, generator=exact(model, seed=1), seed=1)) != first
    backwards = ReasoningProbe(QUESTIONS[::-1])
    report = backwards.run(model, max_new_tokens=12, generator=exact(model, batch_size=2))
    assert responses(report) == first[::-1]


def test_at_temperature_0_answers_are_the_engines_greedy_ones(model: str) -> None:
    from tools.chat import render_prompt
    from tools.rows import Message

    report = run(model, temperature=0)
    base = open_generator(model).base
    prompts = [render_prompt(base.tokenizer, (Message("user", item.question),)) for item in QUESTIONS]
    answers = generate_answers(base, prompts, adapter=None, max_new_tokens=12, batch_size=3)
    assert responses(report) == [base.tokenizer.decode(answer.token_ids) for answer in answers]
    assert all(answer.text in text for answer, text in zip(answers, responses(report), strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"target_modules": r".*\.layers\.[01]\.self_attn\.q_proj"},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 16}},
        {"modules_to_save": ["lm_head"]},
    ],
    ids=["lora", "rslora", "dora", "pattern", "ranks", "head"],
)
def test_an_adapter_of_any_kind_answers_as_peft_does(
    model: str, tmp_path: Path, settings: dict[str, Any]
) -> None:
    from peft import PeftModel

    from tools.chat import render_prompt
    from tools.rows import Message

    folder = save_adapter(tmp_path / "adapter", **settings)
    report = run(model, generator=exact(model, lora_path=folder, temperature=0), temperature=0)
    tokenizer = tiny_tokenizer()
    stops = (2, tokenizer.convert_tokens_to_ids("<|im_end|>"))
    wrapped = PeftModel.from_pretrained(tiny_model(), folder).eval()
    found = []
    for question in QUESTIONS:
        ids = torch.tensor([render_prompt(tokenizer, (Message("user", question.question),))])
        mask = torch.ones_like(ids)
        out = wrapped.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=list(stops),
            pad_token_id=0,
        )[0, ids.shape[1] :].tolist()
        found.append(tokenizer.decode(out[:-1] if out[-1] in stops else out))
    assert responses(report) == found
    assert found != responses(run(model, generator=exact(model, temperature=0), temperature=0))


def test_an_adapter_that_does_not_fit_is_refused_and_not_half_loaded(model: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no adapter's config"):
        run(model, lora_path=tmp_path / "none")
    folder = save_adapter(tmp_path / "dora", use_dora=True)
    from safetensors.torch import load_file, save_file

    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    dropped = sorted(tensors)[0]
    del tensors[dropped]
    save_file(tensors, weights)
    with pytest.raises(ModelError, match="does not fit this base: it lacks"):
        run(model, lora_path=folder)
    weights.write_bytes(b"torn")
    with pytest.raises(ModelError, match="peft cannot load it either"):
        run(model, lora_path=folder)


def test_a_model_that_gives_nan_is_a_failure_and_no_report(model: str, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "broken")
    from safetensors.torch import load_file, save_file

    weights = folder / "adapter_model.safetensors"
    save_file({name: tensor * float("nan") for name, tensor in load_file(weights).items()}, weights)
    for temperature in (0.0, 0.6):
        with pytest.raises(ProbeError, match=r"none of 5 questions got a response.*NaN"):
            run(model, lora_path=folder, temperature=temperature)


def test_a_question_with_a_control_token_fails_alone(model: str) -> None:
    hostile = (*QUESTIONS[:2], ProbeQuestion("bad", "c", "end<|im_end|>now"), *QUESTIONS[2:])
    report = ReasoningProbe(hostile).run(model, max_new_tokens=6, batch_size=6)
    assert [row.qid for row in report.failed] == ["bad"]
    assert "control token" in str(report.failed[0].error)


def test_a_template_that_opens_the_think_block_opens_it_in_the_response(tmp_path: Path) -> None:
    opening = CHATML.replace(
        "<|im_start|>assistant\\n' }}{% endif %}", "<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
    )
    assert opening != CHATML
    report = run(str(save_model(tmp_path / "thinker", opening)))
    assert all(text.startswith("<think>\n") for text in responses(report))
    assert len(report.truncated) == sum(not row.has_think for row in report.rows)


def test_a_model_without_a_template_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "bare")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ChatError, match="no chat template"):
        run(str(folder))


def test_a_run_with_nothing_missing_loads_no_model(model: str, tmp_path: Path) -> None:
    log = tmp_path / "rows.jsonl"
    first = run(model, resume_path=log)
    (entry := log.read_text().splitlines()[0])
    assert json.loads(entry)["origin"]["top_p"] == 0.95
    started = ReasoningProbe(QUESTIONS).run(
        model, max_new_tokens=12, resume_path=log, on_progress=lambda *_: pytest.fail("asked")
    )
    assert responses(started) == responses(first)


def test_a_loaded_generator_serves_several_probes_and_says_how_it_draws(model: str) -> None:
    sampling = Sampling(12, temperature=0)
    generator = open_generator(model, sampling=sampling, batch_size=3)
    assert isinstance(generator, ModelGenerator)
    report = run(model, generator=generator, temperature=0)
    assert responses(report) == responses(run(model, temperature=0))
    with pytest.raises(ProbeError, match="give both the same"):
        run(model, generator=generator)
    knowledge = KnowledgeProbe([KnowledgeQuestion("hover here", "yes"), KnowledgeQuestion("land now", "no")])
    assert knowledge.run(generator, tag="pre", model=model).score is not None


@pytest.mark.parametrize("top_p", [0.0, 1.5, float("nan")])
def test_a_sampling_out_of_range_is_refused(top_p: float) -> None:
    with pytest.raises(ProbeError, match="top_p"):
        Sampling(top_p=top_p)


def test_draws_follow_the_probabilities_within_the_nucleus() -> None:
    probability = torch.tensor([0.02, 0.5, 0.3, 0.15, 0.03])
    counts = torch.zeros(5)
    prompts = [f"p{i}" for i in range(4000)]
    choose = chooser(Sampling(temperature=1.0, top_p=0.9), prompts)
    drawn = choose(probability.log().expand(4000, 5), range(4000))
    counts = torch.bincount(drawn, minlength=5) / 4000
    # 0.5 and 0.3 fall short of 0.9; with 0.15 it is reached, and the rest is out.
    expected = torch.tensor([0.0, 0.5, 0.3, 0.15, 0.0]) / 0.95
    assert counts[0] == counts[4] == 0
    assert torch.allclose(counts, expected, atol=0.03)


def test_a_low_temperature_takes_the_likeliest_and_equal_ones_in_order() -> None:
    logits = torch.tensor([[0.0, 5.0, 1.0], [3.0, 3.0, -9.0]])
    cold = chooser(Sampling(temperature=0.01), ["a", "b"])
    assert int(cold(logits, [0, 1])[0]) == 1
    greedy = chooser(Sampling(temperature=0), ["a", "b"])
    assert greedy(logits, [0, 1]).tolist() == [1, 0]


def test_a_probe_runs_in_a_process_of_its_own(model: str, tmp_path: Path) -> None:
    def start(questions: list[dict[str, str]], *options: str) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "questions.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in questions), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "tools.probe", str(path), "--model", model, "--max-new-tokens"]
        return subprocess.run([*command, "6", *options], capture_output=True, text=True, check=False)

    out = tmp_path / "report.json"
    reasoning = [item.to_dict() for item in QUESTIONS[:2]]
    done = start(reasoning, "--out", str(out), "--resume", str(tmp_path / "rows.jsonl"), "--step", "7")
    assert done.returncode == 0, done.stderr
    assert (ProbeReport.from_json(out).n, ProbeReport.from_json(out).step) == (2, 7)
    done = start([{"question": "hover?", "ideal": "yes"}], "--out", str(out), "--tag", "pre")
    assert done.returncode == 0, done.stderr
    assert KnowledgeReport.from_json(out).tag == "pre"
    done = start([{"prompt": "x"}], "--out", str(tmp_path / "none.json"))
    assert done.returncode == 1
    assert "ProbeError" in done.stderr
    assert not (tmp_path / "none.json").exists()


def test_progress_is_called_after_each_batch_and_not_at_the_end(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    answer: Callable[..., Any] = ModelGenerator.answer

    def recorded(self: ModelGenerator, prompts: Any) -> Any:
        events.append(f"batch of {len(prompts)}")
        return answer(self, prompts)

    monkeypatch.setattr(ModelGenerator, "answer", recorded)
    run(model, on_progress=lambda i, _n, _row: events.append(str(i)))
    assert events == ["batch of 3", "1", "2", "3", "batch of 2", "4", "5"]
