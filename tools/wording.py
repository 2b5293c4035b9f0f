"""A text reduced to its words, so that two ways of writing the same thing compare equal."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Final

__all__ = ["fold_words", "squeeze_words"]

# Scripts written without spaces: each character counts as a word.
_UNSPACED: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_PICTURES: Final = "\U0001f000-\U0001faff"
# Soft hyphens, joiners and marks of direction: nothing that a reader sees.
_INVISIBLE: Final = dict.fromkeys(
    (0xAD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), 0x2060, 0xFE0F, 0xFEFF)
)
# A sign or a decimal point belongs to its number: 4.1 is not 41, and -5 is not 5, but 3-5 is a range.
_NUMBER: Final = r"(?:(?<![\w.)])-)?\d+(?:\.\d+)*"
_ASCII_WORD: Final = re.compile(_NUMBER + r"|[a-z]+|[$+<=>|~]")


def fold_words(text: str) -> tuple[str, ...]:
    """Return the words and numbers of a text: NFKC, case folded, punctuation and spaces gone.

    Symbols other than punctuation (currency, arrows, pictures) count as words, since they may
    be all that tells two texts apart.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Folding can undo the normal form; a second pass settles it.
    folded = unicodedata.normalize("NFKC", folded)
    if folded.isascii():
        return tuple(_ASCII_WORD.findall(folded))
    return tuple(_any_word().findall(folded.translate(_INVISIBLE).replace("\u2212", "-")))


def squeeze_words(words: tuple[str, ...]) -> str:
    """Return the words as one string in which only numbers keep their borders: `take off` is `takeoff`."""
    return "".join(f"|{word}|" if word[-1].isdigit() else word for word in words)


@lru_cache(maxsize=1)
def _any_word() -> re.Pattern[str]:
    marks, symbols = [], []
    for code in range(0x80, 0x10000):
        category = unicodedata.category(chr(code))
        if category[0] == "M":
            marks.append(chr(code))
        elif category in ("Sc", "Sm", "So"):
            symbols.append(chr(code))
    letters = rf"(?:(?![{_UNSPACED}])[^\W\d_]|[{''.join(marks)}])+"
    return re.compile(rf"{_NUMBER}|[{_UNSPACED}]|{letters}|[$+<=>|~{_PICTURES}{''.join(symbols)}]")
