"""The transcript on screen: following, scrolling away, swapping chats, the block cursor, the mouse, selections."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Self

import pytest
from rich.segment import Segment
from textual import events
from textual.app import App, ComposeResult
from textual.geometry import Offset, Region
from textual.message import Message
from textual.pilot import Pilot
from textual.selection import Selection
from textual.strip import Strip
from textual.widgets import Input

from nanochat.ui.conversation import Conversation, TranscriptMessage
from nanochat.ui.theme import THEMES
from nanochat.ui.widgets.transcript import Transcript

SIZE = (60, 20)


class Screen(App[None]):
    CSS = "Transcript { height: 1fr; } Input { height: 3; }"

    def __init__(self) -> None:
        super().__init__()
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = THEMES[0].name
        self.posted: list[Message] = []
        self.transcript = CountingTranscript()

    def compose(self) -> ComposeResult:
        yield self.transcript
        yield Input()


class CountingTranscript(Transcript):
    """Counts the rows that are asked to be painted anew, and those that are painted."""

    dirtied = 0
    painted = 0

    def refresh(self, *regions: Region, **options: bool) -> Self:
        self.dirtied += sum(region.height for region in regions) if regions else self.size.height
        return super().refresh(*regions, **options)

    def render_lines(self, crop: Region) -> list[Strip]:
        self.painted += crop.height
        return super().render_lines(crop)


class Reader:
    """A screen with a transcript, and what a reader sees and does."""

    def __init__(self, app: Screen, pilot: Pilot[None]) -> None:
        self.app, self.pilot, self.transcript = app, pilot, app.transcript

    async def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(200):
            await self.pilot.pause()
            if condition():
                return
        raise AssertionError(f"never: {condition}\n" + "\n".join(self.rows))

    async def idle(self) -> None:
        """Until nothing is left to draw or to colour."""
        await self.until(lambda: not self.transcript.working)

    @property
    def rows(self) -> list[str]:
        return [self.transcript.render_line(y).text.rstrip() for y in range(self.transcript.size.height)]

    def posted(self, kind: type[Message]) -> list[Message]:
        # The hook sees a message again in every widget that it bubbles through.
        return list(
            {id(message): message for message in self.app.posted if isinstance(message, kind)}.values()
        )

    async def click(self, text: str) -> None:
        await self.until(lambda: any(text in row for row in self.rows))
        y = next(y for y, row in enumerate(self.rows) if text in row)
        await self.pilot.click(self.transcript, offset=(self.rows[y].index(text), y))
        await self.pilot.pause()


@asynccontextmanager
async def reading(conversation: Conversation, size: tuple[int, int] = SIZE) -> AsyncIterator[Reader]:
    app = Screen()
    async with app.run_test(size=size, message_hook=app.posted.append) as pilot:
        await pilot.pause()
        app.transcript.swap(conversation)
        await pilot.pause()
        yield Reader(app, pilot)


def chat(name: str = "chat", count: int = 20) -> Conversation:
    messages: list[TranscriptMessage] = []
    for index in range(count):
        messages.append(TranscriptMessage(f"u{index}", "user", f"Question {name} {index}?"))
        text = "\n".join(f"- {name} item {index}.{line}" for line in range(7))
        messages.append(TranscriptMessage(f"a{index}", "assistant", text, footer=f"{index} tok/s"))
    return Conversation(name, messages)


def streaming() -> Conversation:
    conversation = chat()
    conversation.append(TranscriptMessage("s", "assistant", status="streaming"))
    return conversation


async def stream(reader: Reader, lines: int = 12, first: int = 0) -> None:
    conversation = reader.transcript.conversation
    assert conversation is not None
    for line in range(first, first + lines):
        conversation.write("s", f"- streamed {line}\n")
        await reader.pilot.pause()


async def test_it_follows_the_end_while_text_comes() -> None:
    async with reading(streaming()) as reader:
        for line in range(40):
            await stream(reader, 1, line)
            await reader.until(lambda line=line: f"streamed {line}" in "".join(reader.rows[-3:]))
        assert reader.transcript.following


async def test_scrolled_away_the_view_stays_and_a_badge_counts() -> None:
    async with reading(streaming()) as reader:
        reader.transcript.focus()
        await reader.pilot.press("pageup")
        await reader.until(lambda: not reader.transcript.following)
        before = reader.rows[:-1]
        await stream(reader, 12)
        await reader.until(lambda: "↓ 12 new lines · End" in reader.rows[-1])
        assert reader.rows[:-1] == before
        await reader.pilot.press("end")
        await reader.until(lambda: "streamed 11" in "".join(reader.rows[-3:]))
        await stream(reader, 5, 12)
        await reader.until(lambda: "streamed 16" in "".join(reader.rows[-3:]))
        assert "new line" not in "".join(reader.rows)


async def test_when_a_reply_ends_the_reader_in_the_middle_of_it_stays_there() -> None:
    """It gets its final id then, and a line of figures under it."""
    conversation = streaming()
    async with reading(conversation) as reader:
        await stream(reader, 60)
        await reader.until(lambda: "streamed 59" in "".join(reader.rows[-3:]))
        reader.transcript.focus()
        await reader.pilot.press("pageup")
        await reader.until(lambda: not reader.transcript.following)
        await reader.idle()
        before = reader.rows[:-1]
        assert any("streamed" in row for row in before)
        conversation.rename("s", "final")
        conversation.change("final", status="stopped", footer="50 tok/s · stopped")
        await reader.pilot.pause()
        await reader.idle()
        assert reader.rows[:-1] == before
        await reader.pilot.press("end")
        await reader.until(lambda: "50 tok/s" in "".join(reader.rows[-3:]))


async def test_a_reader_in_the_middle_of_a_reply_is_there_in_another_version_of_it_too() -> None:
    conversation = chat()

    def version(name: str, lines: int) -> None:
        text = "\n".join(f"- {name} {line}" for line in range(lines))
        reply = TranscriptMessage(name, "assistant", text, variants=2)
        conversation.replace_all([*conversation.messages[:-1], reply])

    version("first", 60)
    async with reading(conversation) as reader:
        reader.transcript.focus()
        await reader.pilot.press("pageup", "pageup")
        await reader.until(lambda: not reader.transcript.following)
        await reader.idle()
        top = reader.rows[0]
        version("second", 60)
        await reader.until(lambda: reader.rows[0] == top.replace("first", "second"))
        await reader.idle()
        assert reader.rows[0] == top.replace("first", "second")
        version("short", 2)
        await reader.until(lambda: "short 1" in "".join(reader.rows[-3:]))
        conversation.replace_all(conversation.messages[:-2])
        await reader.until(lambda: "chat item 18.6" in "".join(reader.rows[-3:]))


async def test_another_version_below_the_reader_counts_no_rows_as_new() -> None:
    conversation = chat()
    async with reading(conversation) as reader:
        reader.transcript.focus()
        await reader.pilot.press("pageup", "pageup")
        await reader.until(lambda: not reader.transcript.following)
        longer = "\n".join(f"- longer {line}" for line in range(60))
        conversation.replace_all([*conversation.messages[:-1], TranscriptMessage("b", "assistant", longer)])
        await reader.idle()
        assert reader.transcript.new_lines == 0
        conversation.append(TranscriptMessage("s", "assistant", status="streaming"))
        await stream(reader, 12)
        await reader.idle()
        assert 12 <= reader.transcript.new_lines <= 15  # with what stands around a reply
        conversation.replace_all(conversation.messages[:-1])
        await reader.idle()
        assert reader.transcript.new_lines == 0


async def test_what_the_reader_unfolds_is_not_new() -> None:
    messages = list(chat().messages)
    thought = "\n\n".join(f"thought {line}" for line in range(20))
    messages[-1] = TranscriptMessage("t", "assistant", "The answer.", reasoning=thought)
    conversation = Conversation("chat", [*messages, TranscriptMessage("s", "assistant", status="streaming")])
    async with reading(conversation) as reader:
        reader.transcript.focus()
        await reader.pilot.press("pageup")
        await reader.until(lambda: not reader.transcript.following)
        reader.transcript.fold("t")
        assert reader.transcript.new_lines == 0
        await stream(reader, 12)
        await reader.until(lambda: reader.transcript.new_lines >= 12)
        known = reader.transcript.new_lines
        reader.transcript.toggle_reasoning()
        assert reader.transcript.new_lines == known
        reader.transcript.toggle_reasoning()
        assert reader.transcript.new_lines == known


@pytest.mark.parametrize("moving", [True, False])
async def test_page_down_comes_back_to_the_end_and_stays_when_pressed_again(moving: bool) -> None:
    async with reading(streaming()) as reader:
        reader.transcript.focus()
        for _ in range(4):
            await reader.pilot.press("pageup")
        await reader.until(lambda: not reader.transcript.following)
        line = 0
        for _ in range(12):
            if moving:
                await stream(reader, 3, line)
                line += 3
            await reader.pilot.press("pagedown")
            if reader.transcript.following:
                break
        assert reader.transcript.following
        await reader.pilot.press("pagedown", "pagedown")
        await stream(reader, 9, line)
        await reader.until(lambda: f"streamed {line + 8}" in "".join(reader.rows[-3:]))


@pytest.mark.parametrize("moving", [True, False])
async def test_the_wheel_comes_back_to_the_end(moving: bool) -> None:
    async with reading(streaming()) as reader:
        for _ in range(9):
            await reader.pilot._post_mouse_events([events.MouseScrollUp], reader.transcript)
        await reader.until(lambda: not reader.transcript.following)
        line = 0
        for _ in range(40):
            if moving:
                await stream(reader, 1, line)
                line += 1
            await reader.pilot._post_mouse_events([events.MouseScrollDown], reader.transcript)
            if reader.transcript.following:
                break
        assert reader.transcript.following
        await stream(reader, 5, line)
        await reader.until(lambda: f"streamed {line + 4}" in "".join(reader.rows[-3:]))


async def test_dragging_the_scrollbar_to_the_end_follows_again() -> None:
    async with reading(streaming()) as reader:
        reader.transcript.scroll_to(y=0)
        await reader.until(lambda: "Question chat 0?" in "".join(reader.rows))
        assert not reader.transcript.following
        reader.transcript.scroll_to(y=reader.transcript.max_scroll_y, animate=True)
        await reader.until(lambda: reader.transcript.following)
        await stream(reader, 5)
        await reader.until(lambda: "streamed 4" in "".join(reader.rows[-3:]))


async def test_a_reply_that_shrinks_does_not_pin_the_view_to_the_end() -> None:
    conversation = streaming()
    async with reading(conversation) as reader:
        conversation.write("s", reasoning="\n\n".join(f"thought {i}" for i in range(60)))
        await reader.until(lambda: "thought 59" in "".join(reader.rows))
        reader.transcript.scroll_to(y=reader.transcript.max_scroll_y - 5)
        await reader.until(lambda: not reader.transcript.following)
        conversation.write("s", "The answer.")  # the reasoning folds
        await reader.until(lambda: reader.transcript.virtual_size.height < 300)
        assert not reader.transcript.following


async def test_each_chat_is_shown_where_it_was_left() -> None:
    one, two = chat("one"), chat("two")
    async with reading(one) as reader:
        reader.transcript.scroll_to(y=30)
        await reader.until(lambda: not reader.transcript.following)
        before = reader.rows
        reader.transcript.swap(two)
        await reader.until(lambda: "two item 19.6" in "".join(reader.rows))
        assert reader.transcript.following
        reader.transcript.swap(one)
        await reader.until(lambda: reader.rows == before)
        assert not reader.transcript.following
        reader.transcript.swap(None)
        await reader.until(lambda: "".join(reader.rows) == "")


async def test_a_hidden_chat_paints_nothing_and_is_complete_when_shown() -> None:
    hidden = streaming()
    async with reading(chat("other")) as reader:
        await reader.until(lambda: "other item 19.6" in "".join(reader.rows))
        await reader.idle()
        reader.transcript.painted = 0
        for line in range(500):
            hidden.write("s", f"- streamed {line}\n")
        await reader.pilot.pause()
        await reader.pilot.pause()
        assert reader.transcript.painted == 0
        reader.transcript.swap(hidden)
        await reader.until(lambda: "streamed 499" in "".join(reader.rows[-3:]))


async def test_text_that_comes_between_the_layout_and_its_event_is_taken_in() -> None:
    app, conversation = Screen(), Conversation("chat")

    def hook(message: Message) -> None:
        if isinstance(message, events.Resize) and "s" in conversation:
            conversation.write("s", "word ")
            app.transcript.flush()

    app.transcript.display = False
    async with app.run_test(size=SIZE, message_hook=hook) as pilot:
        app.transcript.swap(conversation)
        await pilot.pause()
        conversation.append(TranscriptMessage("s", "assistant", status="streaming"))
        await pilot.pause()
        app.transcript.display = True
        reader = Reader(app, pilot)
        await reader.until(lambda: any("word" in row for row in reader.rows))


async def test_nothing_is_painted_while_nothing_happens() -> None:
    async with reading(chat()) as reader:
        await reader.idle()
        reader.transcript.painted = 0
        await reader.pilot.pause(0.3)  # absence takes time to see
        assert reader.transcript.painted == 0


async def test_a_growing_code_block_paints_its_new_lines_only() -> None:
    conversation = Conversation(
        "c", [TranscriptMessage("s", "assistant", "```python\nx = 1\n", status="streaming")]
    )
    async with reading(conversation, (60, 40)) as reader:
        conversation.write("s", "z")
        await reader.idle()
        for line in range(10):
            reader.transcript.dirtied = 0
            conversation.write("s", f"y = {line}\nz")
            await reader.until(lambda line=line: f"y = {line}" in "".join(reader.rows))
            assert reader.transcript.dirtied <= 4


async def test_a_message_that_changes_before_the_screen_has_measured_itself_is_taken_in() -> None:
    conversation = chat(count=2)
    async with reading(Conversation("empty")) as reader:
        transcript = reader.transcript
        transcript.display = False
        await reader.until(lambda: not transcript.size.height)
        transcript.swap(conversation)
        transcript.display = True
        reader.app.screen._refresh_layout()  # it has room from here on, and hears of that in a moment
        assert transcript.size.height
        conversation.change("a1", footer="now 7 tok/s")
        transcript.flush()
        assert any("now 7 tok/s" in row for row in reader.rows)


async def test_a_resize_keeps_the_place() -> None:
    async with reading(chat()) as reader:
        reader.transcript.scroll_to(y=60)
        await reader.until(lambda: not reader.transcript.following)
        first = reader.rows[0]
        for size in ((40, 24), (90, 12), SIZE):
            await reader.pilot.resize_terminal(*size)
            await reader.until(lambda: reader.rows[0] == first)


async def test_following_survives_a_resize_while_text_comes() -> None:
    async with reading(streaming()) as reader:
        line = 0
        for size in ((80, 24), (30, 10), (120, 40), (60, 20)):
            await stream(reader, 3, line)
            line += 3
            await reader.pilot.resize_terminal(*size)
            await reader.until(lambda line=line: f"streamed {line - 1}" in "".join(reader.rows))


async def test_a_change_of_theme_keeps_the_content_and_changes_its_colours() -> None:
    conversation = Conversation("c", [TranscriptMessage("s", "assistant", "```python\nx = 1\n```\n**b**")])
    async with reading(conversation) as reader:
        await reader.until(lambda: "x = 1" in reader.rows[1])
        rows = reader.rows

        def colours() -> set[str]:
            segments: list[Segment] = list(reader.transcript.render_line(1))
            return {str(segment.style.bgcolor) for segment in segments if segment.style}

        before = colours()
        reader.app.theme = THEMES[1].name
        await reader.until(lambda: colours() != before)
        assert reader.rows == rows


async def test_code_gets_its_colours_when_it_closes() -> None:
    conversation = Conversation(
        "c", [TranscriptMessage("s", "assistant", "```python\nx = 1\n", status="streaming")]
    )
    async with reading(conversation) as reader:

        def styles() -> int:
            return len(
                {str(segment.style) for segment in reader.transcript.render_line(1) if segment.text.strip()}
            )

        await reader.until(lambda: "x = 1" in reader.rows[1])
        assert styles() == 1
        conversation.write("s", "```\n")
        await reader.until(lambda: styles() == 3)


async def test_the_block_cursor_copies_code_byte_for_byte_and_asks_for_actions() -> None:
    code = "def f():\n\treturn 1  \n\n\n# end"
    reply = TranscriptMessage(
        "a", "assistant", f"Look:\n```python\n{code}\n```\nDone.", variants=2, reasoning="hm"
    )
    async with reading(Conversation("c", [TranscriptMessage("u", "user", "q"), reply])) as reader:
        reader.app.query_one(Input).focus()
        reader.transcript.move_cursor(-1)
        await reader.until(lambda: reader.transcript.has_focus)
        await reader.pilot.press(
            "y", "alt+up", "c", "r", "e", "f", "d", "right_square_bracket", "alt+up", "y"
        )
        await reader.pilot.press("alt+up", "y", "escape")
        await reader.pilot.pause()
        copied = [(m.text, m.what) for m in reader.posted(Transcript.CopyRequested)]  # type: ignore[attr-defined]
        assert copied == [(reply.text, "reply"), (code, "python code"), ("hm", "reasoning"), ("q", "message")]
        asked = [(m.verb, m.message_id) for m in reader.posted(Transcript.ActionRequested)]  # type: ignore[attr-defined]
        assert asked == [("regenerate", "a"), ("edit", "a"), ("fork", "a"), ("delete", "a")]
        assert [m.step for m in reader.posted(Transcript.VariantRequested)] == [1]  # type: ignore[attr-defined]
        assert len(reader.posted(Transcript.Left)) == 1
        assert reader.transcript.cursor is None


async def test_the_block_cursor_brings_far_messages_on_screen() -> None:
    async with reading(chat()) as reader:
        reader.transcript.focus()
        for index in range(19, 9, -1):
            await reader.pilot.press("alt+up")
            await reader.until(lambda index=index: f"chat item {index}.0" in "".join(reader.rows))
            await reader.pilot.press("alt+up")
            await reader.until(lambda index=index: f"Question chat {index}?" in "".join(reader.rows))


async def test_clicks_open_nothing_but_ask() -> None:
    reply = TranscriptMessage(
        "a", "assistant", "[site](https://example.org/x) and [bad](mailto:x@y.z)\n\n```sh\n\tls\n```",
        reasoning="hm hm", variant=2, variants=3,
    )  # fmt: skip
    async with reading(Conversation("c", [reply])) as reader:
        await reader.click("site")
        await reader.click("bad")
        await reader.click("copy")
        await reader.click("‹ 2/3")
        await reader.click("▸ thought")
        await reader.until(lambda: "hm hm" in "".join(reader.rows))
        assert [m.url for m in reader.posted(Transcript.LinkRequested)] == ["https://example.org/x"]  # type: ignore[attr-defined]
        assert [m.text for m in reader.posted(Transcript.CopyRequested)] == ["\tls"]  # type: ignore[attr-defined]
        assert [m.step for m in reader.posted(Transcript.VariantRequested)] == [-1]  # type: ignore[attr-defined]


async def test_an_edited_question_shows_its_versions_and_steps_through_them() -> None:
    question = TranscriptMessage("u", "user", "What now?", variant=2, variants=2)
    async with reading(Conversation("c", [question, TranscriptMessage("a", "assistant", "This.")])) as reader:
        await reader.until(lambda: "‹ 2/2 ›" in reader.rows[1])
        assert "This." in reader.rows[3]
        await reader.click("‹")
        (asked,) = reader.posted(Transcript.VariantRequested)
        assert (asked.message_id, asked.step) == ("u", -1)  # type: ignore[attr-defined]


async def test_a_click_on_the_badge_goes_to_the_end() -> None:
    async with reading(streaming()) as reader:
        reader.transcript.scroll_to(y=10)
        await stream(reader, 3)
        await reader.click("3 new lines")
        await reader.until(lambda: reader.transcript.following)


async def test_all_reasoning_folds_and_unfolds_at_once() -> None:
    messages = [TranscriptMessage(f"a{i}", "assistant", "text", reasoning=f"thought {i}") for i in range(3)]
    async with reading(Conversation("c", messages)) as reader:
        assert "│ thought" not in "".join(reader.rows)
        reader.transcript.toggle_reasoning()
        await reader.until(lambda: "".join(reader.rows).count("│ thought") == 3)
        reader.transcript.toggle_reasoning()
        await reader.until(lambda: "│ thought" not in "".join(reader.rows))


async def test_selected_text_is_whole_lines_with_the_tabs_of_code() -> None:
    text = "one two three four five six seven eight nine ten eleven twelve thirteen\n\n- item\n\n```sh\n\tif x\n```\n"
    async with reading(Conversation("c", [TranscriptMessage("a", "assistant", text)])) as reader:
        await reader.until(lambda: "if x" in "".join(reader.rows))
        transcript = reader.transcript
        meta = transcript.render_line(0)._segments[-1].style
        assert meta is not None
        origin = meta.meta["offset"][1]

        def between(start: tuple[int, int], end: tuple[int, int]) -> str:
            first, last = Offset(start[0], start[1] + origin), Offset(end[0], end[1] + origin)
            found = transcript.get_selection(Selection(first, last))
            assert found is not None
            return found[0]

        assert between((6, 0), (40, 1)) == text.split("\n")[0][4:]
        assert between((0, 3), (60, 6)) == "item\n\n\n\tif x"
        assert between((2, 0), (5, 0)) == "one"


async def test_selected_rows_stay_selected_when_heights_above_are_corrected() -> None:
    messages = [TranscriptMessage(f"a{i}", "assistant", "short\n\n" * 30 + f"end {i}") for i in range(40)]
    async with reading(Conversation("c", messages)) as reader:
        await reader.idle()
        transcript = reader.transcript
        view = transcript._view
        assert view is not None

        def number(y: int) -> int:
            style = transcript.render_line(y)._segments[-1].style
            assert style is not None
            found: int = style.meta["offset"][1]
            return found

        y = next(y for y, row in enumerate(reader.rows) if "end 39" in row)
        reader.app.screen.selections = {transcript: Selection(Offset(2, number(y)), Offset(8, number(y)))}
        height = view.height
        for _ in range(3):
            transcript.scroll_to(y=transcript.scroll_y - 90)
            await reader.pilot.pause()
            await reader.idle()
        assert view.height != height  # or there was nothing to correct
        assert reader.app.screen.get_selected_text() == "end 39"
        transcript.follow()
        await reader.until(lambda: any("end 39" in row for row in reader.rows))
        assert reader.app.screen.get_selected_text() == "end 39"


async def test_what_is_selected_is_shown() -> None:
    async with reading(Conversation("c", [TranscriptMessage("a", "assistant", "some words here")])) as reader:
        await reader.pilot.mouse_down(reader.transcript, offset=(7, 0))
        await reader.pilot.hover(reader.transcript, offset=(11, 0))
        await reader.pilot.mouse_up(reader.transcript, offset=(11, 0))
        await reader.pilot.pause()
        assert reader.app.screen.get_selected_text() == "words"
        style = reader.transcript.selection_style
        marked = [
            s.text for s in reader.transcript.render_line(0) if s.style and s.style.bgcolor == style.bgcolor
        ]
        assert "".join(marked) == "words"


async def test_losing_and_gaining_the_focus_of_the_terminal_paints_little() -> None:
    async with reading(chat(count=250)) as reader:
        await reader.idle()
        reader.transcript.painted = 0
        for focus in (False, True):
            reader.app.app_focus = focus
            await reader.pilot.pause()
            await reader.idle()
        assert reader.transcript.painted <= 4 * SIZE[1]


async def test_letters_scroll() -> None:
    async with reading(chat()) as reader:
        reader.transcript.focus()
        await reader.pilot.press("g")
        await reader.until(lambda: "Question chat 0?" in reader.rows[0])
        await reader.pilot.press("j", "j", "k")
        await reader.until(lambda: round(reader.transcript.scroll_y) == 1)
        await reader.pilot.press("ctrl+d")
        await reader.until(
            lambda: round(reader.transcript.scroll_y) == 1 + reader.transcript.size.height // 2
        )
        await reader.pilot.press("ctrl+u")
        await reader.until(lambda: round(reader.transcript.scroll_y) == 1)
        await reader.pilot.press("G")
        await reader.until(lambda: reader.transcript.following and "19 tok/s" in "".join(reader.rows))


async def test_random_reading_never_loses_the_text() -> None:
    """Whatever is done in whatever order, the rows on screen are consecutive rows of the chat."""
    source = random.Random(7)
    conversation = streaming()
    async with reading(conversation, (50, 15)) as reader:
        reader.transcript.focus()
        written = 0
        for _ in range(120):
            key = source.choice(
                ["pageup", "pagedown", "j", "k", "g", "G", "alt+up", "alt+down", "write", "resize", "space"]
            )
            if key == "write":
                conversation.write("s", "".join(f"- streamed {written + i}\n" for i in range(5)))
                written += 5
            elif key == "resize":
                await reader.pilot.resize_terminal(source.randint(30, 90), source.randint(8, 40))
            else:
                await reader.pilot.press(key)
        await reader.idle()
        rows = [row.strip("▌█ ") for row in reader.rows[:-1]]
        view = reader.transcript._view
        assert view is not None
        top = round(reader.transcript.scroll_y)
        expected = [view.row(y)[0].text.strip("▌ ") for y in range(top, top + len(rows))]
        assert rows == expected
        view.settle(0, 10**6)
        lines = [view.row(y)[0].text.strip() for y in range(view.height)]
        assert [line for line in lines if "streamed" in line] == [f"• streamed {i}" for i in range(written)]
        assert reader.transcript.virtual_size.height == view.height or not reader.transcript.following
