"""The splitter: only the last block changes, however the text was cut, and it reads Markdown as markdown-it does."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from nanochat.ui.block_syntax import table_cells
from nanochat.ui.blocks import LONGEST, Block, BlockSplitter

PIECES = [
    "word", " ", "\n", "\n\n", "# ", "## title", "- ", "* ", "1. ", "2) ", "10. ", "> ", "```", "```python", "~~~",
    "    ", "  ", "\t", "|", "| a | b |", "|---|:-:|", "---", "===", "***", "**bold**", "`code`", "$$", "\\[", "\\]",
    "[x] ", "+ ", ":", "é漢", "[link](http://a)", "text with words",
]  # fmt: skip
documents = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)


def split(*pieces: str) -> list[Block]:
    splitter = BlockSplitter()
    for piece in pieces:
        splitter.feed(piece)
    splitter.finish()
    return splitter.blocks


def kinds(text: str) -> list[tuple[str, str]]:
    return [(block.kind, block.text) for block in split(text)]


@st.composite
def cut_documents(draw: st.DrawFn) -> tuple[str, list[str]]:
    text = draw(documents)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=30)))
    edges = [0, *cuts, len(text)]
    return text, [text[a:b] for a, b in itertools.pairwise(edges)]


@settings(max_examples=400)
@given(cut_documents())
def test_the_blocks_are_the_same_whatever_way_the_text_was_cut(case: tuple[str, list[str]]) -> None:
    text, pieces = case
    assert split(*pieces) == split(text)


@settings(max_examples=200)
@given(st.text(alphabet="a *`-\n|> ", max_size=60), st.integers(1, 7))
def test_long_lines_are_cut_at_the_same_places_whatever_way_they_came(text: str, size: int) -> None:
    text = text * 400
    assert split(*(text[i : i + 1000 * size] for i in range(0, len(text), 1000 * size))) == split(text)


@settings(max_examples=300)
@given(cut_documents())
def test_a_settled_block_never_changes(case: tuple[str, list[str]]) -> None:
    _, pieces = case
    splitter = BlockSplitter()
    settled: list[str] = []
    for piece in pieces:
        splitter.feed(piece)
        splitter.tail()
        now = [repr(block) for block in splitter.blocks[: splitter.settled]]
        assert now[: len(settled)] == settled
        settled = now
    splitter.finish()
    assert [repr(block) for block in splitter.blocks][: len(settled)] == settled


@settings(max_examples=300)
@given(cut_documents())
def test_looking_at_the_unfinished_line_changes_nothing(case: tuple[str, list[str]]) -> None:
    text, pieces = case
    splitter = BlockSplitter()
    for piece in pieces:
        splitter.feed(piece)
        splitter.tail()
    splitter.finish()
    assert splitter.blocks == split(text)


ORACLE_PIECES = [
    "word", " ", "\n", "\n\n", "# ", "\n## title\n", "- ", "* ", "\n1. one", "\n2) two", "> ", "```", "~~~",
    "\n```python\n", "    ", "  ", "\n\n| a | b |\n|---|:-:|\n| c | d |\n", "---", "===", "***", "**bold**",
    "`code`", "[x] ", "+ ", ":", "é漢",
]  # fmt: skip


@settings(max_examples=600, derandomize=True)
@given(st.lists(st.sampled_from(ORACLE_PIECES), max_size=25).map("".join))
def test_it_reads_markdown_as_markdown_it_does(text: str) -> None:
    assert ours(text) == oracle(text)


def bare_lines(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().split("\n"))


def oracle(text: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """What markdown-it makes of the text: kind, content and containers of every leaf."""
    parser = MarkdownIt("commonmark").enable("table").disable(["html_block", "reference"])
    found: list[tuple[str, str, tuple[str, ...]]] = []
    path: list[str] = []
    numbers: list[int] = []
    tokens = iter(parser.parse(text))
    for token in tokens:
        if token.type == "blockquote_open":
            path.append("quote")
        elif token.type == "ordered_list_open":
            numbers.append(int(token.attrs.get("start", 1)))
        elif token.type == "ordered_list_close":
            numbers.pop()
        elif token.type == "list_item_open":
            path.append(f"{token.markup}{numbers[-1] if token.info else ''}")
            if token.info:
                numbers[-1] += 1
        elif token.type in ("blockquote_close", "list_item_close"):
            path.pop()
        elif token.type == "table_open":
            assert token.map is not None
            cells: list[str] = []
            for inner in tokens:
                if inner.type == "table_close":
                    break
                if inner.type == "inline":
                    cells.append(inner.content)
            found.append(("table", "|".join(cells), tuple(path)))
        elif token.type in ("fence", "code_block"):
            kind = "fence" if token.type == "fence" else "code"
            found.append((kind, token.content.rstrip(), tuple(path)))
        elif token.type == "hr":
            found.append(("rule", "", tuple(path)))
        elif token.type == "heading_open":
            found.append((f"heading{token.tag[1]}", bare_lines(next(tokens).content), tuple(path)))
        elif token.type == "inline":
            found.append(("paragraph", bare_lines(token.content), tuple(path)))
    return found


def ours(text: str) -> list[tuple[str, str, tuple[str, ...]]]:
    found: list[tuple[str, str, tuple[str, ...]]] = []
    for block in split(text):
        path = tuple(
            "quote" if c.kind == "quote" else c.marker + (str(c.number) if c.marker in ".)" else "")
            for c in block.containers
        )
        if block.kind == "heading":
            found.append((f"heading{block.level}", bare_lines(block.text), path))
        elif block.kind == "table":
            rows = [table_cells(line) for i, line in enumerate(block.lines) if i != 1]
            width = len(rows[0])
            found.append(("table", "|".join(c for row in rows for c in [*row, *[""] * width][:width]), path))
        elif block.kind in ("fence", "code"):
            found.append((block.kind, block.text.rstrip(), path))
        elif block.kind == "paragraph" and block.text == "":
            continue  # an empty item
        else:
            found.append(
                (block.kind, bare_lines(block.text) if block.kind == "paragraph" else block.text, path)
            )
    return found


def test_code_is_kept_byte_for_byte() -> None:
    code = "def f():\n\tif x:\n\t    return  'a\u00e9'   \n\n\n# ``` not the end\n>quote\t"
    (block,) = split(f"````python title=x\n{code}\n````\n")
    assert (block.kind, block.language, block.text, block.closed) == ("fence", "python", code, True)


def test_code_in_a_list_item_loses_the_indentation_of_the_item_only() -> None:
    _, block, after = split("1. Do this:\n\n   ```sh\n   if x; then\n   \ty\n\n     z\n   ```\n   then that")
    assert block.text == "if x; then\n\ty\n\n  z"
    assert [container.number for container in block.containers] == [1]
    assert (after.text, after.fresh, after.gap) == ("then that", 0, False)


def test_a_line_too_long_to_draw_is_whole_when_copied() -> None:
    code = "x" * (3 * LONGEST + 17) + "\n\ty"
    (block,) = split("```\n", code, "\n```")
    assert len(block.lines) == 5
    assert block.text == code


def test_no_text_is_lost_from_lines_too_long_to_draw() -> None:
    for front in ("", "# ", "- ", "> ", "---", "| a |\n|--|\n| ", "```", "    "):
        text = front + "word " * 4000
        words = sum(line.count("word") for block in split(text) for line in [*block.lines, block.info])
        assert words == 4000, front


@pytest.mark.parametrize(
    "half", ["`", "``", "```", "#", "##", "-", "- ", "1", "1.", ">", "> ", "|", "---", "  ", "> -", "*"]
)
def test_half_a_marker_is_held_back(half: str) -> None:
    splitter = BlockSplitter()
    splitter.feed("before\n\n" + half)
    assert [block.text for block in splitter.tail().blocks] == []
    splitter.feed(" x\n")
    splitter.finish()
    assert splitter.blocks == split("before\n\n" + half + " x\n")


def test_an_unfinished_line_shows_as_it_will_be() -> None:
    splitter = BlockSplitter()
    splitter.feed("1. one\n2. two and mo")
    tail = splitter.tail()
    assert [(block.text, block.containers[0].number) for block in tail.blocks] == [
        ("one", 1),
        ("two and mo", 2),
    ]


def test_the_unfinished_line_of_open_code_is_apart_from_its_lines() -> None:
    splitter = BlockSplitter()
    splitter.feed("> ```\n> a\n> b")
    tail = splitter.tail()
    assert tail.blocks[0] is splitter.blocks[-1]
    assert (tail.blocks[0].lines, tail.partial) == (["a"], "b")
    splitter.feed("\n> ``")
    assert splitter.tail().partial is None  # it may be the end


def test_a_table_is_a_table_from_its_second_line() -> None:
    splitter = BlockSplitter()
    splitter.feed("text\n| a | b |\n")
    assert [block.kind for block in splitter.blocks] == ["paragraph"]
    splitter.feed("|---|--:|\n| c | d |\n\n")
    assert [(block.kind, block.lines) for block in splitter.blocks] == [
        ("paragraph", ["text"]),
        ("table", ["| a | b |", "|---|--:|", "| c | d |"]),
    ]


def test_an_empty_item_shows_and_keeps_its_list_going() -> None:
    blocks = split("1. a\n2.\n\n3. c")
    assert [(block.text, block.containers[0].number) for block in blocks] == [("a", 1), ("", 2), ("c", 3)]
    assert len({block.containers[0].list_id for block in blocks}) == 1


@pytest.mark.parametrize(
    "unit", ["word ", "- item\n", "| a | b |\n", "    code\n", "> ", "[", "`", "*a ", "\t", "# ", "1. "]
)
def test_the_cost_is_linear(unit: str) -> None:
    def seconds(size: int) -> float:
        splitter = BlockSplitter()
        text = unit * (size // len(unit))
        start = time.process_time()
        for at in range(0, size, 40):
            splitter.feed(text[at : at + 40])
            splitter.tail()
        return time.process_time() - start

    small = min(seconds(20_000) for _ in range(3))
    # Quadratic would be 16 times and more, each time; other work on the machine shows now and then.
    assert any(seconds(80_000) < 10 * small + 0.1 for _ in range(5))
