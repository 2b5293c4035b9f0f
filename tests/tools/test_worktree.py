"""Commits from the worktree: the listed paths alone, once, by the user's own rules."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest

from tests.git_project import Project, git, isolate_git, make_project
from tools.errors import RepoError
from tools.repo import ITERATION_TRAILER, Worktree, ensure_worktree

KEY = "gh" + "p_" + "a1B2c3D4e5" * 4


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    isolate_git(monkeypatch)
    return make_project(tmp_path / "project")


@pytest.fixture
def worktree(project: Project) -> Worktree:
    return ensure_worktree(project.workspace, project.worktree_dir, "bakeoff/router")


def write(worktree: Worktree, name: str, text: str | bytes) -> Path:
    path = worktree.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def files_of(worktree: Worktree, sha: str) -> list[str]:
    return git(worktree.top, "diff-tree", "-r", "--no-commit-id", "--name-status", sha).splitlines()


def refused(worktree: Worktree, paths: list[str], complaint: str) -> None:
    """Check that the paths are refused, and that nothing at all came of it."""
    before, changed = worktree.head, worktree.changed_paths()
    with pytest.raises(RepoError, match=complaint):
        worktree.commit(paths, subject="Refused")
    assert worktree.head == before
    assert worktree.changed_paths() == changed
    assert git(worktree.top, "diff", "--cached", "--name-only") == ""


def test_a_commit_holds_the_listed_paths_and_nothing_else(worktree: Worktree) -> None:
    write(worktree, "recipe.yaml", "lr: 1\n")
    write(worktree, "lineage/t1/scores.jsonl", "{}\n")
    write(worktree, "lineage/t1/report.html", "<p>\n")
    write(worktree, "not-listed.txt", "x\n")
    (worktree.root / "task.yaml").write_text("changed, not listed\n")
    sha = worktree.commit(
        ["recipe.yaml", Path("lineage")], subject="Raise the rate", body="It won.", trailers={"Trial": "t1"}
    )
    assert sha == worktree.head
    assert files_of(worktree, sha) == [
        "A\tmodels/router/lineage/t1/report.html",
        "A\tmodels/router/lineage/t1/scores.jsonl",
        "A\tmodels/router/recipe.yaml",
    ]
    assert worktree.changed_paths() == ("models/router/task.yaml", "models/router/not-listed.txt")
    assert git(worktree.top, "log", "-1", "--format=%B") == "Raise the rate\n\nIt won.\n\nTrial: t1"


def test_a_file_that_is_gone_is_removed_by_the_commit(worktree: Worktree) -> None:
    path = write(worktree, "entries/a.yaml", "a\n")
    write(worktree, "entries/b.yaml", "b\n")
    worktree.commit(["entries"], subject="Add")
    path.unlink()
    assert files_of(worktree, worktree.commit(["entries"], subject="Remove")) == [
        "D\tmodels/router/entries/a.yaml"
    ]
    (worktree.root / "entries" / "b.yaml").unlink()
    assert files_of(worktree, worktree.commit(["entries/b.yaml"], subject="Remove")) == [
        "D\tmodels/router/entries/b.yaml"
    ]


def test_names_that_git_would_expand_name_themselves_alone(worktree: Worktree) -> None:
    for name in ("*.txt", ":(top)", "-f", "[ab].txt", "a.txt", "ünï code.txt", "#x"):
        write(worktree, name, "x\n")
    sha = worktree.commit(["*.txt", ":(top)", "-f", "[ab].txt", "ünï code.txt", "#x"], subject="Odd names")
    assert len(files_of(worktree, sha)) == 6
    assert worktree.changed_paths() == ("models/router/a.txt",)
    (worktree.root / "*.txt").unlink()
    (worktree.root / "[ab].txt").write_text("changed\n")
    sha = worktree.commit(["*.txt"], subject="Only the odd one goes")
    assert files_of(worktree, sha) == ["D\tmodels/router/*.txt"]


def test_leftovers_of_a_killed_write_are_not_taken_with_their_folder(worktree: Worktree) -> None:
    write(worktree, "lineage/results.tsv", "a\n")
    write(worktree, "lineage/.results.tsv.abc123.tmp", "a")
    sha = worktree.commit(["lineage"], subject="Rows")
    assert files_of(worktree, sha) == ["A\tmodels/router/lineage/results.tsv"]


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/etc/passwd", "below the workspace"),
        ("../../README.md", "below the workspace"),
        ("lineage/../../x", "below the workspace"),
        (".", "below the workspace"),
        ("", "below the workspace"),
        (".git", "nothing in .git"),
        ("x/.GIT/config", "nothing in .GIT"),
        (".bakehouse/journal.jsonl", "nothing in .bakehouse"),
        ("missing.txt", "names nothing"),
        ("a\nb", "cannot be printed"),
        ("a\0b", "cannot be printed"),
    ],
)
def test_a_path_that_is_not_for_committing_is_refused(worktree: Worktree, path: str, complaint: str) -> None:
    write(worktree, "recipe.yaml", "lr: 1\n")
    write(worktree, ".bakehouse/journal.jsonl", "{}\n")
    refused(worktree, ["recipe.yaml", path], complaint)


def test_links_and_pipes_are_refused(worktree: Worktree, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("private\n")
    (worktree.root / "folder").symlink_to(tmp_path / "outside")
    (worktree.root / "file").symlink_to(tmp_path / "outside" / "file")
    (worktree.root / "lineage").mkdir()
    (worktree.root / "lineage" / "link").symlink_to("../task.yaml")
    os.mkfifo(worktree.root / "pipe")
    for path in ("folder", "folder/file", "file", "lineage"):
        refused(worktree, [path], "is a link")
    refused(worktree, ["pipe"], "not a regular file")


def test_no_paths_and_no_change_are_refused(worktree: Worktree) -> None:
    refused(worktree, [], "no paths to commit")
    refused(worktree, ["task.yaml"], "nothing to commit: 1 listed file")
    (worktree.root / "empty").mkdir()
    refused(worktree, ["empty"], "nothing to commit|no paths")


def test_what_the_user_ignores_is_not_forced_in(project: Project, worktree: Worktree) -> None:
    write(worktree, ".gitignore", "*.log\ndata/\n")
    worktree.commit([".gitignore"], subject="Ignore")
    write(worktree, "run.log", "x\n")
    write(worktree, "data/train.jsonl", "{}\n")
    write(worktree, "lineage/run.log", "x\n")
    write(worktree, "lineage/a.txt", "x\n")
    refused(worktree, ["run.log"], "ignored by one of your .gitignore files")
    refused(worktree, ["data/train.jsonl"], "ignored by one of your .gitignore files")
    sha = worktree.commit(["lineage"], subject="A folder stands for what is not ignored")
    assert files_of(worktree, sha) == ["A\tmodels/router/lineage/a.txt"]


def test_a_secret_is_refused_with_its_place_and_masked(worktree: Worktree) -> None:
    write(worktree, "recipe.yaml", f"lr: 1\nnote: {KEY}\n")
    refused(worktree, ["recipe.yaml"], r"models/router/recipe\.yaml:2: GitHub token ghp_… \(44 characters\)")
    write(worktree, "recipe.yaml", "lr: 1\n")
    with pytest.raises(RepoError, match="commit message:1: GitHub token") as caught:
        worktree.commit(["recipe.yaml"], subject=KEY)
    assert KEY not in str(caught.value)
    with pytest.raises(RepoError, match="commit message:3: GitHub token"):
        worktree.commit(["recipe.yaml"], subject="s", body=KEY)
    with pytest.raises(RepoError, match="commit message:3"):
        worktree.commit(["recipe.yaml"], subject="s", trailers={"Planner": KEY})


def test_weights_are_refused_by_their_size(worktree: Worktree) -> None:
    write(worktree, "lineage/adapter.safetensors", b"\0" * 5_000_001)
    refused(worktree, ["lineage"], "5000001 bytes; allowed are 5000000")
    worktree.commit(["lineage"], subject="On purpose", max_bytes=6_000_000)


def test_an_iteration_is_committed_once(worktree: Worktree) -> None:
    trailers = {ITERATION_TRAILER: "i0001", "Trial": "t1"}
    write(worktree, "recipe.yaml", "lr: 1\n")
    first = worktree.commit(["recipe.yaml"], subject="s", trailers=trailers)
    write(worktree, "recipe.yaml", "lr: 2\n")
    assert worktree.commit(["recipe.yaml"], subject="s", trailers=trailers) == first
    second = worktree.commit(["recipe.yaml"], subject="s", trailers={ITERATION_TRAILER: "i00011"})
    assert second != first
    assert worktree.find_commit(ITERATION_TRAILER, "i0001") == first
    assert worktree.find_commit(ITERATION_TRAILER, "i00011") == second
    assert worktree.find_commit(ITERATION_TRAILER, "i000") is None
    assert worktree.find_commit("Trial", "t1") == first


def test_another_iteration_of_the_same_name_is_refused_and_not_taken_for_this_one(
    worktree: Worktree,
) -> None:
    write(worktree, "recipe.yaml", "lr: 1\n")
    first = {ITERATION_TRAILER: "i0001", "Trial": "t1", "Cost": "4 s"}
    worktree.commit(["recipe.yaml"], subject="s", trailers=first)
    write(worktree, "recipe.yaml", "lr: 2\n")
    with pytest.raises(RepoError, match=r"has another Bakehouse-Iteration i0001.*differs in Trial, Cost"):
        worktree.commit(["recipe.yaml"], subject="s", trailers={**first, "Trial": "t9", "Cost": "5 s"})


def test_a_body_cannot_pretend_that_an_iteration_is_committed(worktree: Worktree) -> None:
    write(worktree, "recipe.yaml", "lr: 1\n")
    forged = f"{ITERATION_TRAILER}: i0002"
    worktree.commit(["recipe.yaml"], subject=forged, body=forged, trailers={ITERATION_TRAILER: "i0001"})
    assert worktree.find_commit(ITERATION_TRAILER, "i0002") is None
    # Even at the end of the message, where git looks for trailers.
    write(worktree, "recipe.yaml", "lr: 2\n")
    worktree.commit(["recipe.yaml"], subject="s", body=forged)
    assert worktree.find_commit(ITERATION_TRAILER, "i0002") is None


def test_trailers_are_found_under_other_settings(project: Project, worktree: Worktree) -> None:
    project.configure("trailer.separators", "=")
    project.configure("log.showSignature", "true")
    write(worktree, "recipe.yaml", "lr: 1\n")
    sha = worktree.commit(["recipe.yaml"], subject="s", trailers={ITERATION_TRAILER: "i0001"})
    assert worktree.find_commit(ITERATION_TRAILER, "i0001") == sha


def test_what_a_killed_commit_left_staged_is_not_committed(worktree: Worktree) -> None:
    write(worktree, "recipe.yaml", "lr: 1\n")
    write(worktree, "other.txt", "x\n")
    git(worktree.top, "add", "--all")
    sha = worktree.commit(["recipe.yaml"], subject="s")
    assert files_of(worktree, sha) == ["A\tmodels/router/recipe.yaml"]


def test_hooks_of_the_user_run_and_can_refuse(project: Project, worktree: Worktree) -> None:
    write(worktree, "recipe.yaml", "lr: 1\n")
    project.hook("pre-commit", "echo 'the linter is not pleased'; exit 3\n")
    refused(worktree, ["recipe.yaml"], "refused.*(?s:.)*the linter is not pleased")
    project.hook("pre-commit", "exit 0\n")
    project.hook("commit-msg", 'echo "Signed-off-by: Ada <ada@example.org>" >> "$1"\n')
    sha = worktree.commit(["recipe.yaml"], subject="s", trailers={ITERATION_TRAILER: "i0001"})
    assert "Signed-off-by: Ada" in worktree.show(sha)
    assert worktree.find_commit(ITERATION_TRAILER, "i0001") == sha


def test_a_hook_that_spoils_the_trailers_is_told_of(
    project: Project, worktree: Worktree, caplog: pytest.LogCaptureFixture
) -> None:
    project.hook("commit-msg", 'printf "\\nA last paragraph.\\n" >> "$1"\n')
    write(worktree, "recipe.yaml", "lr: 1\n")
    worktree.commit(["recipe.yaml"], subject="s", trailers={ITERATION_TRAILER: "i0001"})
    assert "a hook rewrote the message" in caplog.text


def test_a_hook_that_hangs_is_ended(project: Project, worktree: Worktree) -> None:
    write(worktree, "recipe.yaml", "lr: 1\n")
    project.hook("pre-commit", "sleep 600\n")
    started = time.monotonic()
    with pytest.raises(RepoError, match=r"did not complete in 0\.5 secs"):
        worktree.commit(["recipe.yaml"], subject="s", hooks_timeout_s=0.5)
    assert time.monotonic() - started < 60
    project.hook("pre-commit", "exit 0\n")
    worktree.commit(["recipe.yaml"], subject="s")


def test_a_hook_that_hangs_after_the_commit_does_not_undo_it(project: Project, worktree: Worktree) -> None:
    write(worktree, "recipe.yaml", "lr: 1\n")
    project.hook("post-commit", "sleep 600\n")
    assert worktree.commit(["recipe.yaml"], subject="s", hooks_timeout_s=0.5) == worktree.head
    assert worktree.changed_paths() == ()


def test_a_program_that_a_hook_leaves_behind_blocks_no_later_commit(
    project: Project, worktree: Worktree, tmp_path: Path
) -> None:
    project.hook("post-commit", f"sleep 600 >/dev/null 2>&1 & echo $! >> '{tmp_path}/pids'\n")
    try:
        for number in range(2):
            write(worktree, "recipe.yaml", f"lr: {number}\n")
            worktree.commit(["recipe.yaml"], subject="s")
    finally:
        for pid in (tmp_path / "pids").read_text().split():
            os.kill(int(pid), 9)


def test_signing_of_the_user_applies_and_can_refuse(
    project: Project, worktree: Worktree, tmp_path: Path
) -> None:
    signer = tmp_path / "signer"
    signer.write_text("#!/bin/sh\ncat > /dev/null\necho '[GNUPG:] SIG_CREATED ' >&2\necho signature of Ada\n")
    signer.chmod(0o755)
    project.configure("gpg.program", str(signer))
    project.configure("commit.gpgSign", "true")
    write(worktree, "recipe.yaml", "lr: 1\n")
    sha = worktree.commit(["recipe.yaml"], subject="s", trailers={ITERATION_TRAILER: "i0001"})
    assert "gpgsig signature of Ada" in git(worktree.top, "cat-file", "commit", sha)
    assert worktree.find_commit(ITERATION_TRAILER, "i0001") == sha
    signer.write_text("#!/bin/sh\ncat > /dev/null\nexit 2\n")
    write(worktree, "recipe.yaml", "lr: 2\n")
    refused(worktree, ["recipe.yaml"], "failed to sign")


def author(worktree: Worktree) -> str:
    return git(worktree.top, "log", "-1", "--format=%an <%ae> %cn <%ce>")


def test_the_users_identity_is_used(worktree: Worktree) -> None:
    write(worktree, "recipe.yaml", "lr: 1\n")
    worktree.commit(["recipe.yaml"], subject="s")
    assert author(worktree) == "Ada <ada@example.org> Ada <ada@example.org>"


def test_a_missing_identity_is_stood_in_for_and_said(
    project: Project, worktree: Worktree, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.git("config", "--remove-section", "user")
    before = project.fingerprint()
    write(worktree, "recipe.yaml", "lr: 1\n")
    with caplog.at_level(logging.WARNING):
        worktree.commit(["recipe.yaml"], subject="s")
    stand_in = "bakehouse <bakehouse@localhost>"
    assert author(worktree) == f"{stand_in} {stand_in}"
    assert "no user.name" in caplog.text
    assert project.fingerprint() == before
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Bo")
    monkeypatch.setenv("GIT_AUTHOR_EMAIL", "bo@example.org")
    write(worktree, "recipe.yaml", "lr: 2\n")
    worktree.commit(["recipe.yaml"], subject="s")
    assert author(worktree) == f"Bo <bo@example.org> {stand_in}"


def test_a_worktree_that_was_switched_by_hand_is_refused(worktree: Worktree) -> None:
    write(worktree, "recipe.yaml", "lr: 1\n")
    git(worktree.top, "checkout", "--quiet", "--detach")
    with pytest.raises(RepoError, match="is on HEAD, not on bakeoff/router"):
        worktree.commit(["recipe.yaml"], subject="s")
