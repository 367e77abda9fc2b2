"""Blocks as rows: what they look like, that they fit, and that streaming ends where drawing at once does."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from nanochat.ui.block import Block
from nanochat.ui.block_stack import BlockStack
from nanochat.ui.code_view import CodeView
from nanochat.ui.conversation import TranscriptMessage
from nanochat.ui.highlighting import Highlighter, find_lexer
from nanochat.ui.inline import InlineParser, complete, is_web_address
from nanochat.ui.markdown import MarkdownRenderer
from nanochat.ui.message_view import MessageView
from nanochat.ui.rows import Row, Run
from nanochat.ui.wrapping import cut_runs, wrap

RENDERER = MarkdownRenderer()
PIECES = [
    "word ", "longer-word ", "\n", "\n\n", "# ", "- ", "1. ", "> ", "```", "```python\n", "    ", "\t", "| a | b |\n",
    "|---|--:|\n", "---\n", "**", "*", "`", "~~", "[link](https://example.org/a)", "[", "](", "日本語", "👩‍👧",
    "e\u0301", "\\", "<br>", "&amp;", "$$", "\\(x\\)", "- [x] ", "https://example.org ", "_", "![alt](u)",
]  # fmt: skip
documents = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


def stack(*pieces: str, width: int = 60) -> BlockStack:
    """A text that came in pieces, laid out and drawn after each."""
    blocks = BlockStack(RENDERER)
    for piece in pieces:
        blocks.feed(piece)
        blocks.layout(width)
        while blocks.draw(0, blocks.height):
            pass
    blocks.finish()
    blocks.layout(width)
    while blocks.draw(0, blocks.height):
        pass
    while not blocks.highlight(0, blocks.height):
        pass
    return blocks


def rows(blocks: BlockStack) -> list[Row]:
    return [blocks.row(y) for y in range(blocks.height)]


def plain(rows: Iterable[Row]) -> str:
    return "\n".join(row.text.rstrip() for row in rows)


def drawn(text: str, width: int = 60) -> str:
    return plain(rows(stack(text, width=width)))


def styles(text: str) -> list[tuple[str, str]]:
    return [(run.text, run.style) for row in rows(stack(text)) for run in row.runs]


@settings(max_examples=150)
@given(documents, st.lists(st.integers(0, 300), max_size=12), st.sampled_from([8, 24, 60, 100]))
def test_a_streamed_reply_ends_as_one_drawn_at_once(text: str, cuts: list[int], width: int) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    assert rows(stack(*pieces, width=width)) == rows(stack(text, width=width))


@settings(max_examples=150)
@given(documents, st.integers(8, 90))
def test_no_row_is_wider_than_it_may_be(text: str, width: int) -> None:
    for row in rows(stack(text, width=width)):
        margin = cell_len(row.text[: row.prefix])
        assert row.cells <= max(width, margin + 9), row.text  # deep nesting keeps a least width for its text
        assert "\n" not in row.text
        assert "\t" not in row.text


@settings(max_examples=150)
@given(documents, st.integers(8, 90), st.integers(8, 90))
def test_another_width_and_back_changes_nothing(text: str, width: int, other: int) -> None:
    blocks = stack(text, width=width)
    before = rows(blocks)
    for now in (other, width):
        blocks.layout(now)
        while blocks.draw(0, blocks.height):
            pass
    assert rows(blocks) == before


@settings(max_examples=150)
@given(documents)
def test_estimates_become_exact_when_drawn(text: str) -> None:
    blocks = BlockStack(RENDERER)
    blocks.feed(text)
    blocks.finish()
    blocks.layout(40)
    y = 0
    while y < blocks.height:  # drawn piece by piece, as a reader scrolls
        while blocks.draw(y, y + 5):
            pass
        y += 5
    while not blocks.highlight(0, blocks.height):
        pass
    assert rows(blocks) == rows(stack(text, width=40))


def test_a_document_looks_as_it_should() -> None:
    assert (
        drawn("""\
# Title
Some *text* with `code`.
- one
- two
  1. deep
     > quoted
