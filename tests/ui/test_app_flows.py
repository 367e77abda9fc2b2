"""The whole application on a stage: what a user does, with the real history and a scripted engine."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from time import monotonic

import pytest
from busy import BUSY
from fake_engine import MODEL, OTHER, FakeEngine, FakeLanguage
from stage import Stage, on_stage
from textual import events
from textual.command import CommandList
from textual.widgets import Input, Static

from nanochat.errors import EngineDead, Offline, UnsupportedModel
from nanochat.history import History
from nanochat.hub import LocalModel
from nanochat.settings import Settings
from nanochat.ui import reply as reply_module
from nanochat.ui.screens.question import Question, TextQuestion
from nanochat.ui.services import TabState
from nanochat.ui.widgets.completions import Completions
from nanochat.ui.widgets.paged_list import PagedList
from nanochat.ui.widgets.sidebar import ChatList
from nanochat.ui.widgets.welcome import Welcome


async def test_two_turns_and_the_figures_under_the_reply(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("hello you")
        await stage.ask("again")
        assert stage.texts() == ["hello you", "Hello there.", "again", "Hello there."]
        footer = stage.app.chats.active.conversation.messages[-1].footer
        assert re.fullmatch(r"100 tok/s · 3 tok · TTFT \d\.\d\d s · reused \d+ %", footer)


async def test_a_message_sent_before_the_model_is_there_waits_and_goes(tmp_path: Path) -> None:
    async with on_stage(tmp_path, FakeEngine(load_at_once=False)) as stage:
        await stage.send("early")
        assert stage.statuses() == ["done", "queued"]
        await stage.until(lambda: "waits for" in stage.app.chats.active.conversation.messages[-1].footer)
        stage.engine.finish_load()
        await stage.settle()
        assert stage.texts() == ["early", "Hello there."]


async def test_typed_before_the_chats_are_there_is_not_lost(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.type("a draft")
        await stage.press("ctrl+t")
        await stage.press("ctrl+pageup")
        assert stage.app.chat_screen.prompt.text == "a draft"


async def test_what_is_typed_around_a_new_tab_lands_where_it_was_meant(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        for key in ("a", "b", "ctrl+t", "c", "d"):  # all at once, as when the machine was busy
            stage.app.post_message(events.Key(key, key if len(key) == 1 else None))
        await stage.until(lambda: stage.app.chat_screen.prompt.text == "cd")
        await stage.press("ctrl+pageup")
        assert stage.app.chat_screen.prompt.text == "ab"


async def test_two_tabs_stream_at_once_and_the_hidden_one_is_whole_when_shown(tmp_path: Path) -> None:
    engine = FakeEngine(manual=True)
    async with on_stage(tmp_path, engine) as stage:
        await stage.send("first")
        await stage.until(lambda: len(engine.requests) == 1)
        await stage.press("ctrl+t")
        await stage.send("second")
        await stage.until(lambda: len(engine.requests) == 2)
        one, two = (engine.streams[request.request_id] for request in engine.requests)
        engine.emit(one, "from ", "one")
        engine.emit(two, "from ", "two")
        await stage.until(lambda: stage.texts()[-1] == "from two")
        assert [session.state for session in stage.app.chats] == [TabState.STREAMING, TabState.STREAMING]
        engine.finish(one)
        await stage.until(lambda: stage.app.chats.busy == [stage.app.chats.active])
        assert [session.state for session in stage.app.chats] == [TabState.UNSEEN, TabState.STREAMING]
        await stage.press("alt+1")
        assert stage.texts() == ["first", "from one"]
        assert stage.app.chats.active.state is TabState.IDLE
        engine.finish(two)
        await stage.settle()


async def test_a_clock_that_is_set_back_while_a_reply_streams_hangs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(manual=True)
    async with on_stage(tmp_path, engine) as stage:
        await stage.send("what time is it?")
        await stage.until(lambda: engine.requests)
        engine.emit(engine.last, "before ")
        await stage.until(lambda: stage.texts()[-1] == "before ")
        yesterday = time.time() - 86_400
        monkeypatch.setattr(time, "time", lambda: yesterday)
        stage.app.history.database.clock = time.time
        engine.emit(engine.last, "after ")
        await stage.until(lambda: stage.texts()[-1] == "before after ", "it streams on")
        await stage.until(lambda: saved(stage) == "before after ", "it is saved on")
        pressed = monotonic()
        await stage.press("escape")
        await stage.settle()
        assert monotonic() - pressed < BUSY
        await stage.send("and now?")
        await stage.until(lambda: len(engine.requests) == 2)
        engine.finish(engine.last)
        await stage.settle()
        assert stage.texts()[:3] == ["what time is it?", "before after ", "and now?"]


def saved(stage: Stage) -> str:
    """The reply that is being written, as it is on disk."""
    chat = stage.app.chats.active.chat
    return "" if chat is None else stage.app.history.messages.open(chat.id).running[0].content


async def test_the_figures_of_the_prompt_are_there_from_the_first_token_on(tmp_path: Path) -> None:
    engine = FakeEngine(manual=True)
    async with on_stage(tmp_path, engine, size=(200, 40)) as stage:
        await stage.send("a prompt of six words here")
        await stage.until(lambda: engine.requests)
        engine.prefill(engine.last, 4)
        await stage.until(lambda: "prefill – 4/10" in stage.status)
        engine.emit(engine.last, "one ")
        await stage.until(lambda: "prefill 50/s" in stage.status)
        assert "TTFT 0.21 s" in stage.status
        assert "reused 5/10" in stage.status
        engine.finish(engine.last)
        await stage.settle()
        assert "prefill 50/s" in stage.status


async def test_the_prompts_frame_counts_the_reply_that_streams(tmp_path: Path) -> None:
    engine = FakeEngine(manual=True)
    async with on_stage(tmp_path, engine) as stage:
        await stage.send("a prompt of six words here")
        await stage.until(lambda: engine.requests)
        engine.emit(engine.last, *["word "] * 20)
        await stage.until(lambda: "ctx 30/1.0k 3 %" in stage.status)
        frame = stage.app.chat_screen.prompt
        await stage.until(lambda: str(frame.border_subtitle) == "30/1.0k 3 %", "the frame says the same")
        engine.finish(engine.last)
        await stage.settle()


async def test_esc_stops_and_keeps_the_text(tmp_path: Path) -> None:
    engine = FakeEngine(manual=True)
    async with on_stage(tmp_path, engine) as stage:
        await stage.send("count")
        await stage.until(lambda: engine.requests)
        engine.emit(engine.last, "one ", "two ")
        await stage.until(lambda: stage.texts()[-1] == "one two ")
        await stage.press("escape")
        await stage.settle()
        assert engine.cancelled == [engine.requests[0].request_id]
        assert (stage.texts()[-1], stage.statuses()[-1]) == ("one two ", "stopped")


async def test_closing_a_tab_stops_and_saves_and_reopen_brings_it_back(tmp_path: Path) -> None:
    engine = FakeEngine(manual=True)
    async with on_stage(tmp_path, engine) as stage:
        await stage.send("count")
        await stage.until(lambda: engine.requests)
        engine.emit(engine.last, "one ", "two ")
        await stage.press("ctrl+w")
        await stage.until(lambda: stage.app.chats.active.chat is None)
        await stage.type("/reopen")
        await stage.press("enter")
        await stage.until(lambda: stage.texts() == ["count", "one two "])
        assert stage.statuses()[-1] == "stopped"


async def test_closing_a_tab_goes_back_to_where_it_was_opened_unless_another_was_shown_since(
    tmp_path: Path,
) -> None:
    async with on_stage(tmp_path) as stage:
        for text in ("one", "two", "three"):
            await stage.ask(text)
            if text != "three":
                await stage.press("ctrl+t")
        await stage.press("alt+1", "ctrl+t", "ctrl+w")
        await stage.until(lambda: stage.texts()[:1] == ["one"])
        await stage.press("alt+2", "alt+1", "ctrl+w")
        await stage.until(lambda: stage.texts()[:1] == ["two"])


async def test_a_deleted_paste_is_no_part_of_what_is_written_next(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("hello")
        prompt = stage.app.chat_screen.prompt
        stage.app.post_message(events.Paste("\n".join(f"line {number}" for number in range(120))))
        await stage.until(lambda: prompt.text.startswith("[pasted 120 lines"))
        await stage.press("ctrl+u")
        await stage.until(lambda: not prompt.text)
        await stage.type("/pin")
        await stage.press("enter")
        await stage.until(
            lambda: stage.app.chats.active.chat is not None and stage.app.chats.active.chat.pinned
        )
        assert "/pin" not in stage.texts()


async def test_what_the_panel_refused_is_said_for_its_own_chat_and_until_it_closes(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("hello")

        def said() -> str:
            return str(stage.app.chat_screen.query_one("#panel-error", Static).render())

        async def refuse() -> None:
            line = stage.app.chat_screen.query_one("#panel-temperature", Input)
            line.focus()
            line.value = "5000"
            await stage.press("enter")
            await stage.until(lambda: "5000" in said())

        await stage.press("f6")
        await stage.until(lambda: bool(stage.app.chat_screen.query("#panel-error")))
        await refuse()
        await stage.press("f6", "f6")
        await stage.until(lambda: not said())
        await refuse()
        await stage.press("ctrl+t")
        await stage.until(lambda: not said())


async def test_tabs_and_drafts_come_back_at_the_next_start(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("first chat")
        await stage.press("ctrl+t")
        await stage.ask("second chat")
        await stage.type("an unsent thought")
        await stage.press("ctrl+t")
        await stage.type("only a draft")
    async with on_stage(tmp_path) as stage:
        assert len(stage.app.chats) == 3
        assert stage.app.chat_screen.prompt.text == "only a draft"
        await stage.press("alt+2")
        await stage.until(lambda: stage.texts() == ["second chat", "Hello there."])
        assert stage.app.chat_screen.prompt.text == "an unsent thought"
        await stage.press("alt+1")
        await stage.until(lambda: stage.texts() == ["first chat", "Hello there."])


async def test_alt_up_selects_and_e_edits_as_a_new_version(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("a joke")
        await stage.press("alt+up", "alt+up")
        await stage.press("e")
        assert stage.app.chat_screen.prompt.text == "a joke"
        await stage.type(" please")
        await stage.press("enter")
        await stage.until(lambda: stage.texts() == ["a joke please", "Hello there."])
        await stage.settle()
        assert stage.app.chats.active.conversation.messages[0].variants == 2


async def test_esc_leaves_an_edit_without_changing_anything(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("a joke")
        await stage.type("/edit")
        await stage.press("enter")
        await stage.until(lambda: stage.app.chats.active.editing)
        await stage.press("escape")
        assert (stage.app.chat_screen.prompt.text, stage.app.chats.active.editing) == ("", "")
        assert stage.texts() == ["a joke", "Hello there."]


async def test_a_fork_opens_in_a_tab_of_its_own(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("one")
        await stage.ask("two")
        await stage.press("alt+up", "alt+up", "alt+up", "f")
        await stage.until(lambda: len(stage.app.chats) == 2)
        await stage.until(lambda: stage.texts() == ["one", "Hello there."])
        assert [session.title for session in stage.app.chats] == ["one", "Fork · one"]
        await stage.press("alt+1")
        assert len(stage.texts()) == 4


async def test_a_deleted_chat_comes_back_with_undo(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("keep me")
        await stage.type("/delete")
        await stage.press("enter")
        await stage.until(lambda: not stage.app.history.chats.list())
        await stage.type("/undo")
        await stage.press("enter")
        await stage.until(lambda: stage.texts() == ["keep me", "Hello there."])
        assert len(stage.app.history.chats.list()) == 1


async def test_a_closed_tab_of_which_nothing_was_sent_comes_back_with_its_text(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.type("never sent")
        await stage.press("ctrl+w")
        await stage.until(lambda: stage.app.chat_screen.prompt.text == "")
        await stage.type("/reopen")
        await stage.press("enter")
        await stage.until(lambda: stage.app.chat_screen.prompt.text == "never sent")
        assert len(stage.app.chats) == 1


async def test_what_was_typed_last_stays_with_the_chat_of_a_closed_tab(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("a chat")
        await stage.type("and a draft")
        await stage.press("ctrl+w")  # before what is typed is saved by itself
        await stage.until(lambda: not stage.texts())
        await stage.type("/reopen")
        await stage.press("enter")
        await stage.until(lambda: stage.app.chat_screen.prompt.text == "and a draft")


async def test_the_block_cursor_stays_at_its_place_when_the_message_there_is_another(tmp_path: Path) -> None:
    replies = iter(("one", "two", "three", "four"))
    engine = FakeEngine(script=lambda request: (next(replies),))
    async with on_stage(tmp_path, engine) as stage:
        await stage.ask("count")
        for text in ("two", "three"):
            await stage.press("ctrl+r")
            await stage.until(lambda text=text: stage.texts() == ["count", text])
            await stage.settle()
        await stage.press("alt+up")
        for key, text in (("[", "two"), ("[", "one"), ("]", "two"), ("r", "four")):
            await stage.press({"[": "left_square_bracket", "]": "right_square_bracket"}.get(key, key))
            await stage.until(lambda text=text: stage.texts() == ["count", text], text)
            await stage.settle()
        cursor = stage.app.chat_screen.transcript.cursor
        assert cursor is not None and cursor.message_id == stage.app.chats.active.conversation.ids[-1]


async def test_r_at_the_start_of_a_long_reply_goes_to_the_new_one_and_follows_it(tmp_path: Path) -> None:
    replies = iter("\n".join(f"- {name} {line}" for line in range(90)) for name in ("one", "two"))
    engine = FakeEngine(script=lambda request: (next(replies),))
    async with on_stage(tmp_path, engine) as stage:
        await stage.ask("count")
        transcript = stage.app.chat_screen.transcript
        await stage.press("alt+up")
        await stage.until(lambda: not transcript.following)
        await stage.press("r")
        await stage.until(lambda: "- two 89" in stage.texts()[-1])
        await stage.settle()
        assert transcript.following


async def test_a_question_stays_on_screen_when_its_other_version_has_a_longer_reply(tmp_path: Path) -> None:
    replies = iter(("\n".join(f"- {line}" for line in range(90)), "short"))
    async with on_stage(tmp_path, FakeEngine(script=lambda request: (next(replies),))) as stage:
        await stage.ask("count")
        await stage.type("/edit")
        await stage.press("enter")
        await stage.until(lambda: stage.app.chat_screen.prompt.text == "count")
        await stage.type(" less")
        await stage.press("enter")
        await stage.until(lambda: stage.texts() == ["count less", "short"])
        await stage.settle()
        transcript = stage.app.chat_screen.transcript
        await stage.press("alt+up", "alt+up", "left_square_bracket")
        await stage.until(lambda: stage.texts()[0] == "count")
        await stage.until(lambda: transcript.scroll_y == 0, "the question is on screen")
        assert transcript.cursor is not None and not transcript.following


async def test_a_reply_that_is_still_coming_says_so_when_it_is_forked(tmp_path: Path) -> None:
    engine = FakeEngine()
    async with on_stage(tmp_path, engine) as stage:
        engine.gate.clear()
        await stage.type("hello you")
        await stage.press("enter")
        await stage.until(lambda: len(stage.texts()) == 2)
        await stage.press("alt+up", "f")
        await stage.until(lambda: "this reply is still coming" in stage.notices)
        engine.gate.set()
        await stage.settle()


async def test_after_a_delete_the_block_cursor_is_at_what_is_left(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("first")
        await stage.ask("second")
        await stage.press("alt+up", "alt+up", "d")
        await stage.until(lambda: stage.texts() == ["first", "Hello there."])
        await stage.press("u")
        await stage.until(lambda: len(stage.texts()) == 4, "u brings it back")
        await stage.press("alt+down", "alt+down", "alt+up", "d")
        await stage.until(lambda: stage.texts() == ["first", "Hello there."])
        await stage.press("slash")
        await stage.until(lambda: stage.app.chat_screen.prompt.text == "/", "a command begins in the prompt")
        await stage.press("backspace", "alt+up", "d")
        await stage.until(lambda: stage.texts() == ["first"])
        await stage.press("d")
        await stage.until(lambda: stage.texts() == [] and stage.app.chat_screen.prompt.has_focus)
        await stage.type("/undo")
        await stage.press("enter")
        await stage.until(lambda: stage.texts() == ["first"])


async def test_the_sidebar_finds_a_word_of_an_old_chat_and_opens_it(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("about the marmalade")
        await stage.press("ctrl+t")
        await stage.ask("something else")
        await stage.press("ctrl+f")
        await stage.until(lambda: stage.app.focused and stage.app.focused.id == "sidebar-search")
        await stage.type("marmal")
        await stage.press("enter")  # at once: the search has not found anything yet
        await stage.until(lambda: stage.texts() == ["about the marmalade", "Hello there."])


@pytest.mark.parametrize("keys", [("enter",), ("down", "enter"), ("down", "down", "enter")])
async def test_enter_in_the_search_goes_to_the_message_also_from_the_line_of_its_chat(
    tmp_path: Path, keys: tuple[str, ...]
) -> None:
    async with on_stage(tmp_path) as stage:
        for text in ("about the weather", "about the marmalade", *("something else\n\n" * 30,) * 3):
            await stage.ask(text)
        transcript = stage.app.chat_screen.transcript
        await stage.press("ctrl+f")
        await stage.until(lambda: stage.app.focused and stage.app.focused.id == "sidebar-search")
        await stage.type("marmal")
        if len(keys) > 1:
            chats = stage.app.chat_screen.query_one(ChatList)
            await stage.until(
                lambda: [str(each.prompt) for each in chats.options][1:] == ["  about the marmalade"]
            )
        await stage.press(*keys)
        found = stage.app.chats.active.conversation.ids[2]
        await stage.until(lambda: transcript.cursor and transcript.cursor.message_id == found)
        await stage.until(lambda: transcript.scroll_offset.y < transcript.max_scroll_y - 10)


async def test_a_found_message_is_shown_also_where_it_was_replaced(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("about the marmalade")
        await stage.type("/edit")
        await stage.press("enter")
        await stage.until(lambda: stage.app.chats.active.editing)
        await stage.press("ctrl+u")
        await stage.ask("about the honey")
        assert stage.texts() == ["about the honey", "Hello there."]
        await stage.press("ctrl+f")
        await stage.type("marmal")
        await stage.press("down")
        chats = stage.app.chat_screen.query_one(ChatList)
        shown = stage.app.chat_screen.sides.list
        await stage.until(
            lambda: chats.option_count == 2 and shown._query == "marmal", "all of it is searched"
        )
        await stage.press("down", "enter")
        await stage.until(lambda: stage.texts() == ["about the marmalade", "Hello there."])
        first = stage.app.chats.active.conversation.ids[0]
        await stage.until(
            lambda: (cursor := stage.app.chat_screen.transcript.cursor) and cursor.message_id == first
        )


async def test_on_a_narrow_screen_the_list_gives_way_to_the_chat(tmp_path: Path) -> None:
    async with on_stage(tmp_path, size=(80, 24)) as stage:
        await stage.ask("about the marmalade")
        await stage.press("ctrl+t")
        sides = stage.app.chat_screen.sides
        for leave in ("enter", "escape", "f6", "ctrl+g"):
            await stage.press("f2")
            await stage.until(lambda: sides.list.has_focus_within)
            assert sides.list.region.width == 80
            await stage.press(leave)
            await stage.until(lambda: not sides.list.display)
        assert stage.texts() == ["about the marmalade", "Hello there."]
        await stage.press("f6")
        await stage.until(lambda: sides.panel.has_focus_within)
        await stage.press("escape")
        await stage.until(lambda: stage.app.chat_screen.prompt.has_focus and not sides.panel.display)


async def test_no_terminal_is_too_small_with_both_sides_open(tmp_path: Path) -> None:
    async with on_stage(tmp_path, size=(200, 40)) as stage:
        await stage.ask("hello you")
        await stage.press("f2", "f6")
        for width, height in ((80, 24), (44, 10), (8, 3), (1, 1), (200, 40)):
            await stage.pilot.resize_terminal(width, height)
            await stage.pilot.pause()
        assert stage.texts() == ["hello you", "Hello there."]


async def test_rename_asks_and_the_tab_shows_the_title(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("hello you")
        await stage.type("/rename")
        await stage.press("enter")
        await stage.until(lambda: isinstance(stage.app.screen, TextQuestion))
        await stage.press(*["backspace"] * 9)
        await stage.type("greetings")
        await stage.press("enter")
        await stage.until(lambda: stage.app.chats.active.title == "greetings")


async def test_a_chat_gets_its_title_from_the_model_in_idle_time(tmp_path: Path) -> None:
    engine = FakeEngine(
        script=lambda request: ("On ", "saying ", "hello") if request.priority > 100 else ("Hi",)
    )
    async with on_stage(tmp_path, engine) as stage:
        await stage.ask("say hello to me")
        await stage.until(lambda: stage.app.chats.active.title == "On saying hello")
        assert engine.requests[-1].priority > engine.requests[0].priority


async def test_after_a_reply_the_next_turns_beginning_is_read_in_idle_time(tmp_path: Path) -> None:
    engine = FakeEngine()
    async with on_stage(tmp_path, engine) as stage:
        await stage.ask("hi")
        await stage.until(lambda: len(engine.requests) == 2)
        assert engine.requests[1].params.max_tokens == 0
        assert engine.requests[1].priority > 0


async def test_slash_commands_complete_and_an_unknown_one_says_so_and_stays(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.type("/num")
        completions = stage.app.chat_screen.query_one(Completions)
        await stage.until(lambda: completions.is_open)
        await stage.press("enter")
        await stage.until(lambda: stage.screen == "Page")
        await stage.press("escape")
        await stage.type("/nonsense")
        await stage.press("enter")
        await stage.until(lambda: "no command /nonsense" in stage.notices)
        assert stage.app.chat_screen.prompt.text == "/nonsense"
        assert not stage.engine.requests


async def test_set_changes_sampling_from_the_next_turn_and_refuses_what_is_out_of_range(
    tmp_path: Path,
) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.type("/set temperature 0.5")
        await stage.press("enter")
        await stage.until(lambda: stage.app.chats.active.settings.temperature == 0.5)
        await stage.until(lambda: "temperature is 0.5 from the next turn on" in stage.notices)
        await stage.type("/set top_p 7")
        await stage.press("enter")
        await stage.until(lambda: "top_p must be above 0 and at most 1" in stage.notices)
        stage.app.chat_screen.prompt.clear()
        await stage.ask("hello you")
        assert stage.engine.requests[0].params.temperature == 0.5


@pytest.mark.parametrize("size", [(80, 24), (40, 12)])
async def test_the_panel_says_in_sight_that_a_value_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    async with on_stage(tmp_path, size=size) as stage:
        await stage.press("f6")
        await stage.until(lambda: stage.app.chat_screen.sides.panel.has_focus_within)
        panel = stage.app.chat_screen.sides.panel
        line, last = panel.query_one("#panel-temperature"), panel.query_one("#panel-stop")
        line.focus()
        await stage.until(lambda: line.has_focus)
        await stage.type("hot")
        last.focus()
        await stage.until(lambda: "must be a number" in str(panel.query_one("#panel-error", Static).render()))
        error = panel.query_one("#panel-error")
        await stage.until(lambda: 0 < last.region.bottom <= error.region.y < error.region.bottom < size[1])
        line.focus()
        await stage.press("backspace", "backspace", "backspace", "enter")
        await stage.until(lambda: not error.display)


async def test_what_cannot_be_is_refused_and_not_kept(tmp_path: Path) -> None:
    async with on_stage(tmp_path, settings=Settings(theme="light")) as stage:
        await stage.until(lambda: stage.app.host.language is not None)
        language = stage.app.host.language
        assert isinstance(language, FakeLanguage)
        language.can_think = False
        for line, said in (
            ("/theme nope", "no theme 'nope'"), ("/think on", "no reasoning"),
            ("/idle -5", "/idle takes 0 to"), ("/idle nan", "0 for never, not nan"),
        ):  # fmt: skip
            await stage.type(line)
            await stage.press("enter")
            await stage.until(lambda said=said: said in stage.notices)
            assert stage.app.chat_screen.prompt.text == line
            stage.app.chat_screen.prompt.clear()
        assert (stage.app.theme, stage.app.settings.theme) == ("nanochat-light", "light")
        assert stage.app.chats.active.settings.thinking is None


async def test_names_that_no_file_can_have_are_refused(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("hello you")
        for line, said in (
            ("/tab ²", "a number from 1 to 1"),
            ("/export ~no-such-user/x", "there is no folder"),
            (f"/export {'x' * 300}", "name too long"),
            ("/import ~no-such-user/x", "cannot be read"),
        ):
            await stage.type(line)
            await stage.press("enter")
            await stage.until(lambda said=said: said in stage.notices)
            stage.app.chat_screen.prompt.clear()
        await stage.type("see @~no-such-user/n")
        await stage.press("tab")
        await stage.ask(" and go on")
        assert "~no-such-user" in stage.texts()[2]


async def test_the_panel_says_what_another_system_prompt_costs(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("hello you")
        await stage.type("/system Be brief.")
        await stage.press("enter")
        await stage.until(lambda: stage.app.chats.active.settings.system_prompt == "Be brief.")
        await stage.until(lambda: "reads the whole chat again" in stage.notices)


async def test_a_long_paste_folds_and_is_sent_whole(tmp_path: Path) -> None:
    paste = "\n".join(f"line {number} with several words" for number in range(412))
    async with on_stage(tmp_path, FakeEngine(context=100_000)) as stage:
        await stage.until(lambda: stage.app.host.language is not None)
        stage.app.post_message(events.Paste(paste))
        await stage.until(lambda: stage.app.chat_screen.prompt.text)
        assert stage.app.chat_screen.prompt.text == "[pasted 412 lines · 2,060 tokens]"
        await stage.type(" explain")
        await stage.press("enter")
        await stage.settle()
        assert stage.texts()[0] == paste + " explain"


async def test_a_file_is_sent_with_the_message(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("buy milk\n")
    async with on_stage(tmp_path) as stage:
        await stage.type("what is in @notes.txt")
        await stage.press("enter")
        await stage.until(lambda: stage.texts())
        assert "buy milk" in stage.texts()[0]
        await stage.settle()
        assert "Sent with notes.txt (1 line)" in stage.notices


async def test_a_file_that_is_not_there_is_told_before_the_message_goes_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with on_stage(tmp_path) as stage:
        prompt = stage.app.chat_screen.prompt
        await stage.type("what is in @nots.txt, @someone?")
        await stage.until(lambda: prompt.border_title, "the frame says it")
        assert str(prompt.border_title) == "@nots.txt: no such file"
        await stage.press("enter")
        await stage.settle()
        assert stage.texts()[0] == "what is in @nots.txt, @someone?"
        assert "@nots.txt: no such file. The message goes as it is." in stage.notices
        await stage.until(lambda: not prompt.border_title, "the frame says it no more")


async def test_without_a_model_the_first_view_offers_the_starter_and_the_message_waits(
    tmp_path: Path,
) -> None:
    async with on_stage(tmp_path, models=()) as stage:
        welcome = stage.app.chat_screen.query_one(Welcome)
        await stage.until(lambda: "no model here yet" in str(welcome.query_one("#welcome-text").render()))
        await stage.send("I write already")
        assert stage.statuses() == ["done", "queued"]
        stage.app.desk.offers.take("starter")
        await stage.settle()
        assert stage.texts() == ["I write already", "Hello there."]


async def test_without_a_model_the_chat_says_what_to_press_also_after_a_restart(tmp_path: Path) -> None:
    said = "F3 chooses one, /model starter fetches the small one"
    for visit in ("first", "second"):
        async with on_stage(tmp_path, models=(), size=(80, 24)) as stage:
            prompt = stage.app.chat_screen.prompt
            if visit == "first":
                await stage.send("I write already")
                last = lambda: stage.app.chats.active.conversation.messages[-1].footer  # noqa: E731
                await stage.until(last)
                assert last() == f"waits for a model: {said}"
                assert not prompt.border_title  # once is enough
                await stage.press("escape")
                await stage.settle()
            await stage.until(lambda prompt=prompt: prompt.border_title, "the frame says it")
            assert str(prompt.border_title) == f"No model: {said}"
            assert len(str(prompt.border_title)) <= prompt.size.width
    async with on_stage(tmp_path, models=()) as stage:
        await stage.send("and more")
        await stage.type("/model starter")
        await stage.press("enter")
        await stage.settle()
        assert stage.texts()[-2:] == ["and more", "Hello there."]
        assert not stage.app.chat_screen.prompt.border_title


async def test_what_chooses_a_model_is_named_by_the_users_own_key(tmp_path: Path) -> None:
    settings = Settings(keymap={"models": "f9"}, theme="dark")
    async with on_stage(tmp_path, models=(), settings=settings) as stage:
        await stage.send("I write already")
        await stage.until(lambda: "F9 chooses one" in stage.app.chats.active.conversation.messages[-1].footer)


async def test_the_starter_offline_says_so_and_offers_again(tmp_path: Path) -> None:
    async with on_stage(tmp_path, models=()) as stage:
        stage.app.shelf.fetched = Offline("offline: the package index cannot be reached")  # type: ignore[attr-defined]
        welcome = stage.app.chat_screen.query_one(Welcome)
        await stage.until(lambda: welcome.query_one("#welcome-offers").display)
        await stage.press("enter")
        await stage.until(lambda: "package index cannot be reached" in stage.notices)
        assert welcome.query_one("#welcome-offers").display


async def test_a_model_that_does_not_load_says_why(tmp_path: Path) -> None:
    async with on_stage(tmp_path, FakeEngine(load_at_once=False)) as stage:
        await stage.until(lambda: stage.engine.loads)
        stage.engine.finish_load(error=EngineDead("the weights take 9.9 GiB and 2.0 GiB is free"))
        await stage.until(lambda: "9.9 GiB" in stage.notices)
        await stage.pilot.pause()
        assert stage.notices.count("9.9 GiB") == 1


async def test_the_model_in_use_is_not_unloaded_without_a_question(tmp_path: Path) -> None:
    engine = FakeEngine(manual=True)
    async with on_stage(tmp_path, engine) as stage:
        await stage.send("first")
        await stage.until(lambda: engine.requests)
        await stage.press("ctrl+t")
        await stage.type(f"/model {OTHER.name}")
        await stage.press("enter")
        await stage.until(lambda: isinstance(stage.app.screen, Question))
        await stage.press("enter")
        await stage.until(lambda: stage.screen == "ChatScreen")
        assert stage.app.host.model == MODEL
        assert len(engine.loads) == 1
        engine.finish(engine.last)
        await stage.settle()


async def test_a_model_that_cannot_run_takes_no_other_ones_place(tmp_path: Path) -> None:
    engine = FakeEngine(manual=True)
    async with on_stage(tmp_path, engine) as stage:

        def read(model: LocalModel) -> FakeLanguage:
            if model == OTHER:
                raise UnsupportedModel("it has no chat template")
            return FakeLanguage(model.name)

        stage.app.host._read = read
        await stage.send("first")
        await stage.until(lambda: engine.requests)
        await stage.type(f"/model {OTHER.name}")
        await stage.press("enter")
        await stage.until(lambda: "no chat template" in stage.notices, "it says why")
        assert stage.screen == "ChatScreen" and not stage.app.chats.active.settings.model
        assert (stage.app.host.model, len(engine.loads)) == (MODEL, 1)
        engine.finish(engine.last)
        await stage.settle()
        assert stage.statuses()[-1] == "done"


async def test_a_click_into_the_text_leaves_the_prompt_its_keys(tmp_path: Path) -> None:
    engine = FakeEngine(script=lambda request: ("See [the site](https://example.com/a) there.",))
    async with on_stage(tmp_path, engine) as stage:
        await stage.ask("hello you")
        transcript = stage.app.chat_screen.transcript
        await stage.pilot.click(transcript, offset=(8, 2))
        await stage.until(lambda: isinstance(stage.app.screen, Question))
        await stage.press("escape")
        await stage.until(lambda: stage.screen == "ChatScreen")
        await stage.press("d", "e", "r")
        assert stage.app.chat_screen.prompt.text == "der"


async def test_ctrl_c_stops_a_reply_and_twice_quits(tmp_path: Path) -> None:
    engine = FakeEngine(manual=True)
    async with on_stage(tmp_path, engine) as stage:
        await stage.send("count")
        await stage.until(lambda: engine.requests)
        await stage.press("ctrl+c")
        await stage.settle()
        assert stage.statuses()[-1] == "stopped"
        await stage.press("ctrl+c")
        await stage.until(lambda: "again to quit" in stage.notices)
        await stage.press("ctrl+c")
        await stage.until(lambda: stage.app._exit)


async def test_quitting_while_a_reply_comes_asks_and_saves_it(tmp_path: Path) -> None:
    engine = FakeEngine(manual=True)
    async with on_stage(tmp_path, engine) as stage:
        await stage.send("count")
        await stage.until(lambda: engine.requests)
        engine.emit(engine.last, "one ", "two ")
        await stage.press("ctrl+q")
        await stage.until(lambda: isinstance(stage.app.screen, Question))
        await stage.press("enter")
        await stage.until(lambda: stage.app._exit)
    async with on_stage(tmp_path) as stage:
        assert stage.texts() == ["count", "one two "]
        assert stage.statuses()[-1] == "stopped"


async def test_who_quits_again_while_it_saves_cuts_nothing_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, gate = threading.Event(), threading.Event()

    def slow(history: History) -> None:
        entered.set()
        gate.wait(20)
        close(history)

    close = History.close
    monkeypatch.setattr(History, "close", slow)
    async with on_stage(tmp_path) as stage:
        await stage.press("ctrl+q")
        await stage.until(entered.is_set)
        await stage.press("ctrl+q", "ctrl+c", "ctrl+c")
        await stage.app.lifetime.end(ask=False)
        assert not stage.app._exit
        gate.set()
        await stage.until(lambda: stage.app._exit)


async def test_a_second_nanochat_on_the_same_chats_says_so_and_sees_what_the_first_writes(
    tmp_path: Path,
) -> None:
    async with on_stage(tmp_path) as first, on_stage(tmp_path) as second:
        await second.until(lambda: "Another nanochat is open" in second.notices)
        await first.ask("from the first")
        await second.press("ctrl+g")
        chats = second.app.chat_screen.query_one(ChatList)
        await second.until(lambda: any("from the first" in str(option.prompt) for option in chats.options))


async def test_a_log_that_cannot_be_written_is_told_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file in its place")
    async with on_stage(tmp_path) as stage:
        await stage.until(lambda: f"There is no log: {tmp_path / 'log'} cannot be written" in stage.notices)
        await stage.ask("hello")


async def test_keys_are_remapped_by_the_settings_and_the_hints_follow(tmp_path: Path) -> None:
    keymap = {"tab.new": "Ctrl+N, F9", "message.fork": "f10", "prompt.send": "f5", "chat.new": "f11"}
    async with on_stage(tmp_path, settings=Settings(theme="dark", keymap=keymap)) as stage:
        hints = stage.app.chat_screen.query_one("#welcome-hints", Static)
        await stage.until(
            lambda: "F5 sends" in str(hints.render()) and "Ctrl+N new tab" in str(hints.render())
        )
        await stage.until(lambda: "keys for chat.new: there is no such action" in stage.notices)
        await stage.type("hello you")
        await stage.press("f5")
        await stage.until(lambda: len(stage.texts()) == 2)
        await stage.settle()
        await stage.press("ctrl+t")
        assert len(stage.app.chats) == 1
        await stage.press("ctrl+n")
        await stage.until(lambda: len(stage.app.chats) == 2)
        await stage.press("alt+1", "f10")  # an action without a key of its own
        await stage.until(lambda: len(stage.app.chats) == 3)


async def test_an_imported_chat_is_shown_and_its_ids_are_those_of_the_export(tmp_path: Path) -> None:
    async with on_stage(tmp_path / "one") as stage:
        await stage.ask("hello you")
        await stage.app.chats.active.regenerate()
        await stage.settle()
        await stage.send("/export out.json")
        await stage.until(lambda: (tmp_path / "one" / "out.json").exists())
        assert stage.app.chats.active.chat is not None
        sent = stage.app.history.bundle(stage.app.chats.active.chat.id)
    async with on_stage(tmp_path / "two") as stage:
        await stage.send(f"/import {tmp_path / 'one' / 'out.json'}")
        await stage.until(lambda: stage.texts() == ["hello you", "Hello there."])
        assert "Imported 1 chat; 3 new messages." in stage.notices
        assert stage.app.chats.active.chat is not None
        took = stage.app.history.bundle(stage.app.chats.active.chat.id)
        assert [message.id for message in took.messages] == [message.id for message in sent.messages]
        assert (took.id, took.head) == (sent.id, sent.head)
        await stage.type(f"/import {tmp_path / 'one' / 'out.json'}")
        await stage.press("enter")
        await stage.until(lambda: "Imported 1 chat, which was here before; 0 new messages." in stage.notices)


async def test_a_step_to_a_version_that_is_not_there_says_so(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:

        async def said(command: str, words: str) -> None:
            await stage.type(command)
            await stage.press("enter")
            await stage.until(lambda: words in stage.notices, words)
            stage.app.clear_notifications()

        await said("/previous", "There is no reply yet.")
        await stage.ask("hello you")
        await said("/previous", "There is only this version: /retry makes another.")
        await said("/next", "There is only this version: /retry makes another.")
        await stage.app.chats.active.regenerate()
        await stage.settle()
        await said("/next", "This is the last of 2 versions.")
        await stage.type("/previous")
        await stage.press("enter")
        shown = stage.app.chats.active.conversation
        await stage.until(lambda: shown.messages[-1].variant == 1)
        assert not stage.notices
        await said("/previous", "This is the first of 2 versions.")


async def test_an_export_holds_what_a_reply_has_said_to_this_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reply_module, "CHECKPOINT_SECONDS", 600.0)  # only the export saves it
    engine = FakeEngine(manual=True)
    async with on_stage(tmp_path, engine) as stage:
        await stage.send("hello you")
        await stage.until(lambda: engine.requests)
        engine.emit(engine.last, "Half a ", "reply")
        await stage.type("/export half.md")
        await stage.press("enter")
        await stage.until(lambda: "half.md" in stage.notices)
        text = (tmp_path / "half.md").read_text(encoding="utf-8")
        assert "Half a reply" in text and '"status": "interrupted"' in text
        engine.emit(engine.last, " and the rest.")
        engine.finish(engine.last)
        await stage.settle()
        assert stage.texts() == ["hello you", "Half a reply and the rest."]
        assert stage.statuses() == ["done", "done"]
        assert stage.app.chats.active.reply is None


async def test_focus_of_the_terminal_restyles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with on_stage(tmp_path) as stage:
        restyled: list[int] = []
        monkeypatch.setattr(type(stage.app.screen), "update_node_styles", lambda *_, **__: restyled.append(1))
        stage.app.post_message(events.AppBlur())
        stage.app.post_message(events.AppFocus())
        await stage.pilot.pause()
        assert not restyled


async def test_every_action_runs_from_the_palette_and_closes_again(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        names = {command.title for command in stage.app.get_system_commands(stage.app.screen)}
        assert {"New tab", "Stop", "Help", "Theme"} <= names
        await stage.press("ctrl+p")
        await stage.until(lambda: stage.screen == "Palette")
        await stage.press("escape")
        await stage.until(lambda: stage.screen == "ChatScreen")


async def test_a_page_key_before_the_palettes_commands_are_laid_out_does_nothing(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.press("ctrl+p")
        await stage.until(
            lambda: stage.screen == "Palette" and stage.app.screen.query_one(CommandList).option_count > 1
        )
        commands = stage.app.screen.query_one(CommandList)
        commands.highlighted = 0
        commands._index_to_line.clear()  # as it is until the layout
        await stage.press("pagedown", "pageup")
        assert stage.app.fault is None
        await stage.press("escape")
        await stage.until(lambda: stage.screen == "ChatScreen")


def test_a_page_key_in_a_list_that_was_never_laid_out_does_nothing() -> None:
    choices = PagedList("one", "two")
    choices._move_page(1)
    choices._move_page(-1)
