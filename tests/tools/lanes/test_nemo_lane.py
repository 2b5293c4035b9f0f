"""What of the shipped NeMo trainer needs no Megatron: its command, its rows, its batches."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import tiny_tokenizer
from tools.errors import ConvertError, DatasetError, TrainError
from tools.lanes.nemo import NemoLane
from tools.lanes.scripts.nemo_config import lora_fields
from tools.lanes.scripts.nemo_rows import batch_rows, pack_rows, pad_rows, read_rows, write_rows
from tools.lanes.scripts.train_nemo import convert_base
from tools.lanes.shipping import ship
from tools.recipe import TrainRecipe


@pytest.fixture
def recipe(tmp_path) -> TrainRecipe:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"go {n}"},
                {"role": "assistant", "content": "ok" + " and so on" * n},
                {"role": "user", "content": "and?"},
                {"role": "assistant", "content": f" done {n}"},
            ]
        }
        for n in range(3)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return TrainRecipe(
        base_model="some/model",
        dataset_jsonl=str(tmp_path / "rows.jsonl"),
        output_dir=str(tmp_path / "out"),
        backend="nemo",
        seq_length=256,
        micro_batch_size=2,
        global_batch_size=2,
        max_steps=4,
        smoke_steps=2,
    )


def prepare(recipe: TrainRecipe, mode: str = "full") -> tuple[str, dict]:
    run_dir = recipe.run_dir("full")
    run_dir.mkdir(parents=True, exist_ok=True)
    plan = NemoLane().prepare(recipe, mode, run_dir)  # type: ignore[arg-type]
    spec = run_dir / "nemo-spec.json"
    return plan.argv[-1], json.loads(spec.read_text(encoding="utf-8")) if spec.exists() else {}


def test_the_shipped_trainer_is_started_where_no_script_is_named(recipe):
    inner, spec = prepare(recipe)
    words = shlex.split(inner)
    home = recipe.run_dir("full") / ".launch"
    assert f"PYTHONPATH={home}" in words
    assert "PYTHONSAFEPATH=1" in words
    module = words.index("-m")
    assert words[module - 2 : module + 2] == [
        "torchrun",
        "--nproc_per_node=1",
        "-m",
        "tools.lanes.scripts.train_nemo",
    ]
    assert (home / "tools" / "lanes" / "scripts" / "train_nemo.py").is_file()
    assert TrainRecipe.from_dict(spec["recipe"]) == recipe
    assert (spec["steps"], spec["action"]) == (4, "train")
    assert spec["megatron_base"] == f"{recipe.output_dir}/mcore-base"
    _, smoke = prepare(recipe.replace(extra_env={"MCORE_BASE": "/models/mcore"}), "smoke")
    assert (smoke["steps"], smoke["megatron_base"]) == (2, "/models/mcore")


def test_a_script_of_ones_own_gets_the_documented_arguments(recipe):
    inner, spec = prepare(recipe.replace(extra_env={"TRAIN_SCRIPT": "/x/train.py", "DATASET_DIR": "/data"}))
    assert "torchrun --nproc_per_node=1 /x/train.py --hf-model some/model --pretrained-mcore" in inner
    assert "--dataset-root /data" in inner
    assert "--train-iters 4" in inner
    assert spec == {}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"lora_layers": (0,)}, "one tensor"),
        ({"extra_env": {"DATASET_DIR": "/data"}}, "writes its data itself"),
        ({"lora_target_modules": ("q_proj", "embed_tokens")}, "embed_tokens"),
    ],
)
def test_what_the_shipped_trainer_cannot_do_is_refused(recipe, change, reason):
    with pytest.raises(TrainError, match=reason):
        prepare(recipe.replace(**change))


def test_the_adapter_in_megatrons_words(recipe):
    assert lora_fields(recipe) == {
        "target_modules": ["linear_qkv", "linear_proj"],
        "dim": 16,
        "alpha": 32,
        "dropout": 0.05,
        "dropout_position": "pre",
    }
    # alpha / dim is what the bridge multiplies by.
    assert lora_fields(recipe.replace(use_rslora=True))["alpha"] / 16 == 32 / 4


def test_rows_are_those_of_the_local_lane(recipe, tmp_path):
    from tools.engine.batches import RowEncoder

    tokenizer = tiny_tokenizer()
    path = write_rows(recipe, tokenizer, tmp_path / "data")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line, ours, theirs in zip(
        lines, read_rows(path), RowEncoder(tokenizer).encode(recipe.dataset_jsonl, None).rows, strict=True
    ):
        assert (ours.input_ids, ours.loss_mask) == (theirs.input_ids, theirs.loss_mask)
        assert line["input"] + line["output"] == tokenizer.decode(theirs.input_ids)
        assert line["output"].startswith("ok")
    learned = [t for t, wanted in zip(lines[1]["input_ids"], lines[1]["loss_mask"], strict=True) if wanted]
    assert tokenizer.decode(learned) == "ok and so on<|im_end|> done 1<|im_end|>"


def test_rows_that_cannot_be_trained_on_are_refused(recipe, tmp_path):
    with pytest.raises(DatasetError, match="2 rows are longer than seq_length 64"):
        write_rows(recipe.replace(seq_length=64), tiny_tokenizer(), tmp_path)
    torn = tmp_path / "training.jsonl"
    for text in ('{"id": "a"}\n', '{"id": "a", "input', ""):
        torn.write_text(text, encoding="utf-8")
        with pytest.raises(DatasetError, match="remove it"):
            read_rows(torn)


def test_every_step_has_the_rows_that_the_local_lane_takes(recipe, tmp_path):
    from tools.engine.batches import rows_of_step

    rows = read_rows(write_rows(recipe, tiny_tokenizer(), tmp_path))
    batches = batch_rows(rows, 2, 42, 4)
    assert len(batches) == 8
    for step in range(4):
        wanted = [rows[number].row_id for number in rows_of_step(3, 2, 42, step)]
        batch = batches[2 * step : 2 * step + 2]
        assert [row.row_id for row in batch if row.row_id] == wanted
        assert not any(any(row.loss_mask) for row in batch if not row.row_id)


def test_a_padded_batch_predicts_each_learned_token_and_nothing_else(recipe, tmp_path):
    rows = read_rows(write_rows(recipe, tiny_tokenizer(), tmp_path))
    batch = pad_rows(rows)
    assert batch["tokens"].shape[1] % 16 == 0
    for number, row in enumerate(rows):
        places = batch["loss_mask"][number].nonzero().flatten()
        wanted = [i for i, learned in enumerate(row.loss_mask) if learned and i > 0]
        assert (places + 1).tolist() == wanted
        assert batch["labels"][number, places].tolist() == [row.input_ids[i] for i in wanted]
        assert batch["tokens"][number, : len(row.input_ids) - 1].tolist() == list(row.input_ids[:-1])
        assert batch["position_ids"][number].tolist() == list(range(batch["tokens"].shape[1]))


def test_a_packed_batch_holds_the_same_tokens_end_to_end(recipe, tmp_path):
    rows = read_rows(write_rows(recipe, tiny_tokenizer(), tmp_path))
    batch, padded = pack_rows(rows), pad_rows(rows)
    n_parts = int(batch["cu_seqlens_argmin"])
    ends = batch["cu_seqlens"][0, :n_parts].tolist()
    assert batch["cu_seqlens"][0, n_parts] == -1
    assert ends[-1] == batch["tokens"].shape[1]
    assert ends[-1] % 16 == 0
    for number, row in enumerate(rows):
        part, length = slice(ends[number], ends[number + 1]), len(row.input_ids) - 1
        assert ends[number + 1] - ends[number] == length
        for name in ("tokens", "labels", "loss_mask", "position_ids"):
            assert batch[name][0, part].tolist() == padded[name][number, :length].tolist()
    assert not batch["loss_mask"][0, ends[len(rows)] :].any()
    assert int(batch["max_seqlen"]) == max(after - before for before, after in zip(ends, ends[1:]))  # noqa: B905, RUF007


def test_a_converted_base_is_used_again_and_never_that_of_another_model(recipe, tmp_path):
    base = tmp_path / "mcore"
    base.mkdir()
    (base / "latest_checkpointed_iteration.txt").write_text("0", encoding="utf-8")
    # Made by hand: taken as it is.
    convert_base(recipe, base, scratch=tmp_path)
    record = base / "bakehouse-base.json"
    record.write_text('{"hf_model": "some/model", "torch_dtype": "bfloat16"}', encoding="utf-8")
    convert_base(recipe, base, scratch=tmp_path)
    with pytest.raises(ConvertError, match="MCORE_BASE"):
        convert_base(recipe.replace(base_model="other/model"), base, scratch=tmp_path)
    record.write_text("torn", encoding="utf-8")
    with pytest.raises(ConvertError, match="cannot be read"):
        convert_base(recipe, base, scratch=tmp_path)


def test_a_conversion_that_fails_leaves_no_base(recipe, tmp_path):
    with pytest.raises(ConvertError, match="exit code 1"):
        convert_base(recipe, tmp_path / "mcore", scratch=tmp_path)
    assert not (tmp_path / "mcore").exists()


def test_the_trainer_starts_with_nothing_but_the_standard_library(tmp_path):
    found = subprocess.run(
        [sys.executable, "-S", "-P", "-c", "import tools.lanes.scripts.train_nemo as m; print(m.__file__)"],
        env={"PYTHONPATH": str(ship(tmp_path))},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()).is_relative_to(tmp_path)
