"""A small workspace to do data work in, and a teacher that does it well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agent.teachers.registry import TeacherChoice, open_teacher
from agent.teachers.teacher import Teacher
from tests.agent.data_work.teacher_server import Answer, Asked, Says, TeacherServer
from tools.rows import Message, Row
from tools.workspace import Workspace
from tools.yaml_text import dump_yaml

JUDGED_MARK = "walrus"
"""In every judged row and nowhere else, so that a search finds judged text wherever it went."""
TRAIN = [("go to B4", "goto"), ("please land now", "land"), ("climb ten metres", "ascend"), ("stay", "hover")]
JUDGED = {
    "dev": [("the walrus of dev wants to land over there", "land"), ("dev walrus hold", "hover")],
    "selection": [("selection walrus go up a little bit more than before", "ascend")],
    "test": [("test walrus bring it back to where we began today", "rtl")],
}


def pair(user: str, command: str) -> dict[str, Any]:
    answer = json.dumps({"cmd": command})
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]}


def write_rows(path: Path, pairs: list[tuple[str, str]], prefix: str) -> None:
    lines = [json.dumps({"id": f"{prefix}-{i}", **pair(*found)}) for i, found in enumerate(pairs, start=1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def make_desk(root: Path, **task: Any) -> Workspace:
    """Write a workspace; nothing in it needs a model or git."""
    root.mkdir(parents=True, exist_ok=True)
    write_rows(root / "data" / "train.jsonl", TRAIN, "train")
    for split, pairs in JUDGED.items():
        write_rows(root / "data" / f"{split}.jsonl", pairs, split)
    settings = {
        "name": "drone",
        "scorer": {"name": "json_cmd"},
        "forbidden_outputs": ["selfdestruct"],
        **task,
    }
    recipe = {
        "base_model": "tiny",
        "dataset_jsonl": "data/train.jsonl",
        "output_dir": ".bakehouse/runs",
        "system_prompt_file": "system_prompt.md",
    }
    (root / "task.yaml").write_text(dump_yaml(settings), encoding="utf-8")
    (root / "recipe.yaml").write_text(dump_yaml(recipe), encoding="utf-8")
    (root / "mission.md").write_text("Fly safely.\n", encoding="utf-8")
    (root / "BACKGROUND.md").write_text("Commands: goto, land, ascend, hover, rtl.\n", encoding="utf-8")
    (root / "system_prompt.md").write_text("You route commands.\n", encoding="utf-8")
    return Workspace(root)


def train_rows(workspace: Workspace) -> list[dict[str, Any]]:
    text = (workspace.root / "data" / "train.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def new_item(asked: Asked, place: int) -> dict[str, Any]:
    """A row that no other request makes."""
    words = f"fly number {asked.number} of round {place}, quickly"
    return {"user": words, "assistant": {"cmd": "goto", "args": {"n": asked.number * 1000 + place}}}


def good_items(asked: Asked) -> list[dict[str, Any]]:
    return [new_item(asked, place) for place in range(asked.count)]


def good_answer(asked: Asked) -> Says:
    return Says(json.dumps(good_items(asked)))


def items(*found: Any) -> Answer:
    """A teacher that always says the same."""
    return lambda _: Says(json.dumps(list(found)))


def ask_teacher(server: TeacherServer, **options: Any) -> Teacher:
    choice = {"kind": "openai", "model": "tiny-teacher", "base_url": f"{server.url}/v1", "timeout_s": 5.0}
    return open_teacher(TeacherChoice(**{**choice, **options}))


def row(user: str, assistant: str, row_id: str = "r") -> Row:
    return Row(row_id, (Message("user", user), Message("assistant", assistant)))
