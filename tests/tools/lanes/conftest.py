"""A real Ray cluster of this machine, started when the first test asks for it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray_clusters import RayCluster, running_cluster


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    """A cluster with two CPUs, its nodes' cache of sent models empty at first."""
    # Not pytest's own folder: sockets lie in it, whose paths may not be long.
    with (
        tempfile.TemporaryDirectory(prefix="bh-ray-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        running_cluster(Path(folder), cpus=2) as cluster,
    ):
        yield cluster
