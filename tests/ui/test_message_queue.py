"""A message entered while a reply comes waits for its end: it is sent in its turn or given back, and lost in no way."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from pytest_textual_snapshot import SVGImageExtension
from stage import Stage, on_stage, prompt
from syrupy.assertion import SnapshotAssertion
from textual.widgets import TextArea

from nanochat.engine.outputs import FinishReason
from nanochat.errors import HistoryFull
from nanochat.ui.idle_work import WARM_PRIORITY
from nanochat.ui.session import ChatSession
from nanochat.ui.widgets.queued_messages import QueuedMessages


def shown(stage: Stage) -> list[str]:
    """The lines above the prompt."""
    lines = stage.app.chat_screen.query_one(QueuedMessages)
    return str(lines.render()).split("\n") if lines.display else []


def asked(stage: Stage) -> list[str]:
    """The user's messages in the shown chat."""
    return [m.text for m in stage.app.chats.active.conversation.messages if m.role == "user"]


def replies(stage: Stage) -> int:
    """How many were asked for. On a busy machine titles and prefixes are too by then: nobody waits for those."""
    return sum(request.priority < WARM_PRIORITY for request in stage.engine.requests)


async def enter(stage: Stage, *texts: str) -> None:
    for text in texts:
        await stage.type(text)
        await stage.press("enter")


async def streaming(stage: Stage, text: str) -> None:
    """Ask, and wait for the reply's first word."""
    requests = len(stage.engine.requests)
    await stage.send(text)
    await stage.until(lambda: len(stage.engine.requests) > requests, "the engine has it")
    stage.engine.emit(stage.engine.last, "word ")
    await stage.until(lambda: stage.texts()[-1] == "word ", "it streams")


async def answered(stage: Stage, requests: int) -> None:
    """End the reply of this many requests as soon as the engine has that."""
    await stage.until(lambda: len(stage.engine.requests) == requests, f"request {requests} was made")
    stage.engine.finish(stage.engine.last)


# In their turn -----------------------------------------------------------------------------------


async def test_what_waits_is_sent_in_order_each_after_the_reply_before(tmp_path: Path) -> None:
    async with on_stage(tmp_path, FakeEngine(manual=True)) as stage:
        await streaming(stage, "first")
        await enter(stage, "second", "third")
        assert (prompt(stage), shown(stage)) == ("", ["1. second", "2. third"])
        assert asked(stage) == ["first"]
        await answered(stage, 1)
        await stage.until(lambda: len(stage.engine.requests) == 2)
        assert (asked(stage), shown(stage)) == (["first", "second"], ["1. third"])
        await answered(stage, 2)
        await answered(stage, 3)
        await stage.settle()
        assert (asked(stage), shown(stage)) == (["first", "second", "third"], [])
        assert stage.statuses()[1::2] == ["done"] * 3
        assert stage.app.chats.active.unsent == ""


async def test_a_message_waits_for_one_whose_files_are_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr("nanochat.ui.sending.attach", lambda text, folder: (gate.wait(60) and text, ()))
    async with on_stage(tmp_path) as stage:
        await enter(stage, "first", "second")
        assert shown(stage) == ["1. second"]
        gate.set()
        await stage.until(lambda: len(stage.texts()) == 4)
        await stage.settle()
        assert asked(stage) == ["first", "second"]


async def test_what_waits_for_a_message_that_cannot_be_sent_is_given_back_behind_it(tmp_path: Path) -> None:
    async with on_stage(tmp_path, FakeEngine(manual=True)) as stage:
        (tmp_path / "gone.txt").write_text("text")
        await streaming(stage, "first")
        await enter(stage, "second @gone.txt", "third")
        (tmp_path / "gone.txt").write_bytes(b"\0")
        await answered(stage, 1)
        await stage.until(lambda: prompt(stage) == "second @gone.txt\n\nthird")
        assert "not a text file" in stage.notices
        assert (shown(stage), stage.app.chats.active.busy) == ([], False)


