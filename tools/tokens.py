"""A conversation through a tokenizer: its text, its tokens, and how an answer ends."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tools.errors import ChatError
from tools.rows import Message
from tools.template import generated_ranges, template_errors, template_traits

__all__ = [
    "AnswerEnding",
    "answer_ending",
    "conversation_text",
    "decode",
    "encode",
    "marked_tokens",
    "stop_token_ids",
]


@dataclass(frozen=True)
class AnswerEnding:
    """How a tokenizer's template closes an answer."""

    template: str
    closer: tuple[int, ...]
    """The token that ends the turn, then whatever the template adds behind it."""
    control_texts: tuple[str, ...]
    """The control tokens that shape a conversation, as text."""


# A tokenizer is asked once how its answers end; the entry goes when the tokenizer does.
_endings: weakref.WeakKeyDictionary[Any, AnswerEnding] = weakref.WeakKeyDictionary()


def answer_ending(tokenizer: Any) -> AnswerEnding:
    """Return how the tokenizer's template ends an answer, asked once for each tokenizer.

    Raises:
        ChatError: no chat template, one that writes today's date, or one whose answers do not end.
    """
    template = _template(tokenizer)
    known = _endings.get(tokenizer)
    if known is None or known.template != template:
        known = _probe_ending(tokenizer, template)
        _endings[tokenizer] = known
    return known


def _template(tokenizer: Any) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as err:
        raise ChatError(
            "the tokenizer has no chat template, so nothing says how a conversation is served; use an "
            "instruct model, or put its chat_template.jinja beside the tokenizer"
        ) from err


def _probe_ending(tokenizer: Any, template: str) -> AnswerEnding:
    if template_traits(template).dated:
        raise ChatError(
            "the chat template writes today's date into the prompt, so what is trained today is not what is "
            "served tomorrow; put a fixed text in the place of strftime_now and save the tokenizer"
        )
    turns = (Message("user", "u"), Message("assistant", "x"))
    asked = encode(tokenizer, conversation_text(tokenizer, turns[:1], prompt=True))
    through = encode(tokenizer, conversation_text(tokenizer, turns))
    specials = _special_ids(tokenizer)
    # Not the whole of asked: a template for reasoning may open the think block in the prompt alone.
    pairs = zip(asked, through, strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    start = len(through)
    while start > shared and _closes(tokenizer, through[start - 1], specials):
        start -= 1
    closer = tuple(itertools.dropwhile(lambda token: token not in specials, through[start:]))
    if not closer:
        raise ChatError(
            "the chat template ends an answer without an end-of-turn token, so a model could not learn to "
            "stop; put the tokenizer's end-of-sequence token behind the assistant's content in the template"
        )
    controls = sorted({*asked, *through} & specials)
    return AnswerEnding(
        template, closer, tuple(str(tokenizer.convert_ids_to_tokens(token)) for token in controls)
    )


def stop_token_ids(tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that end an answer: the one that `render` teaches, then the tokenizer's own."""
    found = (answer_ending(tokenizer).closer[0], tokenizer.eos_token_id)
    return tuple(dict.fromkeys(token for token in found if token is not None))


def conversation_text(tokenizer: Any, conversation: Sequence[Message], *, prompt: bool = False) -> str:
    """Return what the chat template writes; with prompt, up to where the next answer begins.

    Raises:
        ChatError: the template refuses the conversation.
    """
    try:
        return str(
            tokenizer.apply_chat_template(_plain(conversation), tokenize=False, add_generation_prompt=prompt)
        )
    except template_errors() as err:
        roles = [turn.role for turn in conversation]
        raise ChatError(f"the chat template refuses the turns {roles}: {err}") from err


def _plain(conversation: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in conversation]


def encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Return the tokens of a rendered text, whose special tokens the template has already written."""
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of tokens as it is, special tokens and spaces included."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def marked_tokens(tokenizer: Any, conversation: Sequence[Message], text: str) -> tuple[bool, ...]:
    """Return which tokens of text lie between the template's generation marks.

    Worked out from character offsets: the mask that apply_chat_template gives leaves out the
    later bytes of a character that takes more than one token.

    Raises:
        ChatError: the tokenizer keeps no offsets.
    """
    if not tokenizer.is_fast:
        raise ChatError(
            "the chat template has generation marks, which need a fast tokenizer (tokenizer.json)"
        )
    template = answer_ending(tokenizer).template
    ranges = generated_ranges(template, _plain(conversation), tokenizer.special_tokens_map)
    encoded = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    return tuple(
        any(start < high and end > low for low, high in ranges) for start, end in encoded["offset_mapping"]
    )


def _closes(tokenizer: Any, token: int, specials: frozenset[int]) -> bool:
    return token in specials or not decode(tokenizer, (token,)).strip()


def _special_ids(tokenizer: Any) -> frozenset[int]:
    added = (token for token, content in tokenizer.added_tokens_decoder.items() if content.special)
    return frozenset((*tokenizer.all_special_ids, *added))
