"""Values on a page stay text; `test_card.py` puts hostile ones on a whole card."""

from __future__ import annotations

import pytest
from markdown_it import MarkdownIt

from finetune.card.markdown import bullets, code, fence, link, prose, table, text

NASTY = [
    "<b>x</b>",
    "[a](b)",
    "*a* _b_",
    "`",
    "a``b",
    "`a",
    "a`",
    "# a",
    "1. a",
    "- a",
    "+ a",
    "a|b",
    "\\",
    "\\`",
    "&amp;",
    "~~a~~",
]


def rendered(markdown: str) -> str:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown)


def visible(markdown: str) -> str:
    """The text a reader sees, tags and the joiner that keeps addresses from becoming links left out."""
    import html
    import re

    return html.unescape(re.sub(r"<[^>]*>", "", rendered(markdown))).replace("\u2060", "").strip()


@pytest.mark.parametrize("value", NASTY)
def test_text_shows_the_value_itself(value: str):
    assert visible(text(value)) == value
    assert rendered(text(value)).startswith("<p>")
    assert rendered(text(value)).count("<") == 2


@pytest.mark.parametrize("value", NASTY)
def test_code_shows_the_value_itself(value: str):
    assert visible(code(value)) == value


@pytest.mark.parametrize("value", NASTY)
def test_cells_hold_any_value(value: str):
    page = rendered(table(["a", "b"], [[code(value), "1"], [text(value), "2"]], right=[1]))
    assert page.count("<tr>") == 3
    assert page.count("<td") == 4
    assert page.count('style="text-align:right"') == 3


@pytest.mark.parametrize(
    "value", ["https://evil.example", "HTTP://evil.example", "www.evil.example", "WWW.evil.example"]
)
def test_addresses_do_not_match_what_autolinks_look_for(value: str):
    assert value not in text(value)
    assert visible(text(value)) == value


def test_lines_and_control_characters_become_spaces():
    assert text(" a\r\n\tb\x00c\u2028d ") == "a b c d"
    assert text("abc\u202edef\u2066") == "abcdef"
    assert text("a\ud800b") == "a b"


def test_long_values_are_cut():
    assert len(text("x" * 10_000)) == 160
    assert text("x" * 161).endswith("…")
    assert text("x" * 160) == "x" * 160


def test_prose_shows_code_and_nothing_else():
    page = rendered(prose("Set `top_k=None` *now*, see <b> and `<i>` or ` alone"))
    assert page == ("<p>Set <code>top_k=None</code> *now*, see &lt;b&gt; and <code>&lt;i&gt;</code> or ` alone</p>\n")


@pytest.mark.parametrize("value", ["```", "````\n```", "a\n```python\nb", "~~~", "<script>"])
def test_fence_is_one_block(value: str):
    [block] = [token for token in MarkdownIt().parse(fence(value, "yaml")) if token.nesting >= 0]
    assert (block.type, block.content, block.info) == ("fence", f"{value}\n", "yaml")


def test_fence_drops_control_characters_and_keeps_lines():
    assert fence("a\x1b[31m\n\tb\u202e") == "```\na[31m\n\tb\n```"


def test_link_takes_only_addresses_that_are_safe():
    assert link("`a`", "https://huggingface.co/a/b") == "[`a`](https://huggingface.co/a/b)"
    for address in ("javascript:alert(1)", "https://x.example/) evil", "http://x.example", 'https://x/"onclick'):
        with pytest.raises(AssertionError):
            link("a", address)


def test_bullets_and_empty_code():
    assert bullets(["a", "b"]) == "- a\n- b"
    assert code("") == "(empty)"
