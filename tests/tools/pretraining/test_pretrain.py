"""Continued pretraining of a tiny base, whole: real training, real merge, a recipe on the new base."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny import save_tiny_base
from tests.tools.engine.conftest import write_rows
from tools.errors import RecipeError, TrainError
from tools.files import digest_file, write_json_atomic
from tools.poll import read_progress
from tools.pretraining.corpus import Corpus, read_corpus
from tools.pretraining.run import PROVENANCE, PretrainResult, PretrainSettings, pretrain
from tools.recipe import TrainRecipe
from tools.run_folder import is_finished
from tools.train import run

COLOURS = ("red", "blue", "green", "black", "white", "pink")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("FK_SFT_PROGRESS_DIR", raising=False)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pre training")
    save_tiny_base(folder / "base")
    (folder / "corpus").mkdir()
    for n in range(20):
        lines = [
            f"Drone {COLOURS[(n + i) % 6]} takes off to {i} metres and lands at B{n}."
            for i in range(1, 4 + n % 3)
        ]
        (folder / "corpus" / f"{n}.md").write_text("\n\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def corpus(home: Path) -> Corpus:
    return read_corpus([home / "corpus"])


@pytest.fixture(scope="module")
def settings(home: Path) -> PretrainSettings:
    return PretrainSettings(
        str(home / "base"),
        epochs=4,
        learning_rate=5e-3,
        lora_rank=4,
        seq_length=96,
        micro_batch_size=4,
        global_batch_size=4,
        save_interval=5,
        torch_dtype="float32",
        held_out=0.1,
    )


@pytest.fixture(scope="module")
def stopped(home: Path, corpus: Corpus, settings: PretrainSettings) -> Path:
    """The folder of a pretraining that was ended after its first checkpoint."""
    out = home / "out"
    with pytest.raises(TrainError, match="stopped on request"):
        pretrain(
            corpus,
            settings,
            out,
            should_stop=lambda: read_progress(out / "runs-full").latest_iter >= 5,
        )
    return out


@pytest.fixture(scope="module")
def made(stopped: Path, corpus: Corpus, settings: PretrainSettings) -> tuple[PretrainResult, list[str]]:
    said: list[str] = []
    return pretrain(corpus, settings, stopped, on_stage=said.append), said


def test_the_perplexity_on_documents_that_were_not_learned_from_falls(made, corpus, stopped):
    result, _ = made
    assert result.gained
    assert result.after.perplexity < result.before.perplexity / 4
    assert result.before.n_tokens == result.after.n_tokens > 0
    rows = {
        name: (stopped / f"{name}.tokens.jsonl").read_text(encoding="utf-8") for name in ("train", "held-out")
    }
    names = {name: {json.loads(x)["id"].partition("#")[0] for x in rows[name].splitlines()} for name in rows}
    assert not names["train"] & names["held-out"]
    assert names["train"] | names["held-out"] == {document.name for document in corpus.documents}


def test_a_cut_short_training_goes_on_and_measures_nothing_twice(made):
    result, said = made
    assert said == ["preparing the corpus", "training", "merging", "measuring the perplexity after training"]
    lines = (
        (Path(result.base).parent / "runs-full" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    )
    assert [json.loads(line)["step"] for line in lines] == list(range(1, result.steps + 1))


def test_the_new_base_says_what_it_was_made_of(made, corpus, settings, home):
    result, _ = made
    told = json.loads((Path(result.base) / PROVENANCE).read_text(encoding="utf-8"))
    assert told["corpus"]["digest"] == corpus.digest == result.corpus_digest
    assert told["base_model"] == str(home / "base")
    assert told["recipe_digest"] == TrainRecipe.from_dict(told["recipe"]).digest
    assert told["held_out"]["before"]["perplexity"] > told["held_out"]["after"]["perplexity"]
    assert told["versions"]["torch"]


def test_a_recipe_trains_on_the_new_base(made, tmp_path):
    result, _ = made
    recipe = TrainRecipe(
        base_model=result.base,
        dataset_jsonl=str(write_rows(tmp_path / "rows.jsonl")),
        output_dir=str(tmp_path / "out"),
        torch_dtype="float32",
        lora_rank=4,
        micro_batch_size=2,
        global_batch_size=4,
        max_steps=2,
        smoke_steps=2,
        seq_length=256,
    )
    assert run(recipe, poll_interval=0).final_iter == 2


def test_asked_again_it_reports_and_does_nothing(made, corpus, settings, stopped):
    result, _ = made
    weights = digest_file(Path(result.base) / "model.safetensors")
    said: list[str] = []
    assert pretrain(corpus, settings, stopped, on_stage=said.append) == result
    assert said == ["preparing the corpus"]
    assert digest_file(Path(result.base) / "model.safetensors") == weights


def test_a_training_that_ended_before_a_kill_is_not_made_again(made, corpus, settings, stopped, home):
    """As after a kill between the end of the training and the record of it."""
    result, _ = made
    other = home / "again"
    shutil.copytree(stopped, other, ignore=shutil.ignore_patterns("merged-hf-bf16", "*.lock"))
    recipe = settings.recipe(other / "train.tokens.jsonl", other)
    write_json_atomic(
        other / "runs-full" / "run.json",
        {
            "version": 1,
            "recipe_digest": recipe.digest,
            "rows_digest": digest_file(other / "train.tokens.jsonl"),
            "mode": "full",
            "finished": True,
        },
    )
    assert is_finished(recipe, "full")
    assert not is_finished(recipe.replace(seed=9), "full")
    assert not is_finished(recipe, "smoke")
    (other / "stages.json").unlink()
    said: list[str] = []
    again = pretrain(corpus, settings, other, on_stage=said.append)
    assert "training" not in said
    assert (again.steps, again.before, again.after) == (result.steps, result.before, result.after)


def test_a_base_does_not_become_another_one_in_its_place(made, corpus, settings, stopped):
    with pytest.raises(TrainError, match="made of another corpus or by other settings"):
        pretrain(corpus, dataclasses.replace(settings, epochs=1), stopped)
    other = dataclasses.replace(corpus, documents=corpus.documents[:-1])
    with pytest.raises(TrainError, match="made of another corpus or by other settings"):
        pretrain(other, settings, stopped)


def test_settings_out_of_range_are_refused_before_anything_is_written(corpus, settings, tmp_path):
    with pytest.raises(RecipeError, match="learning_rate"):
        pretrain(corpus, dataclasses.replace(settings, learning_rate=0.0), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.jsonl"))
