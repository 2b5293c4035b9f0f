"""Which devices get a worker of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools.errors import TrainError
from tools.lanes.devices import worker_places


@pytest.fixture
def gpus(tmp_path: Path) -> dict[str, str]:
    """An environment whose nvidia-smi, a real program, lists three GPUs."""
    smi = tmp_path / "nvidia-smi"
    lines = "\n".join(f"{n}, GPU-{n}, NVIDIA X, 80000, 79000, 9.0, 580.1" for n in range(3))
    smi.write_text(f"#!/bin/sh\ncat <<'END'\n{lines}\nEND\n", encoding="utf-8")
    smi.chmod(0o755)
    return {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}


def test_every_visible_gpu_gets_a_worker_that_sees_it_alone(gpus):
    places = worker_places(gpus)
    assert [place.environment for place in places] == [{"CUDA_VISIBLE_DEVICES": f"GPU-{n}"} for n in range(3)]


def test_what_the_environment_hides_is_not_used(gpus):
    places = worker_places({**gpus, "CUDA_VISIBLE_DEVICES": "2, MIG-7"})
    assert [place.environment["CUDA_VISIBLE_DEVICES"] for place in places] == ["2", "MIG-7"]
    for hidden in ("", "-1", "NoDevFiles"):
        (place,) = worker_places({**gpus, "CUDA_VISIBLE_DEVICES": hidden})
        assert place.environment == {}


def test_the_setting_bounds_the_workers(gpus):
    assert len(worker_places({**gpus, "BAKEHOUSE_DEVICES": "2"})) == 2
    (one,) = worker_places({**gpus, "BAKEHOUSE_DEVICES": "1"})
    assert one.environment == {}
    with pytest.raises(TrainError, match="BAKEHOUSE_DEVICES is 4, but 3 GPUs are visible"):
        worker_places({**gpus, "BAKEHOUSE_DEVICES": "4"})


def test_without_a_gpu_there_is_one_worker_unless_more_are_asked_for():
    nothing = {"PATH": "/nowhere"}
    (place,) = worker_places(nothing)
    assert (place.environment, place.threads) == ({}, None)
    places = worker_places({**nothing, "BAKEHOUSE_DEVICES": "2"})
    assert len(places) == 2
    assert places[0].threads == max(1, (os.cpu_count() or 1) // 2)


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "65", "²"])
def test_a_setting_that_is_no_number_of_workers_is_refused(text):
    with pytest.raises(TrainError, match="a whole number from 1 to 64"):
        worker_places({"PATH": "/nowhere", "BAKEHOUSE_DEVICES": text})
