"""A workspace and a teacher for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.data_work.desk import good_answer, make_desk
from tests.agent.data_work.teacher_server import TeacherServer
from tools.workspace import Workspace


@pytest.fixture
def server() -> Iterator[TeacherServer]:
    server = TeacherServer(good_answer)
    yield server
    server.close()


@pytest.fixture
def desk(tmp_path: Path) -> Workspace:
    return make_desk(tmp_path / "a workspace")
