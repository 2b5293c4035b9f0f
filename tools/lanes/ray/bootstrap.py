"""The actor that Ray starts on a node, before anything of this package is there.

Ray carries this one class by value. It uses nothing but the standard library until it has
unpacked the package's source, and then hands every call on.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Bootstrap"]


class Bootstrap:
    """Unpacks the source that it is given and calls `NodeSide` from it."""

    def __init__(self, source: bytes) -> None:
        import fcntl
        import io
        import os
        import sys
        import tempfile
        import zipfile
        from pathlib import Path

        chosen = os.environ.get("BAKEHOUSE_CACHE")
        root = (Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "bakehouse") / "ray"
        (root / "jobs").mkdir(parents=True, exist_ok=True)
        # A folder without a held lock is swept; this lock keeps sweepers away until it is held.
        with (root / "jobs.lock").open("ab") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            job = Path(tempfile.mkdtemp(prefix="job-", dir=root / "jobs"))
            lock = os.open(job / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
        with zipfile.ZipFile(io.BytesIO(source)) as archive:
            archive.extractall(job / "code")
        # Another package of that name may be on the node's path, or loaded.
        sys.path.insert(0, str(job / "code"))
        for name in [name for name in sys.modules if name.partition(".")[0] == "tools"]:
            del sys.modules[name]
        from tools.lanes.ray.node import NodeSide

        self._side = NodeSide(root, job, lock)

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a method of the node's side."""
        return getattr(self._side, name)(*arguments)
