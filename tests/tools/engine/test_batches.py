from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_tokenizer
from tests.tools.engine.conftest import write_rows
from tools.engine.batches import (
    EncodedRow,
    RowEncoder,
    StreamPart,
    check_rows,
    lay_out,
    rows_of_step,
    shared_length,
)
from tools.errors import DatasetError


def test_an_epoch_sees_every_row_once_and_the_last_batch_may_be_short() -> None:
    epochs = []
    for epoch in range(3):
        steps = [rows_of_step(10, 4, 7, epoch * 3 + turn) for turn in range(3)]
        assert [len(step) for step in steps] == [4, 4, 2]
        order = [row for step in steps for row in step]
        assert sorted(order) == list(range(10))
        epochs.append(order)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_order_is_the_seeds_alone() -> None:
    torch.manual_seed(1)
    first = rows_of_step(50, 8, 3, 2)
    torch.manual_seed(2)
    torch.rand(5)
    assert rows_of_step(50, 8, 3, 2) == first
    assert rows_of_step(50, 8, 4, 2) != first


def test_a_stream_restarts_positions_and_points_at_what_predicts() -> None:
    one = EncodedRow("a", (5, 6, 7), (False, True, True))
    two = EncodedRow("b", (8, 9), (True, True))
    stream = lay_out([StreamPart((one,), 0.5), StreamPart((two, one), 0.25)], torch.device("cpu"))
    # A row's last token predicts nothing.
    assert stream.input_ids_1_N.tolist() == [[5, 6, 8, 5, 6]]
    assert stream.positions_1_N.tolist() == [[0, 1, 0, 0, 1]]
    # The first token of a row has no token before it, whatever its mask says.
    assert stream.predicting_S.tolist() == [0, 1, 2, 3, 4]
    assert stream.targets_S.tolist() == [6, 7, 9, 6, 7]
    assert stream.weights_S.tolist() == [0.5, 0.5, 0.25, 0.25, 0.25]
    assert [(place.start, place.length) for place in stream.places] == [(0, 2), (2, 3)]
    assert [(place.supervised_start, place.n_supervised) for place in stream.places] == [(0, 2), (2, 3)]
    assert (one.n_supervised, two.n_supervised) == (2, 1)


def test_a_dataset_is_encoded_once(tmp_path: Path) -> None:
    encoder = RowEncoder(tiny_tokenizer())
    path = str(write_rows(tmp_path / "rows.jsonl"))
    assert encoder.encode(path, None) is encoder.encode(path, None)
    assert encoder.encode(path, "Be brief.") is not encoder.encode(path, None)


def test_rows_that_are_too_long_are_named_and_never_cut() -> None:
    rows = [EncodedRow("ok", (1, 2), (False, True)), EncodedRow("big", (1, 2, 3), (False, True, True))]
    check_rows(rows, 3)
    with pytest.raises(DatasetError, match=r"big \(3\)"):
        check_rows(rows, 2)


def test_a_row_that_teaches_nothing_is_named() -> None:
    with pytest.raises(DatasetError, match="mute"):
        check_rows([EncodedRow("mute", (1, 2), (True, False))], 10)


def encoded(ids: list[int], first_supervised: int) -> EncodedRow:
    return EncodedRow(str(ids), tuple(ids), tuple(i >= first_supervised for i in range(len(ids))))


@pytest.mark.parametrize(
    ("rows", "shared"),
    [
        ([([1, 2, 3, 4], 3), ([1, 2, 5, 6], 3)], 2),
        ([([1, 2, 3, 4], 2), ([1, 2, 3, 5], 3)], 2),
        ([([1, 2, 3], 1), ([1, 2, 3], 1)], 1),
        ([([1, 2], 1)], 0),
        ([([1, 2, 3], 2), ([2, 2, 3], 2)], 0),
        ([([1, 2, 3, 9], 3), ([1, 2, 3], 2), ([1, 2, 4, 4, 4], 3)], 2),
    ],
)
def test_rows_share_what_they_begin_with_and_never_a_supervised_token(
    rows: list[tuple[list[int], int]], shared: int
) -> None:
    assert shared_length([encoded(ids, first) for ids, first in rows]) == shared


def test_a_shared_beginning_is_laid_once_and_every_target_keeps_its_predictor() -> None:
    rows = (encoded([7, 8, 1, 2], 2), encoded([7, 8, 3], 2))
    stream = lay_out([StreamPart(rows, 1.0)], torch.device("cpu"))
    assert stream.input_ids_1_N.tolist() == [[7, 8, 1]]
    assert stream.positions_1_N.tolist() == [[0, 1, 2]]
    # Both rows' first answers are predicted by the one shared token before them.
    assert stream.predicting_S.tolist() == [1, 2, 1]
    assert stream.targets_S.tolist() == [1, 2, 3]


def test_what_follows_the_last_supervised_token_is_not_read() -> None:
    row = EncodedRow("a", (5, 6, 7, 8, 9), (False, True, True, False, False))
    stream = lay_out([StreamPart((row,), 1.0)], torch.device("cpu"))
    assert row.n_read == 2
    assert stream.input_ids_1_N.tolist() == [[5, 6]]
    assert stream.targets_S.tolist() == [6, 7]


@pytest.mark.parametrize(
    ("n_tokens", "n_filler"), [(3, 0), (31, 0), (33, 1), (64, 0), (65, 3), (500, 12), (1030, 58)]
)
def test_filler_behind_the_last_row_rounds_a_part_up(n_tokens: int, n_filler: int) -> None:
    rows = (encoded([*range(n_tokens - 1), 7], n_tokens - 1), encoded([9, 8], 1))
    part = StreamPart(rows, 1.0, shares_prefix=False)
    assert part.n_filler == n_filler
    stream = lay_out([part, part], torch.device("cpu"))
    assert [place.length for place in stream.places] == [n_tokens + n_filler] * 2
    assert stream.targets_S.tolist() == [7, 8, 7, 8]
    assert stream.positions_1_N[0, n_tokens - 1 :].tolist()[: n_filler + 1] == list(range(n_filler + 1))
