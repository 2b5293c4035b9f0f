"""The pages of docs/reference: their examples run, and print what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parent.parent / "docs" / "reference").glob("*.md"))
# A page's `python` blocks run in order as one script, `output` blocks are the beginning of what
# each prints; other words after the fence, such as `py`, are for show.
_BLOCK = re.compile(r"^```(python|output)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = "<<< next block >>>"


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_the_examples_of_a_reference_page_print_what_it_says(page: Path, tmp_path: Path) -> None:
    blocks = _BLOCK.findall(page.read_text(encoding="utf-8"))
    script = "".join(f"{code}\nprint({_MARK!r})\n" for kind, code in blocks if kind == "python")
    assert script, f"{page} has no example"
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    printed = iter(done.stdout.split(f"{_MARK}\n"))
    said = ""
    for kind, text in blocks:
        if kind == "python":
            said = next(printed)
        else:
            assert said.startswith(text)
