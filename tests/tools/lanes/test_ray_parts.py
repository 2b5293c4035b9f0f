"""What the Ray lane is made of, without Ray: parcels, the node's cache, choices, versions, addresses."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tools.child import child_environment
from tools.errors import TrainError
from tools.lanes.ray.cluster import cluster_address
from tools.lanes.ray.folders import work_folder
from tools.lanes.ray.models import ModelCache, model_files
from tools.lanes.ray.outbox import Outbox, checkpoint_mark
from tools.lanes.ray.parcels import Parcel, ParcelFile, Unpacking, pieces
from tools.lanes.ray.resources import NodeRoom, Resources, asked, choose
from tools.lanes.ray.versions import check_versions
from tools.lanes.ray.view import Facts
from tools.versions import library_versions


def fill(unpacking: Unpacking, files: dict[str, Path]) -> None:
    for name, path in files.items():
        for piece in pieces(path):
            unpacking.add(name, piece)


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    (tmp_path / "source").mkdir()
    contents = {"a.bin": b"12345", "empty": b"", "deep/b.txt": b"x" * 100}
    for name, content in contents.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return {name: tmp_path / "source" / name for name in contents}


def test_a_parcel_arrives_as_it_left(files, tmp_path):
    parcel = Parcel.of(files)
    unpacking = Unpacking(tmp_path / "there", parcel)
    fill(unpacking, files)
    folder = unpacking.finish()
    assert {name: (folder / name).read_bytes() for name in files} == {
        name: path.read_bytes() for name, path in files.items()
    }
    assert Parcel.of({name: folder / name for name in files}).digest == parcel.digest


def test_a_parcel_that_is_torn_is_never_whole(files, tmp_path):
    unpacking = Unpacking(tmp_path / "there", Parcel.of(files))
    unpacking.add("a.bin", b"123")
    with pytest.raises(TrainError, match=r"a\.bin arrived torn"):
        unpacking.finish()
    with pytest.raises(TrainError, match="none of this parcel"):
        unpacking.add("other", b"")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "..", ".", "", "a//b", "a/", "a\0b"])
def test_a_parcel_stays_in_its_folder(name, tmp_path):
    with pytest.raises(TrainError, match="plain, distinct names"):
        Unpacking(tmp_path / "there", Parcel((ParcelFile(name, 1, "0"),)))
    assert not (tmp_path / "there").exists()


def test_what_a_killed_sender_left_is_no_part_of_the_next_parcel(files, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "old").touch()
    unpacking = Unpacking(tmp_path / "there", Parcel.of(files))
    fill(unpacking, files)
    assert not (unpacking.finish() / "old").exists()


def test_a_model_is_sent_once_by_one_of_those_that_need_it(files, tmp_path):
    parcel, first, second = Parcel.of(files), ModelCache(tmp_path / "m"), ModelCache(tmp_path / "m")
    assert first.seek(parcel.digest) == "send"
    assert second.seek(parcel.digest) == "busy"
    # The first is killed half way: the kernel lets go of its lock.
    first.begin(parcel.digest, parcel).add("a.bin", b"1")
    first.release()
    assert second.seek(parcel.digest) == "send"
    unpacking = second.begin(parcel.digest, parcel)
    fill(unpacking, files)
    assert not second.place(parcel.digest).exists()
    second.keep(parcel.digest, unpacking)
    assert (first.seek(parcel.digest), second.seek(parcel.digest)) == ("here", "here")
    assert (second.place(parcel.digest) / "deep" / "b.txt").read_bytes() == b"x" * 100


def test_of_a_model_only_what_loading_reads_is_sent(tmp_path):
    names = ["config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", ".lock"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool.jinja").touch()
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").touch()
    assert sorted(model_files(tmp_path)) == [
        "additional_chat_templates/tool.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    (tmp_path / "model.safetensors").unlink()
    assert "pytorch_model.bin" in model_files(tmp_path)
    assert model_files(tmp_path / "config.json") == {"config.json": tmp_path / "config.json"}


def test_a_checkpoint_that_is_kept_outlives_its_rotation(tmp_path):
    source = tmp_path / "run" / "iter_0000002"
    source.mkdir(parents=True)
    (source / "adapter").write_bytes(b"weights")
    mark = checkpoint_mark(source)
    outbox = Outbox(tmp_path / "run", tmp_path / "out")
    parcel = outbox.hold(2, mark)
    assert parcel is not None
    assert [file.name for file in parcel.files] == ["adapter"]
    shutil.rmtree(source)
    assert outbox.read(2, "adapter", 3) == b"ghts"
    outbox.drop(2)
    assert list((tmp_path / "out").iterdir()) == []
    assert outbox.hold(2, mark) is None


def test_a_checkpoint_that_is_being_removed_is_not_taken_for_a_whole_one(tmp_path):
    source = tmp_path / "run" / "iter_0000002"
    source.mkdir(parents=True)
    for name in ("adapter", "state"):
        (source / name).touch()
    mark = checkpoint_mark(source)
    (source / "adapter").unlink()
    assert Outbox(tmp_path / "run", tmp_path / "out").hold(2, mark) is None


CPU_BOX, GPU_BOX = NodeRoom("cpu (10.0.0.1)", 64, 0), NodeRoom("gpu (10.0.0.2)", 16, 2)


def test_a_trial_gets_a_gpu_where_there_is_one_else_the_cpus_of_a_node():
    nothing = Resources(None, None)
    assert choose(nothing, [CPU_BOX, GPU_BOX]) == Resources(1, 1.0)
    assert choose(nothing, [CPU_BOX, NodeRoom("small", 2, 0)]) == Resources(64, 0.0)
    assert choose(Resources(None, 0.0), [CPU_BOX, GPU_BOX]) == Resources(64, 0.0)
    assert choose(Resources(8, 0.5), [CPU_BOX, GPU_BOX]) == Resources(8, 0.5)


def test_what_no_single_node_has_is_refused_with_what_there_is():
    with pytest.raises(TrainError, match=r"32 CPUs and 1 GPUs on one node(.|\n)*16 CPUs, 2 GPUs"):
        choose(Resources(32, 1.0), [CPU_BOX, GPU_BOX])
    with pytest.raises(TrainError, match="no nodes"):
        choose(Resources(None, None), [])


@pytest.mark.parametrize(
    "environ",
    [{"BAKEHOUSE_RAY_CPUS": text} for text in ("0", "-1", "1.5", "²", "nan", "inf", "1e9")]
    + [{"BAKEHOUSE_RAY_GPUS": text} for text in ("2", "-0.5", "one", "nan")],
)
def test_a_wish_that_is_no_such_number_is_refused(environ):
    with pytest.raises(TrainError, match="is needed"):
        asked(environ)


def test_a_wish_is_read_from_the_environment():
    assert asked({}) == Resources(None, None)
    assert asked({"BAKEHOUSE_RAY_CPUS": " 4 ", "BAKEHOUSE_RAY_GPUS": "0.5"}) == Resources(4, 0.5)


def test_a_node_without_a_library_or_with_an_old_one_cannot_train():
    here = library_versions()
    check_versions(Facts("spark-2", here))
    with pytest.raises(
        TrainError, match=r"spark-2 cannot train; missing there: peft(.|\n)*bakehouse\[train\]"
    ):
        check_versions(Facts("spark-2", {name: here[name] for name in here if name != "peft"}))
    with pytest.raises(TrainError, match=r"too old: torch 2\.1\.0 \(needed: >=2\.11\)"):
        check_versions(Facts("spark-2", {**here, "torch": "2.1.0"}))


def test_a_node_with_another_minor_version_is_warned_of(caplog):
    check_versions(Facts("spark-2", {**library_versions(), "torch": "2.99.0+cu140"}))
    assert "node spark-2 has torch 2.99.0+cu140" in caplog.text
    caplog.clear()
    check_versions(Facts("spark-2", library_versions()))
    assert caplog.text == ""


def test_the_cluster_is_the_one_that_is_named_else_the_one_that_runs_here(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert cluster_address({"RAY_ADDRESS": address}) == address
        here = {"RAY_TMPDIR": str(tmp_path)}
        assert cluster_address(here) is None
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(address, encoding="utf-8")
        assert cluster_address(here) == address
        assert cluster_address({**here, "RAY_ADDRESS": "auto"}) == address
        assert cluster_address({**here, "RAY_ADDRESS": "local"}) is None
    # Word of a cluster that is gone.
    assert cluster_address(here) is None
    with pytest.raises(TrainError, match="no cluster runs on this machine"):
        cluster_address({**here, "RAY_ADDRESS": "auto"})
    with pytest.raises(TrainError, match=f"no Ray cluster answers at RAY_ADDRESS={address}"):
        cluster_address({"RAY_ADDRESS": address})


def test_the_folder_of_a_killed_process_is_removed_by_the_next_and_no_other(tmp_path):
    program = (
        "import os, pathlib, signal, sys\n"
        "from tools.lanes.ray.folders import work_folder\n"
        "parent = pathlib.Path(sys.argv[1])\n"
        "with work_folder(parent / 'gate', parent, 'w-'):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    argv = [sys.executable, "-P", "-c", program, str(tmp_path)]
    assert subprocess.run(argv, env=child_environment(), check=False).returncode == -signal.SIGKILL
    (left,) = tmp_path.glob("w-*")
    with work_folder(tmp_path / "gate", tmp_path, "w-") as (first, _):
        assert not left.exists()
        with work_folder(tmp_path / "gate", tmp_path, "w-") as (second, _):
            assert sorted(tmp_path.glob("w-*")) == sorted([first, second])
    assert list(tmp_path.glob("w-*")) == []


def test_a_node_whose_driver_fell_silent_ends_by_itself(tmp_path):
    """Its own process, since that is what ends."""
    program = (
        "import fcntl, os, pathlib, sys, time\n"
        "from tools.lanes.ray.node import NodeSide\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "(root / 'jobs' / 'job-1').mkdir(parents=True)\n"
        "lock = os.open(root / 'jobs' / 'job-1' / 'lock', os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "side = NodeSide(root, root / 'jobs' / 'job-1', lock, abandoned_s=0.2)\n"
        "side.call('facts')\n"
        "time.sleep(60)\n"
    )
    argv = [sys.executable, "-P", "-c", program, str(tmp_path)]
    done = subprocess.run(argv, env=child_environment(), check=False, timeout=50)
    assert done.returncode == 1
    assert list((tmp_path / "jobs").iterdir()) == []
