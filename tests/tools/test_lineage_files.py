"""The file of the lineage under races, kills, full disks and foreign hands."""

from __future__ import annotations

import csv
import fcntl
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lineage_rows import make_trial
from tools.errors import LineageError
from tools.lineage import FailureLabel, LineageStore, Trial

WRITERS = 8
ROUNDS = 12
ROWS_EACH = 6

# Each writer stays up for all rounds: a line on stdin starts one, a line on stdout ends it, so
# that all writers meet at a file that is not there yet.
WRITER = """
import sys
from tests.lineage_rows import make_trial
from tools.lineage import LineageStore
name, rows = sys.argv[1], int(sys.argv[2])
print("ready", flush=True)
for line in sys.stdin:
    store = LineageStore(line.strip())
    for number in range(rows):
        store.append(make_trial(f"{name}-{number}", hypothesis='say "hi"\\n' + "x" * (number * 997)))
        store.append_once(make_trial(f"shared-{number}"))
    print("done", flush=True)
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )


def say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_eight_processes_that_meet_at_a_fresh_store_leave_every_row_readable(tmp_path: Path) -> None:
    writers = [start(WRITER, f"w{number}", str(ROWS_EACH)) for number in range(WRITERS)]
    try:
        assert [hear(writer) for writer in writers] == ["ready"] * WRITERS
        for turn in range(ROUNDS):
            root = tmp_path / f"round-{turn}"
            for writer in writers:
                say(writer, str(root))
            assert [hear(writer) for writer in writers] == ["done"] * WRITERS
            store = LineageStore(root)
            names = [trial.exp_id for trial in store.all_trials()]
            own = [f"w{writer}-{number}" for writer in range(WRITERS) for number in range(ROWS_EACH)]
            shared = [f"shared-{number}" for number in range(ROWS_EACH)]
            assert sorted(names) == sorted(own + shared)
            assert store.problems() == ()
            assert store.results_path.read_bytes().count(b"exp_id\t") == 1
            assert os.listdir(root) == ["results.tsv"]
    finally:
        for writer in writers:
            writer.communicate(timeout=30)


ENDLESS = """
import itertools, sys
from tests.lineage_rows import make_trial
from tools.lineage import LineageStore
store = LineageStore(sys.argv[1])
for number in itertools.count():
    store.append(make_trial(f"{sys.argv[2]}-{number}", hypothesis='"q" ' + "y" * 3000))
    print(number, flush=True)
"""


def test_every_row_whose_append_returned_survives_kill_nine(tmp_path: Path) -> None:
    rng = random.Random(5)
    promised: list[str] = []
    for life in range(6):
        process = start(ENDLESS, str(tmp_path), f"life{life}")
        hear(process)
        # The moment of the kill is the point of this test; nothing is waited for.
        time.sleep(rng.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        promised += [f"life{life}-{number}" for number in range(1 + rest.count("\n"))]
        names = [trial.exp_id for trial in LineageStore(tmp_path).all_trials()]
        assert set(promised) <= set(names)
        assert len(names) == len(set(names))
    LineageStore(tmp_path).append(make_trial("after"))
    assert read_strictly(tmp_path / "results.tsv")[-1] == "after"


def test_a_tear_at_any_byte_costs_that_row_alone(tmp_path: Path) -> None:
    whole = LineageStore(tmp_path / "whole")
    for number in range(3):
        whole.append(make_trial(f"{number:03d}", hypothesis='a "quoted"\tcell é', notes="the end"))
    data = whole.results_path.read_bytes()
    for cut in range(len(data)):
        root = tmp_path / str(cut)
        root.mkdir()
        (root / "results.tsv").write_bytes(data[:cut])
        kept = [f"{number:03d}" for number in range(data[:cut].count(b"\n") - 1)]
        seen = [trial.exp_id for trial in LineageStore(root).all_trials()]
        assert seen[: len(kept)] == kept, cut
        store = LineageStore(root)
        store.append(make_trial("new"))
        names = read_strictly(root / "results.tsv")
        assert [name for name in names if name not in ("002", "001", "000")] == ["new"], cut
        assert names[: len(kept)] == kept, cut
        assert [trial.exp_id for trial in store.all_trials()] == names
        assert store.problems() == ()


def read_strictly(path: Path) -> list[str]:
    """Read the table as a plain reader does, which forgives nothing; return the names."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", strict=True))
    for row in rows:
        assert None not in row
        assert None not in row.values()
    return [Trial.from_row(row).exp_id for row in rows]


