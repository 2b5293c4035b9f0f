"""The teachers by name: where each is, and whether it can be asked at all."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Final, Literal, get_args

from agent.teachers.endpoints import ClaudeTeacher, OpenAITeacher
from agent.teachers.teacher import Teacher
from tools.errors import MissingExtraError, TeacherError
from tools.evaluation.chat_clients import AnthropicClient, OpenAICompatibleClient
from tools.task import TeacherSettings

__all__ = ["TEACHERS", "TeacherChoice", "choice_of", "open_teacher"]

TeacherKind = Literal["claude", "openai"]
TEACHERS: Final[tuple[str, ...]] = get_args(TeacherKind)
_CLAUDE_KEY: Final = "ANTHROPIC_API_KEY"
_OPENAI_KEY: Final = "OPENAI_API_KEY"
_NAMED_ADDRESS: Final = {"claude": "ANTHROPIC_BASE_URL", "openai": "OPENAI_BASE_URL"}


@dataclass(frozen=True)
class TeacherChoice:
    """Which teacher a person chose. A key is named by its environment variable, never held."""

    kind: str
    model: str
    base_url: str | None = None
    api_key_env: str | None = None
    timeout_s: float = 600.0


def open_teacher(choice: TeacherChoice) -> Teacher:
    """Return a teacher that can be asked: its address, key and package are there.

    Raises:
        TeacherError: the kind is unknown, or the model, the address or the key is missing.
        EvaluationError: the address is no plain http(s) one.
        MissingExtraError: the package that asks Claude is not installed.
    """
    if choice.kind not in TEACHERS:
        raise TeacherError(f"teacher is {choice.kind!r}; allowed: {list(TEACHERS)}")
    if not choice.model.strip():
        raise TeacherError("no model of the teacher is named; give one with --model")
    return _open_claude(choice) if choice.kind == "claude" else _open_openai(choice)


def choice_of(settings: TeacherSettings) -> TeacherChoice:
    """Return the teacher that a task names. Keys go where the environment says, never where a file does.

    Raises:
        TeacherError: Claude is asked for at an address that the environment does not name.
    """
    kind, url = settings.kind, settings.base_url
    named = os.environ.get(_NAMED_ADDRESS[kind], "").strip().rstrip("/")
    is_named = url is not None and url.rstrip("/") == named
    if kind == "claude":
        if url is not None and not is_named:
            raise TeacherError(
                f"bakeoff.teacher.base_url is {url}, and your key would be sent there; name the same address "
                f"in {_NAMED_ADDRESS[kind]} if you trust it, or use kind openai, which sends no key"
            )
        return TeacherChoice(kind, settings.model or "", url)
    return TeacherChoice(kind, settings.model or "", url, _OPENAI_KEY if is_named else None)


def _open_openai(choice: TeacherChoice) -> Teacher:
    if choice.base_url is None:
        raise TeacherError(
            "teacher `openai` needs an address up to and with its version; give --base-url, "
            "for example http://localhost:8000/v1"
        )
    if choice.api_key_env is not None:
        _check_key(choice.api_key_env)
    client = OpenAICompatibleClient(
        choice.base_url, choice.model, choice.api_key_env, timeout_s=choice.timeout_s, max_attempts=1
    )
    return OpenAITeacher(client)


def _open_claude(choice: TeacherChoice) -> Teacher:
    if importlib.util.find_spec("anthropic") is None:
        raise MissingExtraError(
            "teacher `claude` needs the package anthropic, not installed here; "
            "install the extra: pip install 'bakehouse[anthropic]'"
        )
    key = choice.api_key_env or _CLAUDE_KEY
    _check_key(key)
    client = AnthropicClient(choice.model, key, choice.base_url, timeout_s=choice.timeout_s, max_attempts=1)
    return ClaudeTeacher(client)


def _check_key(variable: str) -> None:
    # Known before the first question: a job that cannot be paid for should not start.
    if not os.environ.get(variable, "").strip():
        raise TeacherError(
            f"the environment variable {variable} is not set; it must hold the teacher's key, "
            "or name another one with --api-key-env"
        )
