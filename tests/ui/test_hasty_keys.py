"""Keys that come before what they meant is there, or after it has gone: all at once, as when the machine was busy."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from stage import Stage, at_once, on_stage
from textual import events
from textual.command import CommandList
from textual.widgets import Input

from nanochat.errors import UsageError
from nanochat.ui import key_turns, sending
from nanochat.ui.draft import Draft
from nanochat.ui.screens.bench import BenchScreen
from nanochat.ui.screens.help import help_page
from nanochat.ui.screens.models import ModelsScreen
from nanochat.ui.screens.question import Answer, Question
from nanochat.ui.widgets.prompt_bar import PromptBar
from nanochat.ui.widgets.prompt_box import PromptBox
from nanochat.ui.widgets.sidebar import ChatList


@pytest.mark.parametrize(("key", "side"), [("f6", "panel"), ("f2", "sidebar")])
async def test_a_side_that_is_opened_twice_at_once_is_open(tmp_path: Path, key: str, side: str) -> None:
    async with on_stage(tmp_path, size=(160, 40)) as stage:
        at_once(stage, key, key, key)
        await stage.until(lambda: stage.app.chat_screen.query_one(f"#{side}").display)
        await stage.press("escape")
        await stage.until(lambda: isinstance(stage.app.focused, PromptBox))


async def test_enter_several_times_in_the_palette_closes_nothing_else(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.press("f3")
        await stage.until(lambda: stage.screen == "ModelsScreen")
        await stage.press("ctrl+p", *"theme")
        await stage.until(lambda: stage.app.screen.query_one(CommandList).option_count)
        await stage.press("down")
        at_once(stage, "enter", "enter", "enter", "enter")
        await stage.until(lambda: stage.screen != "Palette")
        assert any(isinstance(screen, ModelsScreen) for screen in stage.app.screen_stack)


async def test_enter_several_times_in_the_palette_runs_the_command_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with on_stage(tmp_path) as stage:
        ran: list[str] = []
        monkeypatch.setattr(stage.app, "run_registered", ran.append)
        await stage.press("ctrl+p", *"new tab")
        palette = stage.app.screen
        await stage.until(lambda: palette.query_one(CommandList).option_count)
        await stage.press("down")
        palette.query_one(CommandList).action_select()
        for _ in range(3):  # what waits in its queue when it closes
            palette.post_message(Input.Submitted(palette.query_one(Input), ""))
        await stage.until(lambda: stage.screen != "Palette" and ran)
        await stage.pilot.pause()
        assert ran == ["tab.new"]


async def test_the_palette_opens_again_before_the_last_one_has_gone(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.press("ctrl+p")
        await stage.until(lambda: stage.screen == "Palette")
        last = stage.app.screen
        last.dismiss()
        stage.app.action_command_palette()
        await stage.until(lambda: stage.screen == "Palette" and stage.app.screen is not last)


async def test_a_page_takes_keys_before_its_text_is_there(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        page = help_page(stage.app.registry, stage.app.keys)
        stage.app.push_screen(page)
        page.action_scroll("end")
        await stage.press("escape")
        await stage.until(lambda: stage.screen == "ChatScreen")


async def test_what_is_read_for_a_screen_that_was_left_is_shown_nowhere(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        screen = BenchScreen()
        await stage.app.push_screen(screen)
        await screen.dismiss()
        assert screen.left
        await screen._fill()
        screen.action_show("kept")
        screen._changed()
        assert stage.screen == "ChatScreen"


async def test_a_question_that_nobody_waits_for_any_more_closes(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        question = Question("Which?", "", [Answer("a", "One")])
        stage.app.run_worker(stage.app.ask(question))
        await stage.until(lambda: stage.screen == "Question")
        answer = question._result_callbacks[-1].future
        assert answer is not None
        answer.cancel()
        await stage.press("escape")
        await stage.until(lambda: stage.screen == "ChatScreen")


async def test_esc_gives_the_prompt_the_keys_when_nothing_has_them(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        stage.app.set_focus(None)
        await stage.press("escape", *"here")
        assert stage.app.chat_screen.prompt.text == "here"


async def test_what_could_not_be_sent_stands_before_what_was_typed_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(text: str, folder: Path) -> tuple[str, tuple[()]]:
        raise UsageError("the file cannot be read")

    monkeypatch.setattr(sending, "attach", unreadable)
    async with on_stage(tmp_path) as stage:
        at_once(stage, *"one", "enter", *"two")
        await stage.until(lambda: stage.app.chat_screen.prompt.text == "one\n\ntwo")


async def test_what_is_typed_behind_an_enter_does_not_wait_with_the_message(tmp_path: Path) -> None:
    engine = FakeEngine(manual=True)
    async with on_stage(tmp_path, engine) as stage:
        at_once(stage, *"one", "enter", *"two", "enter", *"three", "enter", *"four")
        queue = stage.app.chats.active.queue
        await stage.until(lambda: queue.texts == ["two", "three"])
        await stage.until(lambda: stage.app.chat_screen.prompt.text == "four")
        await stage.until(lambda: engine.requests)
        at_once(stage, "escape", *"!")
        await stage.until(lambda: stage.app.chat_screen.prompt.text == "two\n\nthree\n\nfour!")


async def test_what_the_prompt_told_before_another_tab_came_is_not_taken_for_that_tabs(
    tmp_path: Path,
) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.type("this tab's")
        stage.app.chat_screen.post_message(PromptBar.Changed(Draft("another tab's")))
        await stage.pilot.pause()
        assert stage.app.chats.active.draft.full == "this tab's"


@pytest.mark.parametrize("goes_back", [False, True])
async def test_what_is_typed_while_a_tab_closes_is_for_the_tab_that_is_in_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goes_back: bool
) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("hello")
        chat, saving, gate = stage.app.chats.active.chat, asyncio.Event(), asyncio.Event()
        save = stage.app.chats.save
        assert chat is not None

        async def slow() -> None:
            await save()
            saving.set()
            await gate.wait()

        monkeypatch.setattr(stage.app.chats, "save", slow)
        await stage.press("ctrl+w")
        await stage.until(saving.is_set)
        if goes_back:
            await stage.press("ctrl+pageup")
        await stage.type("and this")
        gate.set()
        await stage.until(lambda: len(stage.app.chats) == 1, "the tab is closed")
        drafts = stage.app.history.chats.get(chat.id).draft, stage.app.chat_screen.prompt.text
        assert drafts == (("and this", "") if goes_back else ("", "and this"))


@pytest.mark.parametrize("opened", ["alt+up", "f6", "f2"])
@pytest.mark.parametrize("key", ["ctrl+w", "ctrl+t"])
async def test_what_is_typed_behind_a_key_that_brings_another_tab_stands_in_its_prompt(
    tmp_path: Path, opened: str, key: str
) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("a chat")
        await stage.press(opened)
        await stage.until(lambda: not isinstance(stage.app.focused, PromptBox))
        at_once(stage, key, *"behind it")
        await stage.until(lambda: stage.app.chat_screen.prompt.text == "behind it")


async def one_by_one(stage: Stage, *keys: str) -> None:
    """As a terminal sends them: each in the loop's next round, while the one before is on its way."""
    for key in keys:
        at_once(stage, key)
        await asyncio.sleep(0)


