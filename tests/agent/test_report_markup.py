from __future__ import annotations

import html
from html.parser import HTMLParser

from hypothesis import given, strategies as st

from agent.report.markup import Markup, element, escape, join
from agent.report.text_diff import MAX_CHARS, clip, mark_differences


def text_of(markup: str) -> str:
    """What a reader sees, and proof that there is no element but `mark` in it."""
    seen: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag == "mark"

        def handle_data(self, data: str) -> None:
            seen.append(data)

    reader = Reader()
    reader.feed(markup)
    reader.close()
    return "".join(seen)


@given(st.text(st.characters(codec=None)))
def test_any_text_becomes_markup_that_shows_it_and_can_be_written(text: str) -> None:
    found = escape(text)
    found.encode("utf-8")
    assert not set("<>\"'") & set(found)
    plain = text.isascii() and text.isprintable()
    if plain:
        assert html.unescape(found) == text


def test_texts_are_escaped_and_markup_is_not_escaped_twice() -> None:
    inner = element("b", "1 < 2")
    assert inner == "<b>1 &lt; 2</b>"
    assert element("p", "a & ", inner, [None, "c", 4]) == "<p>a &amp; <b>1 &lt; 2</b>c4</p>"
    assert isinstance(join("a", inner), Markup)


def test_adding_a_text_to_markup_gives_a_text_that_is_escaped_again() -> None:
    assert element("p", element("b", "x") + "<i>") == "<p>&lt;b&gt;x&lt;/b&gt;&lt;i&gt;</p>"


def test_attributes_are_escaped_and_named_as_in_markup() -> None:
    found = element("td", class_="a", data_label='"><script>', x=1.5, y=2.0, hidden=None)
    assert found == '<td class="a" data-label="&quot;&gt;&lt;script&gt;" x="1.5" y="2"></td>'


def test_what_would_turn_or_hide_a_text_is_made_visible() -> None:
    assert escape("a\u202eb\x00c\ud800d\u200b") == "a\\u202eb\\u0000c\\ud800d\\u200b"
    # Joiners make letters and families; a line break is laid out.
    assert (
        escape("\u0645\u06cc\u200c\u062e \U0001f469\u200d\U0001f467\n\t")
        == "\u0645\u06cc\u200c\u062e \U0001f469\u200d\U0001f467\n\t"
    )


def test_only_what_differs_is_marked() -> None:
    left, right = mark_differences('{"cmd": "land", "n": 4}', '{"cmd": "hover", "n": 4}')
    assert left == "{&quot;cmd&quot;: &quot;<mark>land</mark>&quot;, &quot;n&quot;: 4}"
    assert right == "{&quot;cmd&quot;: &quot;<mark>hover</mark>&quot;, &quot;n&quot;: 4}"


def test_texts_with_little_in_common_are_not_marked() -> None:
    left, right = mark_differences('{"cmd": "land"}', "I would be happy to help you with that today!")
    assert "<mark>" not in left + right


@given(st.text(), st.text())
def test_marking_differences_keeps_every_character(expected: str, answered: str) -> None:
    left, right = mark_differences(expected, answered)
    assert text_of(left) == html.unescape(escape(clip(expected)))
    assert text_of(right) == html.unescape(escape(clip(answered)))


def test_a_long_text_is_cut_with_a_count_of_the_rest() -> None:
    assert clip("x" * MAX_CHARS) == "x" * MAX_CHARS
    assert clip("x" * (MAX_CHARS + 7)) == "x" * MAX_CHARS + " … (7 more characters)"