def test_a_torn_tail_is_kept_aside_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = LineageStore(tmp_path)
    store.append(make_trial("001"))
    with store.results_path.open("ab") as file:
        file.write(b"002\t2026-05-1")
    assert len(store.problems()) == 1
    assert "2 cells where the header has 17" in store.problems()[0]
    with caplog.at_level(logging.WARNING):
        store.append(make_trial("003"))
    assert "the last line was torn" in caplog.text
    assert (tmp_path / "results.tsv.torn").read_bytes() == b"002\t2026-05-1\n"
    assert store.problems() == ()


def test_a_last_row_that_only_lacks_its_line_end_stays(tmp_path: Path) -> None:
    store = LineageStore(tmp_path)
    store.append(make_trial("001", notes="by hand"))
    store.results_path.write_bytes(store.results_path.read_bytes().rstrip(b"\n"))
    store.append(make_trial("002"))
    assert [trial.exp_id for trial in store.all_trials()] == ["001", "002"]
    assert not (tmp_path / "results.tsv.torn").exists()


@pytest.mark.parametrize(
    "torn",
    [
        b'009\tt\topt\t\t\t\t"an open quote',
        b'009\tt\topt\t\t\t\t"a ""word"" and an open quote',
        b"\xff\xfe\x00\x00",
        b"\x00" * 64,
        b"009" + b"\t" * 40,
        b"009\t\t\t\t\t\t\t\tunknown\t\t\t\t\t\t\t\t",
        b"009\t\t\t\t\t\t\t\tkeep\tNaNa\t\t\t\t\t\t\t",
    ],
)
def test_a_broken_line_in_the_middle_costs_itself_alone(tmp_path: Path, torn: bytes) -> None:
    store = LineageStore(tmp_path)
    for number in range(4):
        store.append(make_trial(str(number), hypothesis='"quoted"'))
    lines = store.results_path.read_bytes().split(b"\n")
    store.results_path.write_bytes(b"\n".join([*lines[:2], torn, *lines[2:]]))
    fresh = LineageStore(tmp_path)
    assert [trial.exp_id for trial in fresh.all_trials()] == ["0", "1", "2", "3"]
    (problem,) = fresh.problems()
    assert problem.startswith("line 3:")
    fresh.append(make_trial("4"))
    assert [trial.exp_id for trial in fresh.all_trials()] == ["0", "1", "2", "3", "4"]


def test_a_disk_that_fills_up_in_a_row_leaves_no_part_of_it(tmp_path: Path) -> None:
    # The limit on file size is the full disk: the kernel takes a part of the write and no more.
    code = """
import resource, signal, sys
from tests.lineage_rows import make_trial
from tools.lineage import LineageStore
store = LineageStore(sys.argv[1])
store.append(make_trial("000"))
size = store.results_path.stat().st_size
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, size + 40))
try:
    store.append(make_trial("001", notes="z" * 500))
except OSError as err:
    print(type(err).__name__, store.results_path.stat().st_size - size)
"""
    process = start(code, str(tmp_path))
    out, _ = process.communicate(timeout=60)
    assert out.split() == ["OSError", "0"]
    assert [trial.exp_id for trial in LineageStore(tmp_path).all_trials()] == ["000"]


