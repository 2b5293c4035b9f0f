"""The Ray cluster that a run goes to: the one that is named, the one that runs here, or one started here."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Final

from tools.child import Child, tail
from tools.errors import TrainError
from tools.lanes.ray.folders import work_folder
from tools.models import cache_root

__all__ = ["ADDRESS", "check_address", "cluster_address", "connected"]

ADDRESS: Final = "RAY_ADDRESS"

logger = logging.getLogger(__name__)

_ANSWER_S: Final = 10.0
_CONNECT_S: Final = 60.0
_LEAVE_S: Final = 10.0
_STOP_S: Final = 5.0


def check_address(address: str) -> None:
    """Refuse what cannot be a cluster's address, without asking anybody.

    Raises:
        TrainError: says what is allowed.
    """
    if address in ("", "auto", "local"):
        return
    scheme, _, rest = address.rpartition("://")
    host, _, port = rest.rpartition(":")
    if scheme not in ("", "ray") or not host or not port.isascii() or not port.isdigit():
        raise TrainError(
            f"{ADDRESS} is {address!r}; allowed: host:port of a cluster that this machine is a node of, "
            "ray://host:port of a Ray Client server, auto, local, or nothing"
        )
    if scheme and importlib.util.find_spec("grpc") is None:
        raise TrainError(f"{ADDRESS} is {address!r}, and ray:// needs grpcio: pip install 'ray[client]'")


def cluster_address(environ: Mapping[str, str]) -> str | None:
    """Return the address that Ray's own rule comes to, None where a cluster is to be started here.

    The rule: what RAY_ADDRESS says, else the cluster that was started on this machine last.

    Raises:
        TrainError: RAY_ADDRESS cannot be an address, or nothing answers there.
    """
    address = environ.get(ADDRESS, "").strip()
    check_address(address)
    if address == "local":
        return None
    if address not in ("", "auto"):
        err = _refusal(address)
        if err is not None:
            raise TrainError(
                f"no Ray cluster answers at {ADDRESS}={address} ({err}); start one (`ray start --head`), "
                f"correct {ADDRESS}, or unset it to train on a cluster of this machine"
            )
        return address
    running = _running_here(environ)
    if running is None and address == "auto":
        raise TrainError(f"{ADDRESS} is auto, and no cluster runs on this machine; `ray start` starts one")
    return running


@contextlib.contextmanager
def connected(environ: MutableMapping[str, str], log_path: Path) -> Iterator[None]:
    """Be connected to the cluster for the length of the block; one that was started here ends with it.

    Args:
        environ: Of this process: what Ray reads from it is set before Ray is loaded.
        log_path: Where a cluster that is started here says what it has to say.
    Raises:
        TrainError: no cluster, or one that does not let this process in, in time.
    """
    environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = cluster_address(environ)
    with contextlib.ExitStack() as stack:
        if address is None:
            logger.info("no Ray cluster is named and none runs here: starting one on this machine")
            address = stack.enter_context(_started_here(environ, log_path))
        else:
            is_named = environ.get(ADDRESS, "").strip() not in ("", "auto")
            how = f"named by {ADDRESS}" if is_named else "which runs on this machine"
            logger.info("connecting to the Ray cluster at %s, %s", address, how)
        _connect(address)
        try:
            yield
        finally:
            _disconnect()


def _connect(address: str) -> None:
    import ray

    with _deadline(_CONNECT_S, f"the Ray cluster at {address} did not let this machine in"):
        try:
            ray.init(address=address, log_to_driver=False, logging_level="WARNING")
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as err:
            advice = (
                "is it the address of its Ray Client server (port 10001 by default)?"
                if address.startswith("ray://")
                else f"this machine must be a node of it (`ray start --address={address} --num-cpus=0`), or "
                f"{ADDRESS} the ray:// address of its Ray Client server"
            )
            raise TrainError(
                f"the Ray cluster at {address} cannot be used: {err}; {advice}. "
                "Ray and Python must be the same versions on both sides"
            ) from err


def _disconnect() -> None:
    import ray

    # From a cluster that is gone Ray takes its leave for minutes; the run does not depend on it.
    leaving = threading.Thread(target=ray.shutdown, daemon=True)
    leaving.start()
    leaving.join(_LEAVE_S)
    if leaving.is_alive():
        logger.warning("the Ray cluster does not answer any more; leaving without a word")


@contextlib.contextmanager
def _deadline(limit_s: float, what: str) -> Iterator[None]:
    """End this process when the block, which cannot be interrupted, takes too long."""

    def leave() -> None:
        logger.error("%s within %.0f s; see whether it is healthy (`ray status`)", what, limit_s)
        logging.shutdown()
        os._exit(1)

    timer = threading.Timer(limit_s, leave)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _started_here(environ: MutableMapping[str, str], log_path: Path) -> Iterator[str]:
    """Run a cluster of this machine alone, and give its address."""
    environ.pop(ADDRESS, None)
    if "RAY_AUTH_MODE" not in environ:
        # Whoever reaches a cluster can run code in it, and Ray listens on more than this machine. Left to
        # itself it would keep one token for all in the user's home.
        environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    # Sockets lie below it, whose paths may not be longer than about a hundred characters.
    gate = cache_root() / "ray" / "clusters.lock"
    with work_folder(gate, Path("/tmp"), "bakehouse-ray-") as (folder, lock):
        told, own = folder / "address", str(folder / "ray")
        argv = (sys.executable, "-P", "-m", "tools.lanes.ray.here", str(told), "--folder", own)
        with Child.start(argv, log_path=log_path, keep_fds=(lock,), grace_s=_STOP_S) as keeper:
            deadline = time.monotonic() + _CONNECT_S
            while not told.exists():
                if keeper.wait(0.1) is not None or time.monotonic() > deadline:
                    words = tail(log_path)
                    raise TrainError(f"no Ray cluster could be started here; log: {log_path}\n{words}")
            yield told.read_text(encoding="utf-8").strip()
            keeper.stop(_STOP_S)


def _running_here(environ: Mapping[str, str]) -> str | None:
    """Return the address of the cluster that `ray start` left word of, if it answers."""
    temporary = environ.get("TMPDIR", "/tmp") if sys.platform.startswith("linux") else "/tmp"
    root = Path(environ.get("RAY_TMPDIR", temporary)) / "ray"
    try:
        address = (root / "ray_current_cluster").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return address if address and _refusal(address) is None else None


def _refusal(address: str) -> OSError | None:
    """Return why nothing can be reached at host:port, None where something answers."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S):
            return None
    except (OSError, OverflowError, UnicodeError) as err:
        return err if isinstance(err, OSError) else OSError(str(err))