- [x] done

---
| Name | Value |
|:--|--:|
| a | 1 |
| **b** | 20 |
""")
        == """\
Title

Some text with code.

• one
• two
  1. deep
     ▌ quoted
✓ done

────────────────────────────────────────────────────────────

┌──────┬───────┐
│ Name │ Value │
├──────┼───────┤
│ a    │     1 │
│ b    │    20 │
└──────┴───────┘"""
    )


def test_styles_nest() -> None:
    assert styles("# A *b* `c`")[:3] == [("A ", "h1"), ("b", "h1 em"), (" ", "h1")]
    assert ("x", "strong em") in styles("**bold *x***")
    assert ("gone", "strike") in styles("~~gone~~")


def test_a_table_too_wide_for_the_screen_wraps_its_widest_cells() -> None:
    table = "| a | b |\n|---|---|\n| short | " + "many words " * 8 + "|\n"
    lines = drawn(table, 40).split("\n")
    assert {len(line) for line in lines} == {40}
    assert lines[3].startswith("│ short │ many words")
    assert lines[4].startswith("│       │ words many")


def test_a_table_with_more_columns_than_the_screen_becomes_records() -> None:
    head = "|" + "column|" * 9
    text = drawn(f"{head}\n|{'---|' * 9}\n|{'value|' * 9}\n", 30)
    assert text.count("column: value") == 9


def test_an_open_table_shows_raw_until_it_closes() -> None:
    blocks = BlockStack(RENDERER)
    blocks.feed("| a | b |\n|---|---|\n| c | d")
    blocks.layout(40)
    assert plain(rows(blocks)) == "| a | b |\n|---|---|\n| c | d"
    blocks.feed(" |\n\nafter")
    blocks.layout(40)
    blocks.draw(0, 99)
    assert plain(rows(blocks)).startswith("┌───┬───┐")


def test_markup_that_is_not_closed_yet_looks_as_it_will() -> None:
    for text, shown in [("a **bo", "bo"), ("a *it", "it"), ("x `co", "co"), ("~~st", "st"), ("a **b*", "b")]:
        (*_, last) = InlineParser().parse(text, unfinished=True)
        assert last.text == shown
        assert last.style
    assert complete("see [text](https://exam") == "see text"
    assert complete("2 ** 3") == "2 ** 3"


def test_a_link_shows_its_whole_target_and_only_web_addresses_can_be_clicked() -> None:
    runs = InlineParser().parse(
        "[x](https://example.org/a?b=c) [y](mailto:a@b.c) [z](//host/p) <https://e.org>"
    )
    assert Run(" (https://example.org/a?b=c)", "target", ("link", "https://example.org/a?b=c")) in runs
    assert [run.action for run in runs if run.text in ("y", "z")] == [None, None]
    assert Run("https://e.org", "link", ("link", "https://e.org")) in runs
    assert not is_web_address("https://")
    assert not is_web_address("javascript:alert(1)")


def test_nothing_that_markdown_decodes_reaches_the_screen_unclean() -> None:
    text = "<http://a/%1B]0;x%07%E2%80%AE> &#27;[2J &#x9b;2J &#8238;x &#x9; [t](http://a/%1b) http://b/%9b%1b"
    for run in InlineParser().parse(text):
        assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c == "\u202e" for c in run.text), run


def test_mathematics_stays_as_it_is() -> None:
    assert drawn("Let \\( a_1 * b_2 * c \\) and $$x_1*y*z$$.") == "Let \\( a_1 * b_2 * c \\) and $$x_1*y*z$$."
    assert drawn("\\[\n a_1 * b_2 * c\n\\]\nafter") == "\\[\n a_1 * b_2 * c\n\\]\n\nafter"


def test_code_has_its_language_and_a_word_to_copy_it() -> None:
    first, second = rows(stack("```python\nx = 1\n```", width=30))
    assert first.text == " python  copy"
    assert first.runs[-1].action == ("copy", "0")
    assert [(run.text, run.style) for run in second.runs] == [
        (" ", "panel panel_mark"), ("x ", "panel"), ("=", "panel operator"), (" ", "panel"), ("1", "panel number"),
    ]  # fmt: skip


def test_an_unlabelled_fence_is_text_and_never_guessed() -> None:
    head, code = rows(stack("```\ndef f(): pass\n```"))
    assert head.text.startswith(" text ")
    assert [run.style for run in code.runs] == ["panel panel_mark", "panel"]
    assert find_lexer("no-such-language") is None


def test_highlighting_is_done_in_slices_of_time() -> None:
    code = "value = compute(index, total)  # a line of the program\n" * 2000
    lexer = find_lexer("python")
    assert lexer is not None
    highlighter = Highlighter(code, lexer)
    slices = 1
    while not highlighter.work(0.002):
        slices += 1
    assert slices > 3
    assert "".join(run.text for line in highlighter.lines for run in line) == code.replace("\n", "")


def test_lines_of_code_too_wide_are_cut_and_say_so() -> None:
    blocks = stack("```\n" + "abcdefghij" * 3 + "\n```", width=14)
    assert plain(rows(blocks)).split("\n")[1:] == [" abcdefghijab", "›cdefghijabcd", "›efghij"]
    assert blocks.row(2).joint == ""


def test_selected_code_keeps_its_tabs() -> None:
    blocks = stack("```\n\tif x:\n\t\ty\tz\n```", width=40)
    assert blocks.row(2).text == "         y   z"
    assert blocks.source(1, 0, 99) == "\tif x:"
    assert blocks.source(2, 0, 99) == "\t\ty\tz"
    assert blocks.source(2, 8, 13) == "y\tz"


def test_a_flush_into_long_code_draws_its_new_lines_only() -> None:
    blocks = BlockStack(RENDERER)
    blocks.feed("```python\n" + "x = 1\n" * 3000)
    blocks.layout(80)
    blocks.take_changed()
    blocks.feed("y = 2\nz")
    blocks.layout(80)
    assert blocks.take_changed() == 3001
    assert (blocks.height, blocks.row(3002).text) == (3003, " z")


@pytest.mark.parametrize("line", ["- item **b**\n", "| a | b |\n", "text *a*\n\n", "code\n", "> q\n\n"])
def test_the_cost_of_a_flush_does_not_grow_with_the_reply(line: str) -> None:
    def seconds(count: int) -> float:
        blocks = BlockStack(RENDERER)
        blocks.feed({"code\n": "```\n", "| a | b |\n": "| a | b |\n|---|---|\n"}.get(line, "") + line * count)
        blocks.layout(80)
        times: list[float] = []
        for _ in range(9):
            start = time.process_time()
            blocks.feed(line)
            blocks.layout(80)
            blocks.draw(blocks.height - 40, blocks.height)
            times.append(time.process_time() - start)
        return sorted(times)[4]

    assert any(seconds(4000) < 4 * seconds(400) + 0.003 for _ in range(5))  # other work shows now and then


def test_hard_line_breaks_and_soft_ones_are_kept() -> None:
    assert drawn("one\ntwo  \nthree<br>four") == "one\ntwo\nthree\nfour"


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("hello world", 5, ["hello", "world"]),
        ("hello   world", 8, ["hello", "world"]),
        ("abcdefgh", 3, ["abc", "def", "gh"]),
        ("", 5, [""]),
        ("a\n\nb", 5, ["a", "", "b"]),
        ("日本語の文章。次", 6, ["日本語", "の文", "章。次"]),
        ("ab 日本語", 6, ["ab 日", "本語"]),
        ("👩‍👧👩‍👧", 2, ["👩‍👧", "👩‍👧"]),
        ("e\u0301" * 4, 2, ["e\u0301e\u0301"] * 2),
        ("\u0301日.", 2, ["\u0301", "日", "."]),
    ],
)
def test_wrapping(text: str, width: int, expected: list[str]) -> None:
    assert [text[part.start : part.end] for part in wrap(text, width)] == expected


@settings(max_examples=150)
@given(st.text(alphabet="ab .日👩‍\u0301\n", max_size=60), st.integers(2, 12))
def test_wrapping_loses_nothing_but_blanks_at_breaks(text: str, width: int) -> None:
    parts = wrap(text, width)
    joined = "".join(
        (part.joint if index else "") + text[part.start : part.end] for index, part in enumerate(parts)
    )
    assert joined.replace(" ", "") == text.replace(" ", "")
    for part in parts:
        assert cell_len(text[part.start : part.end].rstrip(" ")) <= max(width, 2)


def test_runs_are_cut_where_rows_are() -> None:
    runs = [Run("one ", "a"), Run("two three", "b")]
    assert cut_runs(runs, wrap("one two three", 7)) == [
        (Run("one ", "a"), Run("two", "b")),
        (Run("three", "b"),),
    ]


def test_a_reply_shows_reasoning_while_it_thinks_and_folds_it_when_it_answers() -> None:
    view = MessageView(TranscriptMessage("a", "assistant", status="streaming"), RENDERER)

    def shown() -> str:
        view.layout(40)
        view.column.draw(0, 99)
        return plain(view.column.row(y) for y in range(view.height - 1))

    view.update(view.message, reasoning="Let me see.\nYes")
    assert shown() == "▾ thinking…\n│ Let me see.\n│ Yes"
    view.update(view.message, text="It is 4.")
    assert shown() == "▸ thought\n\nIt is 4."
    done = TranscriptMessage(
        "a", "assistant", status="stopped", footer="9 tok/s", variant=2, variants=3, reasoning_seconds=1.5
    )
    view.update(done)
    view.toggle()
    assert shown() == "▾ thought for 1.5 s\n│ Let me see.\n│ Yes\n\nIt is 4.\n‹ 2/3 ›  9 tok/s · stopped"


def test_the_line_under_a_reply_takes_a_second_row_rather_than_lose_a_word() -> None:
    footer = "54 tok/s · 150 tok · TTFT 0.09 s · reused 83 % · cut at its longest · /continue"
    reply = TranscriptMessage("a", "assistant", "Yes.", status="done", footer=footer, variant=2, variants=3)
    for width, count in ((16, 8), (40, 3), (56, 2), (76, 2), (120, 1)):
        view = MessageView(reply, RENDERER)
        view.layout(width)
        view.column.draw(0, 99)
        rows = [view.column.row(y).text for y in range(1, view.height - 1)]
        assert " ".join(rows).replace(" ·", "").split() == f"‹ 2/3 › {footer}".replace(" ·", "").split()
        assert all(cell_len(row) <= width for row in rows)
        assert len(rows) == count


def test_a_long_question_folds() -> None:
    view = MessageView(TranscriptMessage("u", "user", "\n".join(f"line {i}" for i in range(400))), RENDERER)
    view.layout(40)
    assert view.height == 14
    assert view.column.row(12).text == "… 388 more lines"
    view.toggle()
    view.layout(40)
    assert view.height == 401


def test_what_the_user_wrote_is_no_markdown_and_no_markup() -> None:
    view = MessageView(TranscriptMessage("u", "user", "# [/bold] *x* ```"), RENDERER)
    view.layout(40)
    assert view.column.row(0).text == "# [/bold] *x* ```"


def test_code_view_alone_takes_lines_and_gives_rows() -> None:
    block = Block("fence", ["a"])
    code = CodeView(block, 20)
    assert code.height == 2
    block.lines.append("b")
    assert code.sync("par") == 2
    assert [code.row(y).text for y in range(1, 4)] == [" a", " b", " par"]
    assert code.sync(None) == 3
    assert code.height == 3


def test_a_flush_into_a_long_paragraph_changes_its_last_rows_only() -> None:
    blocks = BlockStack(RENDERER)
    blocks.feed("some *words* that go on and on " * 40)
    blocks.layout(40)
    blocks.draw(0, 999)
    blocks.take_changed()
    height = blocks.height
    blocks.feed("and on")
    blocks.layout(40)
    assert blocks.take_changed() >= height - 1
