"""A corpus held against the judged rows of a workspace, and the command that learns it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.pretraining import gate_corpus, pretrain_folder
from tests.agent.bench import make_workspace
from tests.git_project import isolate_git
from tools.dataset import Dataset
from tools.errors import BakehouseError, LeakError, TaskError
from tools.pretraining.corpus import Corpus, Document
from tools.rows import Message, Row

LONG = "please fly the red drone to waypoint B4 and then hover there for twenty seconds"
JUDGED = {
    "dev": Dataset(Path("dev"), (Row("dev-1", (Message("user", LONG), Message("assistant", "x"))),), "d"),
    "test": Dataset(
        Path("t"), (Row("test-1", (Message("user", "land now"), Message("assistant", "y"))),), "t"
    ),
}


def corpus(*texts: str) -> Corpus:
    documents = tuple(Document(f"d{n}.md", text, str(n)) for n, text in enumerate(texts))
    return Corpus(documents, len(texts), 0, 0)


@pytest.mark.parametrize(
    ("text", "row"),
    [
        (f"An introduction.\n\nThen {LONG}, which works.\n\nThe end.", "dev-1"),
        ("Drones land on their own. Many pilots say so.\nLand now!\nOthers do not.", "test-1"),
        ("Some say a lot. Land now. Others wait.", "test-1"),
    ],
)
def test_a_document_that_holds_a_judged_row_is_refused_wherever_it_stands(text, row):
    with pytest.raises(LeakError, match=rf"1 of 2 documents.*--drop-leaks[\s\S]*d1\.md[\s\S]*{row}"):
        gate_corpus(corpus("Nothing of the kind.", text), JUDGED, drop_leaks=False)
    gated = gate_corpus(corpus("Nothing of the kind.", text), JUDGED, drop_leaks=True)
    assert [one.name for one in gated.corpus.documents] == ["d0.md"]
    assert gated.n_leaking == 1


def test_a_corpus_of_the_same_domain_passes():
    text = "Red drones fly to waypoints.\n\nThey hover for a while, then they land when they are told to."
    assert gate_corpus(corpus(text), JUDGED, drop_leaks=False).n_leaking == 0


def test_a_corpus_of_leaks_alone_is_refused_even_where_they_may_be_left_out():
    with pytest.raises(LeakError, match="1 of 1 documents"):
        gate_corpus(corpus("land now"), JUDGED, drop_leaks=True)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        isolate_git(patch)
        root = tmp_path_factory.mktemp("pretrain") / "workspace"
        root.mkdir()
        make_workspace(root, root / "no base is loaded")
    return root


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden", "A"])
def test_a_name_that_is_no_plain_one_is_refused(name, workspace):
    from tools.workspace import Workspace

    with pytest.raises(TaskError, match="lower-case letters"):
        pretrain_folder(Workspace.find(workspace), name)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("none.txt",), "does not exist"),
        (("corpus.txt", "--learning-rate", "0"), "learning_rate"),
        (("corpus.txt", "--name", "../x"), "lower-case letters"),
        (("corpus.txt", "leak.txt"), "1 of 2 documents"),
    ],
)
def test_the_command_refuses_what_cannot_be_learned_before_anything_runs(
    workspace, tmp_path, monkeypatch, arguments, reason
):
    from agent.cli.app import app

    judged = json.loads((workspace / "data" / "dev.jsonl").read_text(encoding="utf-8").splitlines()[0])
    (tmp_path / "corpus.txt").write_text("Drones fly.\n\nThey land.", encoding="utf-8")
    (tmp_path / "leak.txt").write_text(f"So:\n{judged['messages'][0]['content']}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BakehouseError, match=reason):
        app(["pretrain", "--workspace", str(workspace), *arguments, "--detach"], standalone_mode=False)
    assert not (workspace / ".bakehouse" / "pretrain").exists()
    assert not (workspace / ".bakehouse" / "jobs").exists()
