"""The five patterns of false progress, each on data that shows it and on data that does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from agent.diagnostics import (
    Finding,
    diagnose_data,
    find_conditioned_on_judged,
    find_eval_in_synthetic,
    find_objective_mismatch,
    find_trained_on_held_out,
    find_untrained_checkpoint,
    read_adapter_weights,
)
from tools.dataset import Dataset, Message, Row, load_dataset, write_dataset
from tools.errors import AdapterFileError, WeightsError
from tools.evaluation.scorers import get_scorer

ANSWER = '{"cmd": "hover", "args": {}}'
LONG = "please take the drone up to about forty metres and hold it right there over the barn"
REWORDED = "please take the drone up to about forty metres and hold it right there over the lake"


def rows(tmp_path: Path, name: str, *given: Row) -> Dataset:
    return load_dataset(write_dataset(tmp_path / f"{name}.jsonl", given))


def row(row_id: str, prompt: str, answer: str = ANSWER, **more: Any) -> Row:
    return Row(row_id, (Message("user", prompt), Message("assistant", answer)), **more)


@pytest.fixture
def judged(tmp_path: Path) -> dict[str, Dataset]:
    return {
        "dev": rows(tmp_path, "dev", row("dev-1", "stay where you are")),
        "selection": rows(tmp_path, "selection", row("selection-1", LONG)),
        "test": rows(tmp_path, "test", row("test-1", "bring it home now")),
    }


def test_a_judged_row_among_the_training_rows_is_found(tmp_path: Path, judged: dict[str, Dataset]) -> None:
    train = rows(tmp_path, "train", row("t-1", "Bring it home, now!"), row("t-2", "land"))
    found = find_trained_on_held_out(train, judged)
    assert found is not None
    assert found.evidence == ("t-1 ~ test test-1 (normalized)",)
    assert "home" not in str(found)


def test_other_rows_are_no_judged_rows(tmp_path: Path, judged: dict[str, Dataset]) -> None:
    train = rows(tmp_path, "train", row("t-1", "fly to B4"), row("t-2", "land"))
    assert find_trained_on_held_out(train, judged) is None


@pytest.mark.parametrize(
    "more", [{"meta": {"generated": {"generator": "augment"}}}, {"tags": ("synthetic",)}], ids=["meta", "tag"]
)
def test_a_reworded_judged_row_among_generated_rows_is_found(
    tmp_path: Path, judged: dict[str, Dataset], more: dict[str, Any]
) -> None:
    found = find_eval_in_synthetic(rows(tmp_path, "train", row("g-1", REWORDED, **more)), judged)
    assert found is not None
    assert "selection" in found.summary
    assert "metres" not in str(found) + "".join(found.evidence)


def test_new_generated_rows_and_rows_that_a_person_wrote_are_not_its_business(
    tmp_path: Path, judged: dict[str, Dataset]
) -> None:
    by_model = row("g-1", "climb until you clear the trees", meta={"generated": {"generator": "augment"}})
    assert find_eval_in_synthetic(rows(tmp_path, "train", by_model), judged) is None
    assert find_eval_in_synthetic(rows(tmp_path, "train", row("t-1", REWORDED)), judged) is None


@pytest.mark.parametrize(
    "meta",
    [
        {"generated": {"generator": "augment", "split": "selection"}},
        {"generated": {"source_items": ["dev-1", "test-1"]}},
        {"from_failure": "selection-1"},
    ],
    ids=str,
)
def test_rows_made_from_what_a_deciding_split_got_wrong_are_found(
    tmp_path: Path, judged: dict[str, Dataset], meta: dict[str, Any]
) -> None:
    found = find_conditioned_on_judged(rows(tmp_path, "train", row("g-1", "rise", meta=meta)), judged)
    assert found is not None
    assert found.evidence[0].startswith("g-1 from ")


@pytest.mark.parametrize(
    "meta",
    [{}, {"generated": {"split": "dev", "source_items": ["dev-1"]}}, {"note": "test-1"}],
    ids=str,
)
def test_rows_made_from_dev_are_allowed(
    tmp_path: Path, judged: dict[str, Dataset], meta: dict[str, Any]
) -> None:
    assert find_conditioned_on_judged(rows(tmp_path, "train", row("g-1", "rise", meta=meta)), judged) is None


def adapter(folder: Path, *, update: float = 0.5, **more: torch.Tensor) -> Path:
    folder.mkdir()
    tensors = {
        "base_model.model.layers.0.q_proj.lora_A.weight": torch.ones(2, 4),
        "base_model.model.layers.0.q_proj.lora_B.weight": torch.full((4, 2), update),
        **more,
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt", "name": folder.name})
    return folder


def test_an_adapter_that_never_moved_is_found(tmp_path: Path) -> None:
    weights = read_adapter_weights(adapter(tmp_path / "a", update=0.0))
    found = find_untrained_checkpoint("t1", weights)
    assert found is not None
    assert "all zeros" in found.summary


def test_an_adapter_that_is_its_parents_or_anothers_is_found(tmp_path: Path) -> None:
    first, copy = (read_adapter_weights(adapter(tmp_path / name)) for name in ("a", "b"))
    found = find_untrained_checkpoint("t1", copy, parent=first)
    assert found is not None
    assert "its parent's" in found.summary
    twin = find_untrained_checkpoint("t1", copy, others={"t0": first})
    assert twin is not None
    assert "those of t0" in twin.summary


def test_an_adapter_that_was_trained_passes(tmp_path: Path) -> None:
    parent = read_adapter_weights(adapter(tmp_path / "a"))
    moved = read_adapter_weights(adapter(tmp_path / "b", update=0.51))
    assert find_untrained_checkpoint("t1", moved, parent=parent, others={"t0": parent}) is None


def test_a_torn_or_foreign_adapter_is_refused(tmp_path: Path) -> None:
    whole = adapter(tmp_path / "a") / "adapter_model.safetensors"
    data = whole.read_bytes()
    for torn in (data[:-5], data[:20], b"", b"\xff" * 64, (2).to_bytes(8, "little") + b"{}"):
        whole.write_bytes(torn)
        with pytest.raises(WeightsError):
            read_adapter_weights(tmp_path / "a")
    with pytest.raises(AdapterFileError):
        read_adapter_weights(tmp_path)


def test_training_answers_that_the_scorer_refuses_are_found(tmp_path: Path) -> None:
    train = rows(tmp_path, "train", row("t-1", "up", "hover"), row("t-2", "down"))
    dev = rows(tmp_path, "dev", row("d-1", "stay"))
    found = find_objective_mismatch(train, dev, get_scorer("json_cmd"))
    assert found is not None
    assert found.evidence == ("t-1",)


def test_training_answers_of_another_form_than_dev_are_found(tmp_path: Path) -> None:
    train = rows(tmp_path, "train", row("t-1", "up", '{"cmd": "ascend"}'))
    dev = rows(tmp_path, "dev", row("d-1", "stay", ANSWER))
    found = find_objective_mismatch(train, dev, get_scorer("json"))
    assert found is not None
    assert "{cmd}" in found.summary
    assert "{args, cmd}" in found.summary


def test_training_answers_in_the_form_that_is_scored_pass(tmp_path: Path) -> None:
    train = rows(tmp_path, "train", row("t-1", "up", '{"cmd": "ascend", "args": {"m": 5}}'))
    dev = rows(tmp_path, "dev", row("d-1", "stay", ANSWER))
    assert find_objective_mismatch(train, dev, get_scorer("json")) is None


def test_the_panel_reads_the_data_at_once(tmp_path: Path, judged: dict[str, Dataset]) -> None:
    train = rows(tmp_path, "train", row("t-1", "bring it home now"), row("t-2", "up", "rise"))
    found: tuple[Finding, ...] = diagnose_data(train, **judged, scorer=get_scorer("json"))
    assert [finding.code for finding in found] == ["trained_on_held_out", "objective_mismatch"]
    clean = rows(tmp_path, "clean", row("t-3", "rise", json.dumps({"cmd": "ascend", "args": {}})))
    assert diagnose_data(clean, **judged, scorer=get_scorer("json")) == ()
