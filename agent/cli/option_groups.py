"""Groups of options that several commands take alike: a dataclass in a command's signature is spread."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from agent.teachers.meter import Caps
    from agent.teachers.teacher import Teacher

__all__ = ["TeacherOptions", "spread_groups"]


@dataclass(frozen=True)
class TeacherOptions:
    """Which teacher is asked, and what that may take."""

    teacher: Annotated[
        str, typer.Option("--teacher", help="claude, or openai for any server with /chat/completions.")
    ] = "claude"
    model: Annotated[str, typer.Option(help="The teacher's model, as its endpoint calls it.")] = ""
    base_url: Annotated[
        str | None, typer.Option(help="Address of the endpoint, such as http://localhost:8000/v1.")
    ] = None
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", help="Environment variable that holds the key.")
    ] = None
    timeout_s: Annotated[float, typer.Option("--timeout-s", min=1, help="Seconds for one reply.")] = 600.0
    max_calls: Annotated[int, typer.Option(min=1, help="Calls that the job may make.")] = 200
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens that the job may take, read and written.")
    ] = 2_000_000

    def open(self) -> Teacher:
        """Return the teacher, ready to be asked."""
        from agent.teachers.registry import TeacherChoice, open_teacher

        return open_teacher(
            TeacherChoice(self.teacher, self.model, self.base_url, self.api_key_env, self.timeout_s)
        )

    @property
    def caps(self) -> Caps:
        """What the job may spend."""
        from agent.teachers.meter import Caps

        return Caps(self.max_calls, self.max_tokens)


def spread_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that takes the options of its groups one by one, as typer needs them.

    What an option is unless it is given comes from the default of the group in the signature.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if isinstance(hint, type) and is_dataclass(hint):
            groups[parameter.name] = hint
            parameters += _options_of(hint, parameter.default)
        else:
            parameters.append(parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))

    def run(**given: Any) -> None:
        # All are taken out before any is put in: a group may have the name of one of its options.
        made = {
            name: group(**{option.name: given.pop(option.name) for option in fields(group)})
            for name, group in groups.items()
        }
        command(**given, **made)

    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _options_of(group: type[Any], defaults: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(
            option.name, kind, default=getattr(defaults, option.name), annotation=hints[option.name]
        )
        for option in fields(group)
    ]
