"""A chat template's habits, found by rendering small conversations and looking at what came out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from tools.errors import ChatError

__all__ = ["TemplateTraits", "generated_ranges", "template_errors", "template_traits"]

_SYSTEM: Final = "zqsystem"
_FIRST: Final = "zqfirst"
_ANSWER: Final = "zqanswer"
_SECOND: Final = "zqsecond"
_THIRD: Final = "zqthird"
_DATE: Final = "zqdate"
_MARKER: Final = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
# A macro of this name hides the function that templates read the clock with.
_CLOCK_MACRO: Final = "{% macro strftime_now(format) %}" + _DATE + "{% endmacro %}"


@dataclass(frozen=True)
class TemplateTraits:
    """What a conversation must look like for a template to render all of it, and where it stands."""

    folds_system: bool
    """A leading system turn is refused, lost, or moved behind later turns: it belongs in a user turn."""
    merges_turns: bool
    """Two turns of one role in a row are refused or lost."""
    takes_late_system: bool
    """A system turn in the middle of a conversation is rendered in its place."""
    marks_answers: bool
    """Assistant text stands between `{% generation %}` marks."""
    dated: bool
    """Today's date is written into the prompt."""


@lru_cache(maxsize=64)
def template_traits(template: str) -> TemplateTraits:
    """Probe a template, once per text.

    Raises:
        ChatError: it cannot render even one question and its answer.
    """
    plain = (("user", _FIRST), ("assistant", _ANSWER), ("user", _SECOND))
    if not _keeps(template, plain):
        raise ChatError(
            "the chat template does not render a user turn, an answer and a user turn with all their text; "
            "use the template of an instruct model whose turns hold plain text"
        )
    system = ("system", _SYSTEM)
    return TemplateTraits(
        folds_system=not _keeps(template, (system, *plain)),
        merges_turns=not (
            _keeps(template, (("user", _FIRST), ("user", _SECOND), ("assistant", _ANSWER), ("user", _THIRD)))
            and _keeps(template, (("user", _FIRST), ("assistant", _ANSWER), ("assistant", _SECOND)))
        ),
        takes_late_system=_keeps(template, (*plain[:2], system, plain[2])),
        marks_answers=_MARKER.search(template) is not None,
        dated=any(
            _DATE in (_render(_CLOCK_MACRO + template, turns) or "") for turns in (plain, (system, *plain))
        ),
    )


def generated_ranges(
    template: str, messages: Sequence[Mapping[str, str]], special_tokens: Mapping[str, str]
) -> tuple[tuple[int, int], ...]:
    """Return where text between generation marks starts and ends, in characters of the rendered text."""
    from transformers.utils.chat_template_utils import render_jinja_template

    _, ranges = render_jinja_template(
        conversations=[list(messages)],
        chat_template=template,
        return_assistant_tokens_mask=True,
        **special_tokens,
    )
    return tuple((int(start), int(end)) for start, end in ranges[0])


def template_errors() -> tuple[type[Exception], ...]:
    """Return what a template can raise while it renders: its own refusals, and its mistakes."""
    from jinja2.exceptions import TemplateError

    return (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError, RecursionError)


def _keeps(template: str, turns: Sequence[tuple[str, str]]) -> bool:
    """Whether every turn's text comes out, in the order in which it went in."""
    text = _render(template, turns)
    if text is None:
        return False
    places = [text.find(content) for _, content in turns]
    return min(places) >= 0 and places == sorted(places)


def _render(template: str, turns: Sequence[tuple[str, str]]) -> str | None:
    from transformers.utils.chat_template_utils import render_jinja_template

    conversation: list[Mapping[str, str]] = [{"role": role, "content": content} for role, content in turns]
    try:
        rendered, _ = render_jinja_template(
            conversations=[conversation],
            chat_template=template,
            bos_token="<s>",
            eos_token="</s>",
            pad_token="<pad>",
            unk_token="<unk>",
        )
    except template_errors():
        return None
    return str(rendered[0])
