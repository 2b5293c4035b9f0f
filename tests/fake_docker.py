"""An executable called `docker` that really runs the inner command, in a container of our own make."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

# Like the real client: `exec` passes no signal on to the inner process, which gets a session
# of its own and lives on when the client dies. Variables named by -e come from the client's
# environment; the rest of it does not reach the container.
_DOCKER = """\
import os, subprocess, sys
argv = sys.argv[1:]
with open({log!r}, "a", encoding="utf-8") as log:
    log.write(repr(argv) + "\\n")
assert argv.pop(0) == "exec", argv
env = {{"PATH": {path!r}, "HOME": {home!r}}}
cwd = None
while argv[0].startswith("-"):
    flag = argv.pop(0)
    value = argv.pop(0)
    if flag == "-w":
        cwd = value
    elif flag == "-e":
        env[value] = os.environ[value]
    else:
        sys.exit("unknown flag " + flag)
container = argv.pop(0)
if container != {container!r}:
    sys.exit("Error response from daemon: No such container: " + container)
sys.exit(subprocess.run(argv, env=env, cwd=cwd, start_new_session=True).returncode)
"""

_TORCHRUN = """\
#!/bin/bash
[ "$1" = "--nproc_per_node=1" ] || exit 64
shift
exec "{python}" "$@"
"""


class FakeDocker:
    """Puts `docker` into a folder for PATH; `calls` are the argument lists it was given."""

    def __init__(self, folder: Path, container: str, *, python: str = sys.executable) -> None:
        self.bin = folder / "host-bin"
        self._log = folder / "docker-calls.txt"
        inside = folder / "container-bin"
        home = folder / "container-home"
        home.mkdir(parents=True)
        path = f"{inside}:/usr/local/bin:/usr/bin:/bin"
        # A login shell resets PATH from /etc/profile.
        (home / ".bash_profile").write_text(f"export PATH='{path}'\n", encoding="utf-8")
        client = folder / "docker_client.py"
        text = _DOCKER.format(log=str(self._log), path=path, home=str(home), container=container)
        client.write_text(text, encoding="utf-8")
        # A first line that names an interpreter ends at the first space of its path.
        _executable(self.bin / "docker", f'#!/bin/sh\nexec "{sys.executable}" "{client}" "$@"\n')
        _executable(inside / "torchrun", _TORCHRUN.format(python=python))
        _executable(inside / "python3", f'#!/bin/bash\nexec "{python}" "$@"\n')

    @property
    def calls(self) -> list[str]:
        """What docker was called with, one line a call."""
        return self._log.read_text(encoding="utf-8").splitlines() if self._log.exists() else []


def _executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