async def test_files_are_read_when_their_message_is_sent(tmp_path: Path) -> None:
    async with on_stage(tmp_path, FakeEngine(manual=True)) as stage:
        (tmp_path / "notes.txt").write_text("of before")
        await streaming(stage, "first")
        await enter(stage, "read @notes.txt")
        (tmp_path / "notes.txt").write_text("of now")
        await answered(stage, 1)
        await stage.until(lambda: len(asked(stage)) == 2)
        assert ("of now" in asked(stage)[1], "of before" in asked(stage)[1]) == (True, False)
        await answered(stage, 2)
        await stage.settle()


async def test_the_view_stays_where_the_user_reads_when_what_waited_is_sent(tmp_path: Path) -> None:
    async with on_stage(tmp_path, FakeEngine(manual=True), size=(80, 24)) as stage:
        await streaming(stage, "first")
        stage.engine.emit(stage.engine.last, *["line\n\n"] * 60)
        await enter(stage, "second")
        transcript = stage.app.chat_screen.transcript
        await stage.until(lambda: transcript.max_scroll_y > 40 and not transcript.working)
        await stage.press("pageup", "pageup")
        await stage.until(lambda: transcript.scroll_y < transcript.max_scroll_y - 10)
        place = transcript.scroll_y
        await answered(stage, 1)
        await answered(stage, 2)
        await stage.settle()
        assert (len(asked(stage)), transcript.scroll_y) == (2, place)


async def test_two_chats_have_a_queue_each(tmp_path: Path) -> None:
    async with on_stage(tmp_path, FakeEngine(manual=True)) as stage:
        engine = stage.engine
        await streaming(stage, "one")
        first = engine.last
        await enter(stage, "one more")
        await stage.press("ctrl+t")
        assert shown(stage) == []
        await streaming(stage, "two")
        second = engine.last
        await enter(stage, "two more")
        assert shown(stage) == ["1. two more"]
        engine.finish(first)  # of the chat that is not shown
        await stage.until(lambda: len(engine.requests) == 3)
        assert (asked(stage), shown(stage)) == (["two"], ["1. two more"])
        engine.finish(engine.last)
        await stage.press("ctrl+pageup")
        await stage.until(lambda: not stage.app.chats.active.busy)
        assert (asked(stage), shown(stage)) == (["one", "one more"], [])
        engine.finish(second)
        await answered(stage, 4)
        await stage.settle()
        assert [len(session.conversation.ids) for session in stage.app.chats] == [4, 4]


# Given back --------------------------------------------------------------------------------------


async def test_esc_gives_back_all_that_waits_before_what_is_typed(tmp_path: Path) -> None:
    async with on_stage(tmp_path, FakeEngine(manual=True)) as stage:
        await streaming(stage, "first")
        await enter(stage, "second", "third")
        await stage.type("fourth")
        await stage.press("escape")
        await stage.settle()
        assert (prompt(stage), shown(stage)) == ("second\n\nthird\n\nfourth", [])
        assert "2 messages that waited are in the prompt again" in stage.notices
        assert (replies(stage), asked(stage)) == (1, ["first"])


async def test_what_is_entered_after_the_stop_is_sent_when_it_has_stopped(tmp_path: Path) -> None:
    async with on_stage(tmp_path, FakeEngine(manual=True)) as stage:
        await streaming(stage, "first")
        await enter(stage, "second")
        session = stage.app.chats.active
        session.stop()  # the reply ends a moment later
        assert session.stopping
        stage.app.chat_screen.prompt.action_send()
        assert shown(stage) == ["1. second"]
        await answered(stage, 2)
        await stage.settle()
        assert (asked(stage), prompt(stage)) == (["first", "second"], "")


@pytest.mark.parametrize("reason", [FinishReason.ERROR, FinishReason.ABORT])  # ABORT: the model was unloaded
async def test_a_reply_that_does_not_end_by_itself_gives_back_what_waits(
    tmp_path: Path, reason: FinishReason
) -> None:
    async with on_stage(tmp_path, FakeEngine(manual=True)) as stage:
        await streaming(stage, "first")
        await enter(stage, "second")
        stage.engine.finish(stage.engine.last, reason, error="out of memory" if reason == "error" else None)
        await stage.until(lambda: prompt(stage) == "second")
        assert "the message that waited is in the prompt again" in stage.notices
        assert (replies(stage), shown(stage)) == (1, [])