def test_a_store_sees_what_others_append_and_what_git_replaces(tmp_path: Path) -> None:
    mine, other = LineageStore(tmp_path), LineageStore(tmp_path)
    for number in range(3):
        other.append(make_trial(str(number)))
        assert [trial.exp_id for trial in mine.all_trials()] == [str(n) for n in range(number + 1)]
    replaced = LineageStore(tmp_path / "branch")
    replaced.append(make_trial("other"))
    os.replace(replaced.results_path, mine.results_path)
    assert [trial.exp_id for trial in mine.all_trials()] == ["other"]
    mine.results_path.unlink()
    assert mine.all_trials() == []


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="the kernel does not list who waits for a lock")
def test_a_writer_that_waits_for_a_replaced_file_writes_to_the_new_one(tmp_path: Path) -> None:
    store = LineageStore(tmp_path)
    store.append(make_trial("old"))
    branch = LineageStore(tmp_path / "branch")
    branch.append(make_trial("new"))
    code = (
        "import sys; from tests.lineage_rows import make_trial; from tools.lineage import LineageStore\n"
        "store = LineageStore(sys.argv[1]); print('ready', flush=True)\n"
        "store.append(make_trial('late')); print('done', flush=True)"
    )
    with store.results_path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        process = start(code, str(tmp_path))
        assert hear(process) == "ready"
        wait_until_blocked(process.pid)
        os.replace(branch.results_path, store.results_path)
    process.communicate(timeout=60)
    assert [trial.exp_id for trial in store.all_trials()] == ["new", "late"]


def wait_until_blocked(pid: int) -> None:
    """Wait until the process sleeps on a file lock."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any(f" {pid} " in line for line in Path("/proc/locks").read_text().splitlines() if "->" in line):
            return
        time.sleep(0.01)
    pytest.fail(f"process {pid} never waited for the lock")


def test_columns_in_another_order_are_read_by_name_and_written_in_that_order(tmp_path: Path) -> None:
    trial = make_trial("001", notes="n", core_metric=0.25)
    columns = ("extra", *reversed(Trial.header()))
    cells = dict(zip(Trial.header(), trial.to_row(), strict=True)) | {"extra": "e"}
    lines = ["\t".join(columns), "\t".join(cells[name] for name in columns)]
    (tmp_path / "results.tsv").write_text("\n".join(lines) + "\n")
    store = LineageStore(tmp_path)
    assert store.all_trials() == [trial]
    store.append(make_trial("002", core_metric=0.75))
    assert store.all_trials() == [trial, make_trial("002", core_metric=0.75)]
    assert store.results_path.read_text().splitlines()[2].startswith("\t\t\t")


def test_a_table_without_one_of_the_columns_is_read_but_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "results.tsv").write_text("exp_id\tcore_metric\n001\t0.5\n")
    store = LineageStore(tmp_path)
    (trial,) = store.all_trials()
    assert (trial.exp_id, trial.core_metric, trial.status) == ("001", 0.5, FailureLabel.DISCARD)
    with pytest.raises(LineageError, match="has no column"):
        store.append(make_trial("002"))


def test_headers_of_racing_writers_a_byte_order_mark_and_windows_line_ends_are_no_trials(
    tmp_path: Path,
) -> None:
    store = LineageStore(tmp_path)
    store.append(make_trial("001", hypothesis='"q"'))
    header, row, _ = store.results_path.read_bytes().split(b"\n")
    store.results_path.write_bytes(
        b"\xef\xbb\xbf" + b"\r\n".join([header, header, row, b"", row, header, b""])
    )
    assert store.all_trials() == [make_trial("001", hypothesis='"q"')] * 2
    assert store.problems() == ()


def test_reading_a_growing_file_piece_by_piece_gives_what_reading_it_whole_gives(tmp_path: Path) -> None:
    rng = random.Random(11)
    store = LineageStore(tmp_path / "parts")
    for number in range(8):
        store.append(make_trial(str(number), hypothesis='"q"\t' if number % 2 else "plain"))
    header, *rows = store.results_path.read_bytes().rstrip(b"\n").split(b"\n")
    spanning = rows[1].replace(b'"""q""\t"', b'"two\nlines ""q"""')
    messy = [*rows, spanning, spanning, b"torn\tline", rows[1][:30], b"", header]
    for turn in range(60):
        lines = [rng.choice(messy) for _ in range(12)]
        data = b"\n".join([header, *lines]) + rng.choice((b"", b"\n"))
        grown = LineageStore(tmp_path / str(turn))
        grown.root.mkdir()
        grown.results_path.touch()
        cuts = sorted(rng.sample(range(len(data)), 10))
        for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            with grown.results_path.open("ab") as file:
                file.write(data[begin:end])
            grown.all_trials()
        whole = LineageStore(grown.root)
        assert grown.all_trials() == whole.all_trials()
        assert grown.problems() == whole.problems()
        assert {trial.exp_id for trial in whole.all_trials()} <= {str(number) for number in range(8)}
