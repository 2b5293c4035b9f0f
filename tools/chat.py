"""A conversation as tokens: what is trained is what is served, and only the answers are learned.

Both sides go through `normalize_for_template` and the tokenizer's own chat template. `render`
refuses a conversation where the served prompt would not be, token for token, the beginning of
what is trained on.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from tools.errors import ChatError
from tools.rows import Message
from tools.template import template_traits
from tools.tokens import (
    AnswerEnding,
    answer_ending,
    conversation_text,
    decode,
    encode,
    marked_tokens,
    stop_token_ids,
)

__all__ = [
    "Rendered",
    "Span",
    "mask_spans",
    "normalize_for_template",
    "render",
    "render_prompt",
    "stop_token_ids",
]

_JOINT: Final = "\n\n"


@dataclass(frozen=True)
class Rendered:
    """A conversation as a model sees it in training."""

    input_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    """True where the token is learned: an answer's text and the token that ends its turn."""
    text: str


@dataclass(frozen=True)
class Span:
    """A stretch of rendered text that is learned, or is not."""

    text: str
    supervised: bool


def normalize_for_template(
    messages: Sequence[Message], *, template: str | None, system_prompt: str | None = None
) -> tuple[Message, ...]:
    """Return the turns in the one shape that is both trained on and served.

    The system prompt is put before a conversation that has no system turn. Where the template
    has no place for a leading system turn, its text goes to the head of the first user turn;
    where turns must alternate, neighbours of one role are joined by an empty line.

    Args:
        messages: The turns as the row has them.
        template: The text of the chat template; None changes nothing but the system prompt.
        system_prompt: Empty or blank text adds nothing.
    Raises:
        ChatError: a system turn in the middle, where the template would lose it.
    """
    turns = list(messages)
    if system_prompt and system_prompt.strip() and all(turn.role != "system" for turn in turns):
        turns.insert(0, Message("system", system_prompt))
    if template is None:
        return tuple(turns)
    traits = template_traits(template)
    if traits.folds_system:
        turns = _fold_system(turns)
    if traits.merges_turns:
        turns = _merge_turns(turns)
    late = any(turn.role == "system" for turn in turns[1:])
    if late and not traits.takes_late_system:
        raise ChatError(
            "a system turn stands in the middle of a conversation, where this chat template loses or refuses "
            "it; put its text first, or into a user turn"
        )
    return tuple(turns)


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    system_prompt: str | None = None,
    turns: Literal["all", "last"] = "all",
) -> Rendered:
    """Return the tokens of a whole conversation and which of them are learned.

    Args:
        tokenizer: A transformers tokenizer with a chat template.
        messages: Turns of which the last is the assistant's.
        system_prompt: Put before a conversation without a system turn.
        turns: Learn every answer, or the last alone: for templates that rewrite an earlier
            answer, such as those that drop its reasoning.
    Raises:
        ChatError: the template refuses the conversation, or what would be trained is not what
            would be served; the message says which turn and what to do.
    """
    ending = answer_ending(tokenizer)
    conversation = normalize_for_template(messages, template=ending.template, system_prompt=system_prompt)
    _check_answered(messages, conversation, ending.template, system_prompt)
    _check_control_texts(conversation, ending)
    text = conversation_text(tokenizer, conversation)
    ids = encode(tokenizer, text)
    answers = [index for index, turn in enumerate(conversation) if turn.role == "assistant"]
    spans = [
        _answer_span(tokenizer, conversation, index, ids, ending)
        for index in (answers if turns == "all" else answers[-1:])
    ]
    mask = [any(start <= position < end for start, end in spans) for position in range(len(ids))]
    if template_traits(ending.template).marks_answers:
        mask = _within_marks(mask, spans, marked_tokens(tokenizer, conversation, text))
    return Rendered(ids, tuple(mask), text)


def render_prompt(
    tokenizer: Any, messages: Sequence[Message], *, system_prompt: str | None = None
) -> tuple[int, ...]:
    """Return the tokens that a model is served, up to where its answer begins.

    They are the exact beginning of what `render` gives for the same turns with an answer.

    Raises:
        ChatError: the template refuses the turns, or no question is left to answer.
    """
    ending = answer_ending(tokenizer)
    conversation = normalize_for_template(messages, template=ending.template, system_prompt=system_prompt)
    if not conversation:
        raise ChatError("there is no turn to answer; a prompt needs at least one user turn")
    _check_control_texts(conversation, ending)
    return encode(tokenizer, conversation_text(tokenizer, conversation, prompt=True))


def mask_spans(tokenizer: Any, rendered: Rendered) -> tuple[Span, ...]:
    """Return the rendered text cut where the mask changes.

    The texts join to the decoded whole. A character whose bytes lie on both sides of a cut
    belongs to the later span.
    """
    whole = decode(tokenizer, rendered.input_ids)
    spans: list[Span] = []
    end = position = 0
    for supervised, group in itertools.groupby(rendered.loss_mask):
        position += len(list(group))
        start, end = end, max(end, _cut(tokenizer, rendered.input_ids[:position], whole))
        if position == len(rendered.input_ids):
            end = len(whole)
        spans.append(Span(whole[start:end], supervised))
    return tuple(spans)