async def test_what_another_chat_gives_back_is_its_own_draft(tmp_path: Path) -> None:
    async with on_stage(tmp_path, FakeEngine(manual=True)) as stage:
        await streaming(stage, "first")
        await enter(stage, "second")
        stream = stage.engine.last
        await stage.press("ctrl+t")
        await stage.type("elsewhere")
        stage.engine.finish(stream, FinishReason.ERROR, error="out of memory")
        await stage.until(lambda: "waited is in the prompt of “first” again" in stage.notices)
        assert prompt(stage) == "elsewhere"
        await stage.press("ctrl+pageup")
        assert prompt(stage) == "second"


async def test_a_message_that_does_not_fit_stands_before_those_that_waited_for_its_reply(
    tmp_path: Path,
) -> None:
    async with on_stage(tmp_path, FakeEngine(context=60), size=(80, 24)) as stage:
        await enter(stage, "word " * 80)
        await stage.until(lambda: stage.screen == "Question")
        stage.app.attempt(_entered(stage, "second"))
        await stage.until(lambda: stage.app.chats.active.queue)
        await stage.press("end", "enter")  # take the message back
        await stage.until(lambda: not stage.app.chats.active.busy and prompt(stage))
        assert prompt(stage) == "word " * 80 + "\n\nsecond"


async def _entered(stage: Stage, text: str) -> None:
    """As if Enter had come while the question was on its way."""
    stage.app.chat_screen.prompt.load_text(text)
    stage.app.chat_screen.prompt.action_send()


# Kept --------------------------------------------------------------------------------------------


async def test_what_waits_is_saved_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat.ui.open_chats.SAVE_SECONDS", 3600)
    async with on_stage(tmp_path, FakeEngine(manual=True)) as stage:
        await streaming(stage, "first")
        await enter(stage, "second", "third")
        history = stage.app.history
        await stage.until(lambda: history.chats.list()[0].draft == "second\n\nthird", "as for kill -9")


async def test_what_waits_at_the_end_is_the_draft_of_the_next_start(tmp_path: Path) -> None:
    async with on_stage(tmp_path, FakeEngine(manual=True)) as stage:
        await streaming(stage, "first")
        await enter(stage, "second", "third")
        await stage.type("fourth")
    async with on_stage(tmp_path, FakeEngine(manual=True)) as stage:
        assert (prompt(stage), shown(stage)) == ("second\n\nthird\n\nfourth", [])
        assert (asked(stage), stage.engine.requests) == (["first"], [])


async def test_what_waits_in_a_closed_tab_is_its_draft_when_it_is_opened_again(tmp_path: Path) -> None:
    async with on_stage(tmp_path, FakeEngine(manual=True)) as stage:
        await streaming(stage, "first")
        await enter(stage, "second", "third")
        session = stage.app.chats.active
        await stage.press("ctrl+w")
        await stage.until(lambda: session not in stage.app.chats)
        stage.app.run_registered("tab.reopen")
        await stage.until(lambda: prompt(stage) == "second\n\nthird")
        assert (asked(stage), replies(stage)) == (["first"], 1)


async def test_what_waits_for_a_message_that_the_disk_does_not_take_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(_: ChatSession, __: str) -> None:
        raise HistoryFull("the disk is full")

    async with on_stage(tmp_path, FakeEngine(manual=True)) as stage:
        await streaming(stage, "first")
        await enter(stage, "second", "third")
        monkeypatch.setattr(ChatSession, "send", full)
        await answered(stage, 1)
        await stage.until(lambda: prompt(stage) == "second\n\nthird")
        assert stage.app.chats.active.unsent == "second\n\nthird"


# Taken back --------------------------------------------------------------------------------------


