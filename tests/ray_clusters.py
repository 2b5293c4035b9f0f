"""Real Ray clusters for tests, and what runs on them."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tools.child import Child, tail


@dataclass(frozen=True)
class RayCluster:
    """A cluster that runs, as a user's environment names it."""

    address: str
    cache: Path
    """Cache of every node of it."""
    keeper: Child

    @property
    def environment(self) -> dict[str, str]:
        return {
            "RAY_ADDRESS": self.address,
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "BAKEHOUSE_RAY_CPUS": "1",
        }


@contextlib.contextmanager
def running_cluster(folder: Path, *, cpus: int) -> Iterator[RayCluster]:
    """Run a cluster for the length of the block, all of its files in folder."""
    told, log, cache = folder / "address", folder / "cluster.log", folder / "cache"
    env = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "BAKEHOUSE_CACHE": str(cache),
        "RAY_ADDRESS": "",
        # A node that is gone is missed after a second, not after fifteen.
        "RAY_health_check_initial_delay_ms": "500",
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_timeout_ms": "3000",
        "RAY_health_check_failure_threshold": "2",
    }
    argv = (sys.executable, "-P", "-m", "tools.lanes.ray.here", str(told), "--folder", str(folder / "r"))
    argv += ("--cpus", str(cpus), "--store-mb", "80")
    with Child.start(argv, log_path=log, env=env, grace_s=5.0) as keeper:
        await_true(lambda: told.exists() or keeper.poll() is not None)
        assert told.exists(), tail(log)
        yield RayCluster(told.read_text(encoding="utf-8"), cache, keeper)
        keeper.stop(5.0)


@contextlib.contextmanager
def another_node(cluster: RayCluster, log: Path, *, cpus: int) -> Iterator[Child]:
    """Let the cluster have a second node for the length of the block."""
    argv = (sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats")
    argv += (f"--address={cluster.address}", f"--num-cpus={cpus}", "--object-store-memory=83886080")
    env = cluster.environment | {"BAKEHOUSE_CACHE": str(cluster.cache)}
    with Child.start(argv, log_path=log, env=env, grace_s=5.0) as node:
        yield node


def processes_of(*words: str) -> list[psutil.Process]:
    """Return the live processes whose command line holds all of the words."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.pid != os.getpid() and all(word in line for word in words):
                found.append(process)
    return found


def await_true(holds, *, limit_s: float = 90.0) -> None:
    """Wait until holds() is true."""
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
