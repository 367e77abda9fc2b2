"""Windowing without Textual: what is drawn, what is forgotten, and that nothing the reader looks at ever jumps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.ui.block_cursor import BlockCursor, last
from nanochat.ui.conversation import Conversation, TranscriptMessage
from nanochat.ui.conversation_view import MOST_DRAWN, ConversationView
from nanochat.ui.markdown import MarkdownRenderer

RENDERER = MarkdownRenderer()
REPLY = (
    "# Title\n\nSome text that goes on for a while.\n\n"
    + "- item\n" * 9
    + "\n```python\nx = 1\n```\n\nEnd of reply {}."
)
ROWS = 30


def chat(count: int) -> Conversation:
    messages: list[TranscriptMessage] = []
    for index in range(count):
        messages.append(TranscriptMessage(f"u{index}", "user", f"Question {index}?"))
        parts = "\n\n".join(REPLY.replace("?", f"{index}.{part}") for part in range(1 + index % 4))
        messages.append(TranscriptMessage(f"a{index}", "assistant", parts))
    return Conversation("chat", messages)


def shown(view: ConversationView, top: int, rows: int = ROWS) -> list[str]:
    return [view.row(y)[0].text for y in range(top, top + rows)]


def opened(conversation: Conversation, width: int = 60) -> tuple[ConversationView, int]:
    view = ConversationView(conversation, RENDERER)
    view.reconcile(width)
    return view, view.settle_end(ROWS)


def everything(conversation: Conversation, width: int = 60) -> list[str]:
    view = ConversationView(conversation, RENDERER)
    view.reconcile(width)
    view.settle(0, 10**6)
    return shown(view, 0, view.height)


def test_turns_that_were_dropped_look_so_at_once() -> None:
    conversation = Conversation(
        "chat", [TranscriptMessage("u", "user", "Why?"), TranscriptMessage("a", "assistant", "So.")]
    )
    view, _ = opened(conversation)
    for message_id in ("u", "a"):
        conversation.change(message_id, dropped=True)
    view.reconcile(60)
    view.settle(0, 10**6)
    fresh = ConversationView(conversation, RENDERER)
    fresh.reconcile(60)
    fresh.settle(0, 10**6)
    for row in range(fresh.height):
        assert view.row(row)[0] == fresh.row(row)[0]
    assert any("dropped" in str(view.row(row)[0]) for row in range(view.height))


def test_opening_draws_the_end_only() -> None:
    view, top = opened(chat(250))
    assert view.drawn <= 3
    assert top == view.height - ROWS
    assert shown(view, top) == everything(chat(250))[-ROWS:]


def test_scrolling_up_shows_every_row_in_order_and_keeps_few_messages_drawn() -> None:
    conversation = chat(60)
    view, top = opened(conversation)
    seen = shown(view, top)
    while top > 0:
        before = shown(view, top)
        wanted = max(0, top - 7)
        moved = view.settle(wanted, ROWS)
        view.release(moved, ROWS)
        now = shown(view, moved)
        new = 7 if wanted else now.index(before[0])  # at the very top an estimate may have been too high
        assert now[new:] == before[: ROWS - new]
        seen = now[:new] + seen
        top = moved
        assert view.drawn <= MOST_DRAWN
    assert seen == everything(conversation)


def test_what_is_far_from_the_screen_is_forgotten() -> None:
    view, _ = opened(chat(60))
    view.settle(0, 10**6)
    assert view.drawn == 120
    view.release(view.height - ROWS, ROWS)
    assert view.drawn == MOST_DRAWN
    far = view.view("a0").column.sections[0].stack
    assert far is not None
    assert all(not isinstance(part.body, list) for part in far._parts)
    assert shown(view, 0, view.height) == everything(chat(60))  # and comes back as it was


def test_paging_up_leaves_no_gap() -> None:
    view, top = opened(chat(60))
    for _ in range(10):
        before = shown(view, top)[0]
        top = view.settle(top - ROWS, ROWS)
        assert view.row(top + ROWS)[0].text == before


def test_drawing_more_around_the_screen_moves_nothing_on_it() -> None:
    view, top = opened(chat(60))
    top = view.settle(top - 200, ROWS)
    before = shown(view, top)
    for around in range(0, 400, 20):
        top = view.settle(top, ROWS, around)
        assert shown(view, top) == before


@settings(max_examples=60)
@given(st.lists(st.integers(-400, 400), max_size=20))
def test_wherever_the_reader_jumps_the_rows_are_those_of_the_chat(jumps: list[int]) -> None:
    conversation = chat(12)
    view, top = opened(conversation)
    text = "\n".join(everything(conversation))
    for jump in jumps:
        top = view.settle(min(max(0, top + jump), max(0, view.height - ROWS)), ROWS)
        assert "\n".join(shown(view, top)).rstrip("\n") in text
        view.release(top, ROWS)


def test_a_place_is_found_again_at_another_width() -> None:
    view, top = opened(chat(30))
    top = view.settle(top - 300, ROWS)
    place = view.locate(top)
    assert place is not None
    words = view.row(top)[0].text[:8]
    view.reconcile(31)
    again = view.settle(view.find(place), ROWS)
    assert view.row(again)[0].text[:8] == words


def test_a_line_of_long_code_is_found_again_at_another_width() -> None:
    code = "\n".join(f"    line_{line} = {'x' * (line % 90)}" for line in range(300))
    reply = TranscriptMessage("a", "assistant", f"So:\n\n```python\n{code}\n```\nDone.")
    view, _ = opened(Conversation("c", [reply]))
    rows = everything(view.conversation)
    assert [view.find(place) for y in range(len(rows)) if (place := view.locate(y))] == list(range(len(rows)))
    top = next(y for y, row in enumerate(rows) if "line_200 " in row)
    for width in (31, 140, 45, 60):
        place = view.locate(top)
        assert place is not None
        view.reconcile(width)
        top = view.settle(view.find(place), ROWS)
        assert "line_200 " in view.row(top)[0].text


def test_streaming_below_moves_nothing_on_screen() -> None:
    conversation = chat(5)
    conversation.append(TranscriptMessage("s", "assistant", status="streaming"))
    view, top = opened(conversation)
    top = view.settle(top - 40, ROWS)
    before = shown(view, top)
    for _ in range(50):
        conversation.write("s", "- more and *more*\n")
        view.refresh("s")
        assert shown(view, top) == before


def test_a_hidden_chat_is_complete_when_shown() -> None:
    conversation = chat(2)
    conversation.append(TranscriptMessage("s", "assistant", status="streaming"))
    view, _ = opened(conversation)
    for piece in ("**bo", "ld** and `co", "de`\n\n```py", "thon\nx = 1\n`", "``\nafter"):
        conversation.write("s", piece)
    conversation.change("s", status="done", footer="9 tok/s")
    view.reconcile(60)
    top = view.settle_end(ROWS)
    assert shown(view, top) == everything(conversation)[-ROWS:]
    assert conversation.get("s").text == "**bold** and `code`\n\n```python\nx = 1\n```\nafter"


def test_what_is_drawn_is_kept_when_messages_come_and_go() -> None:
    conversation = chat(3)
    view, _ = opened(conversation)
    kept = view.view("a2")
    messages = conversation.messages
    conversation.replace_all([*messages[2:], TranscriptMessage("u9", "user", "New")])
    view.reconcile(60)
    assert view.view("a2") is kept
    conversation.rename("a2", "renamed")
    view.reconcile(60)
    assert view.view("renamed") is kept
    conversation.update(TranscriptMessage("renamed", "assistant", "Other text"))
    view.reconcile(60)
    assert view.view("renamed") is not kept


def test_a_reply_that_goes_on_after_it_ended_is_one_text() -> None:
    conversation = Conversation("c", [TranscriptMessage("a", "assistant", "It **is", status="interrupted")])
    view, _ = opened(conversation)
    conversation.change("a", status="streaming")
    conversation.write("a", " bold** now")
    view.refresh("a")
    view.settle_end(ROWS)
    assert shown(view, 0, 1) == ["It is bold now"]


def test_everything_from_outside_is_cleaned_on_its_way_in() -> None:
    conversation = Conversation(
        "c", [TranscriptMessage("u", "user", "a\x1b[2Jb", footer="x\x9by\nz", error="\u202ee")]
    )
    message = conversation.get("u")
    assert (message.text, message.footer, message.error) == ("a[2Jb", "xy z", "e")
    conversation.append(TranscriptMessage("a", "assistant", status="streaming"))
    conversation.write("a", "\x1b", "\x9d")
    conversation.write("a", "]52;c;x\x07", "0;title\x9c")
    assert (conversation.get("a").text, conversation.get("a").reasoning) == ("]52;c;x", "0;title")


def test_messages_have_one_id_each() -> None:
    conversation = chat(1)
    with pytest.raises(ValueError, match="already"):
        conversation.append(TranscriptMessage("u0", "user", "again"))
    with pytest.raises(ValueError, match="already"):
        conversation.rename("u0", "a0")
    with pytest.raises(KeyError):
        conversation.write("nobody", "x")


def test_the_block_cursor_walks_messages_reasoning_and_code() -> None:
    reply = TranscriptMessage("a", "assistant", "```sh\nls\n```\ntext\n```python\n\tx\n```", reasoning="hm")
    conversation = Conversation("c", [TranscriptMessage("u", "user", "q"), reply])
    view, _ = opened(conversation)
    cursor = last(view)
    walked: list[tuple[str, str, str]] = []
    for _ in range(6):
        assert cursor is not None
        walked.append((cursor.message_id, cursor.what, cursor.text(view)[0]))
        cursor = cursor.moved(view, -1)
    assert walked == [
        ("a", "message", reply.text),
        ("a", "code", "\tx"),
        ("a", "code", "ls"),
        ("a", "reasoning", "hm"),
        ("u", "message", "q"),
        ("u", "message", "q"),
    ]
    code = BlockCursor("a", "code", "2")
    assert code.text(view) == ("\tx", "python code")
    first, end = code.span(view)
    assert [view.row(y)[0].text.split()[0] for y in range(first, end)] == ["python", "x"]
    assert code.moved(view, 1) == BlockCursor("a")