async def test_up_in_an_empty_prompt_takes_the_last_one_back(tmp_path: Path) -> None:
    async with on_stage(tmp_path, FakeEngine(manual=True)) as stage:
        await streaming(stage, "first")
        await enter(stage, "second", "third")
        await stage.press("up")
        assert (prompt(stage), shown(stage)) == ("third", ["1. second"])
        await stage.press("up")  # not empty any more: what was sent before
        assert (prompt(stage), shown(stage)) == ("first", ["1. second"])
        await stage.press("down")
        assert prompt(stage) == "third"
        await answered(stage, 1)
        await answered(stage, 2)
        await stage.settle()
        assert (asked(stage), prompt(stage)) == (["first", "second"], "third")


async def test_up_is_what_was_sent_before_where_nothing_waits(tmp_path: Path) -> None:
    async with on_stage(tmp_path, FakeEngine(manual=True)) as stage:
        await streaming(stage, "first")
        await stage.press("up")
        assert prompt(stage) == "first"


# Beside other things -----------------------------------------------------------------------------


async def test_an_empty_prompt_lets_nothing_wait(tmp_path: Path) -> None:
    async with on_stage(tmp_path, FakeEngine(manual=True)) as stage:
        await streaming(stage, "first")
        await stage.press("enter")
        await enter(stage, "  ")
        assert not stage.app.chats.active.queue


async def test_a_command_does_not_wait(tmp_path: Path) -> None:
    async with on_stage(tmp_path, FakeEngine(manual=True)) as stage:
        await streaming(stage, "first")
        await enter(stage, "second")
        await enter(stage, "/retry ")
        await stage.until(lambda: "a reply is on its way" in stage.notices)
        assert (prompt(stage).strip(), shown(stage)) == ("/retry", ["1. second"])


async def test_an_edit_is_refused_while_a_reply_comes_and_stays_an_edit_when_what_waits_is_given_back(
    tmp_path: Path,
) -> None:
    async with on_stage(tmp_path, FakeEngine(manual=True)) as stage:
        await streaming(stage, "first")
        await enter(stage, "second")
        stage.app.run_registered("message.edit_last")
        message = stage.app.chats.active.editing
        await stage.type(" one")
        await stage.press("enter")
        await stage.until(lambda: "a reply is on its way" in stage.notices)
        assert (prompt(stage), shown(stage)) == ("first one", ["1. second"])
        stage.engine.finish(stage.engine.last, FinishReason.ERROR, error="out of memory")
        await stage.settle()
        assert (prompt(stage), shown(stage), stage.app.chats.active.editing) == ("first one", [], message)
        await stage.press("escape")
        assert prompt(stage) == "second"


async def test_up_takes_nothing_into_an_edit(tmp_path: Path) -> None:
    async with on_stage(tmp_path, FakeEngine(manual=True)) as stage:
        await streaming(stage, "first")
        await enter(stage, "second")
        stage.app.run_registered("message.edit_last")
        stage.app.chat_screen.prompt.load_text("")
        await stage.press("up")
        assert (prompt(stage) != "second", shown(stage)) == (True, ["1. second"])


async def test_what_waits_is_sent_while_an_earlier_message_is_edited(tmp_path: Path) -> None:
    async with on_stage(tmp_path, FakeEngine(manual=True)) as stage:
        await streaming(stage, "first")
        await enter(stage, "second")
        stage.app.run_registered("message.edit_last")
        await answered(stage, 1)
        await answered(stage, 2)
        await stage.settle()
        assert (asked(stage), prompt(stage)) == (["first", "second"], "first")
        assert stage.app.chats.active.editing


@pytest.mark.parametrize(("size", "height"), [((60, 24), 3), ((60, 20), 1)])
async def test_many_long_and_hostile_messages_take_three_lines_and_one_on_a_low_screen(
    tmp_path: Path, size: tuple[int, int], height: int
) -> None:
    async with on_stage(tmp_path, FakeEngine(manual=True), size=size) as stage:
        await streaming(stage, "first")
        for text in ("red \x1b[31m\u202e\nand blue", "漢字" * 400, "c", "d", "e"):
            stage.app.chat_screen.prompt.load_text(text)
            await stage.press("enter")
        lines = shown(stage)
        assert lines[0] == "1. red [31m and blue"
        assert lines[1].startswith("2. 漢字") and lines[2:] == ["and 3 more"]
        assert stage.app.chat_screen.query_one(QueuedMessages).size.height == height