def _fold_system(turns: list[Message]) -> list[Message]:
    leading = list(itertools.takewhile(lambda turn: turn.role == "system", turns))
    if not leading:
        return turns
    text = _JOINT.join(turn.content for turn in leading)
    rest = turns[len(leading) :]
    if rest and rest[0].role == "user":
        return [Message("user", text + _JOINT + rest[0].content), *rest[1:]]
    return [Message("user", text), *rest]


def _merge_turns(turns: list[Message]) -> list[Message]:
    return [
        Message(role, _JOINT.join(turn.content for turn in group))
        for role, group in itertools.groupby(turns, key=lambda turn: turn.role)
    ]


def _check_answered(
    messages: Sequence[Message], conversation: tuple[Message, ...], template: str, system_prompt: str | None
) -> None:
    if len(conversation) < 2 or conversation[-1].role != "assistant":
        roles = [turn.role for turn in messages]
        raise ChatError(
            f"the turns are {roles}; a question and then the assistant's answer are needed to learn from"
        )
    asked = normalize_for_template(messages[:-1], template=template, system_prompt=system_prompt)
    if asked != conversation[:-1]:
        raise ChatError(
            "the last two turns are both the assistant's, and this chat template joins them, so that nothing "
            "asks for the last answer alone; join them in the row"
        )


def _check_control_texts(conversation: tuple[Message, ...], ending: AnswerEnding) -> None:
    for index, turn in enumerate(conversation):
        for control in ending.control_texts:
            if control in turn.content:
                raise ChatError(
                    f"turn {index} ({turn.role}) holds the control token {control!r} as text, which would "
                    "end or open a turn; give the text of the turns alone, not a rendered conversation"
                )


def _answer_span(
    tokenizer: Any, conversation: tuple[Message, ...], index: int, ids: tuple[int, ...], ending: AnswerEnding
) -> tuple[int, int]:
    """Return where the answer of one turn begins and where its end-of-turn token is behind it."""
    asked_text = conversation_text(tokenizer, conversation[:index], prompt=True)
    asked = encode(tokenizer, asked_text)
    through_text = conversation_text(tokenizer, conversation[: index + 1])
    last = index == len(conversation) - 1
    through = ids if last else encode(tokenizer, through_text)
    answer = conversation[index].content
    if through[: len(asked)] != asked:
        raise _prefix_error(index, answer, asked_text, through_text)
    if _squeeze(answer) not in _squeeze(through_text[len(asked_text) :]):
        raise ChatError(
            f"the chat template changes the text of turn {index}: {answer[:60]!r} does not come out whole; "
            "use a template that renders an answer as it is"
        )
    if through[-len(ending.closer) :] != ending.closer:
        raise ChatError(
            f"turn {index} does not end with the tokens that end other answers; use a template "
            "that ends all alike"
        )
    end = len(through) - len(ending.closer) + 1
    if ids[:end] != through[:end]:
        raise ChatError(
            f"the chat template rewrites turn {index} once later turns follow (reasoning that it drops, for "
            "instance), so what is trained there is not what is served; learn the last answer alone with "
            "turns='last', or use a template that keeps earlier answers as they were"
        )
    return len(asked), end


def _prefix_error(index: int, answer: str, asked: str, through: str) -> ChatError:
    if through.startswith(asked):
        return ChatError(
            f"the answer of turn {index} begins with {answer[:12]!r}, which the tokenizer joins with the end "
            "of the prompt into one token that is never served; let the answer begin with other characters"
        )
    return ChatError(
        f"the chat template renders the turns before turn {index} in another way once it is answered, so "
        "what is trained is not what is served; use a template whose prompt begins the whole conversation"
    )


def _within_marks(mask: list[bool], spans: list[tuple[int, int]], marked: tuple[bool, ...]) -> list[bool]:
    """Narrow the mask to what the template marks, keeping the end of every marked answer."""
    narrowed = [inside and flag for inside, flag in zip(mask, marked, strict=True)]
    if not any(narrowed):
        raise ChatError("the chat template marks no part of the answer as generated; correct its marks")
    for start, end in spans:
        # Many templates close the mark before this token, and a model that never learns it never stops.
        narrowed[end - 1] = any(narrowed[start:end])
    return narrowed


def _cut(tokenizer: Any, ids: Sequence[int], whole: str) -> int:
    text = decode(tokenizer, ids)
    # Half a character decodes to a replacement sign that the whole does not have.
    while not whole.startswith(text):
        text = text[:-1]
    return len(text)


def _squeeze(text: str) -> str:
    return "".join(text.split())