@pytest.mark.parametrize("opened", ["alt+up", "f6", "f2"])
@pytest.mark.parametrize("in_rounds", [False, True])
async def test_what_is_typed_behind_esc_stands_in_the_prompt(
    tmp_path: Path, opened: str, in_rounds: bool
) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("a chat")
        await stage.press(opened)
        await stage.until(lambda: not isinstance(stage.app.focused, PromptBox))
        keys = ("escape", *"under it all", "left", "!")
        if in_rounds:
            await one_by_one(stage, *keys)
        else:
            at_once(stage, *keys)
        await stage.until(lambda: stage.app.chat_screen.prompt.text == "under it al!l")
        assert "undo" not in stage.notices


async def test_what_is_typed_behind_esc_can_be_sent_at_once(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("a chat")
        await stage.press("alt+up")
        at_once(stage, "escape", *"more", "enter", *"next")
        await stage.until(lambda: "more" in stage.texts())
        await stage.until(lambda: stage.app.chat_screen.prompt.text == "next")


async def test_a_paste_behind_esc_keeps_its_place_among_the_keys(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("a chat")
        await stage.press("f6")
        await stage.until(lambda: not isinstance(stage.app.focused, PromptBox))
        at_once(stage, "escape", "a")
        stage.app.post_message(events.Paste("pasted"))
        at_once(stage, "z")
        await stage.until(lambda: stage.app.chat_screen.prompt.text == "apastedz")


async def test_a_paste_that_nothing_takes_is_dropped(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("a chat")
        await stage.press("f2")
        await stage.until(lambda: isinstance(stage.app.focused, ChatList))
        seen: list[events.Paste] = []
        for pump in (stage.app.focused, stage.app):
            assert pump is not None
            pump.message_signal.subscribe(
                stage.app.chat_screen,
                lambda each: seen.append(each) if isinstance(each, events.Paste) else None,
            )
        stage.app.post_message(events.Paste("pasted"))
        await stage.until(lambda: len(seen) >= 2)
        await stage.pilot.pause()
        assert len(seen) <= 4


async def test_a_key_that_is_never_done_does_not_hold_the_others_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with on_stage(tmp_path) as stage:
        monkeypatch.setattr(key_turns, "TICK_SECONDS", 0.001)
        stage.app.key_turns.hold()
        at_once(stage, *"held")
        await stage.until(lambda: stage.app.chat_screen.prompt.text == "held")
