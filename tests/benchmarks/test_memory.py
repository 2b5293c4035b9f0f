"""The memory benchmark: a real worker's peak beside what was foretold."""

from __future__ import annotations

import argparse

import pytest

from benchmarks.memory import CASES, compare


@pytest.mark.slow
def test_a_real_worker_stays_near_what_was_foretold() -> None:
    options = argparse.Namespace(device="cpu", threads=1)
    (row,) = compare("tiny", CASES[:1], options)
    assert row["case"] == CASES[0].name
    assert row["real"] > 100 * 2**20
    assert 0.7 < row["foretold"] / row["real"] < 1.3