async def test_what_waits_above_the_prompt(
    tmp_path: Path, snapshot: SnapshotAssertion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextArea.cursor_blink, "_default", False)
    async with on_stage(tmp_path, FakeEngine(manual=True), size=(80, 24)) as stage:
        await streaming(stage, "What is a monad?")
        await enter(
            stage, "And a functor, in a sentence that is longer than the line has room for, as it happens?"
        )
        await enter(stage, "漢字\nin two lines", "An applicative?", "Thanks")
        transcript = stage.app.chat_screen.transcript
        await stage.until(lambda: "takes the last back" in str(stage.app.chat_screen.prompt.border_title))
        await stage.until(lambda: not transcript.working)
        svg = stage.app.export_screenshot()
        assert snapshot(name="queue", extension_class=SVGImageExtension) == svg
        await stage.type("up moves the cursor now")
        await stage.until(
            lambda: str(stage.app.chat_screen.prompt.border_title).endswith("4 wait for the reply")
        )
        stage.engine.finish(stage.engine.last, FinishReason.ERROR, error="enough")
        await stage.until(lambda: not shown(stage))


async def test_a_message_is_not_lost_between_the_queue_and_its_sending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    async with on_stage(tmp_path, FakeEngine(manual=True)) as stage:
        await streaming(stage, "first")
        await enter(stage, "second", "third")
        monkeypatch.setattr("nanochat.ui.sending.attach", lambda text, folder: (gate.wait(60) and text, ()))
        await answered(stage, 1)
        session = stage.app.chats.active
        await stage.until(lambda: session.reply is None)
        assert session.unsent == "second\n\nthird"
        closing = asyncio.create_task(session.close())
        await stage.pilot.pause()
        gate.set()
        await closing
        assert (asked(stage), session.busy) == (["first", "second"], False)
        assert (session.unsent, prompt(stage)) == ("third", "third")


@pytest.mark.parametrize("seed", range(2))
async def test_whatever_happens_no_message_is_lost_and_nothing_waits_for_nothing(
    tmp_path: Path, seed: int
) -> None:
    """Every order of what can come between Enter and the reply's end, from fixed seeds."""
    dice = random.Random(seed)
    engine = FakeEngine(manual=True)
    keys = ("enter", "escape", "up", "down", "ctrl+t", "ctrl+pageup", "ctrl+w", "ctrl+r")
    async with on_stage(tmp_path, engine, size=(80, 24)) as stage:
        texts, story, app = list[str](), list[str](), stage.app
        for number in range(60):
            done = dice.choice(("write", "write", "key", "key", "end", "end", "fail", "edit", "reopen"))
            key, under_way = (
                dice.choice(keys),
                [each for each in engine.streams.values() if not each.finished],
            )
            story.append(key if done == "key" else done)
            if done == "write":
                texts.append(f"text {number} of {seed};")
                await stage.type(texts[-1])
                await stage.press("enter")
            elif done == "key":
                await stage.press(key)
            elif done == "edit":
                app.run_registered("message.edit_last")
            elif done == "reopen":
                app.run_registered("tab.reopen")
            elif under_way:
                failed = done == "fail"
                engine.finish(
                    under_way[0], FinishReason.ERROR if failed else FinishReason.STOP, error="no" * failed
                )
            app.chat_screen.keep_draft()
            kept = kept_texts(stage)
            assert [text for text in texts if text not in kept] == [], story
            for session in app.chats:
                before = session.reply is not None or session.outgoing
                assert before or not session.queue, story


def kept_texts(stage: Stage) -> str:
    """All that the user wrote: sent, unsent, and what Up brings back."""
    app = stage.app
    with app.history.database.read() as connection:
        sent = [row[0] for row in connection.execute("SELECT content FROM messages")]
    tabs = [session.unsent for session in app.chats]
    drafts = [chat.draft for chat in app.history.chats.list()]
    return "\n".join(
        [*tabs, *drafts, *(tab.draft for _, tab in app.chats._closed), *app.inputs.entries, *sent]
    )
