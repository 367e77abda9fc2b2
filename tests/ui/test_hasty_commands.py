"""What is told to a chat is done to that chat, whatever tab is in front by then: the next key came at once."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_engine import OTHER
from stage import Stage, at_once, on_stage

from nanochat.errors import HistoryError
from nanochat.storage.chats import Chats
from nanochat.storage.messages import Messages
from nanochat.ui.session import ChatSession
from nanochat.ui.shelf import reference
from nanochat.ui.widgets.sidebar import ChatList
from nanochat.ui.widgets.tabs import TabStrip
from nanochat.ui.widgets.transcript import Verb

AWAY = "ctrl+pageup"


@asynccontextmanager
async def two_chats(home: Path) -> AsyncIterator[tuple[Stage, ChatSession, ChatSession]]:
    """Two tabs with a chat each; the second is shown."""
    async with on_stage(home) as stage:
        await stage.ask("first")
        await stage.press("ctrl+t")
        await stage.ask("second")
        first, second = stage.app.chats
        yield stage, first, second


def stored(stage: Stage, session: ChatSession) -> tuple[object, ...]:
    """Everything that a command could do to a chat."""
    assert session.chat is not None
    records = stage.app.history.messages.open(session.chat.id)
    chat = records.chat
    messages = [(record.content, record.variants) for record in records.messages]
    listed = [each.id for each in stage.app.history.chats.list()]
    return chat.title, chat.pinned, chat.settings, chat.id in listed, messages


COMMANDS = ("/delete", "/rename Mine", "/pin", "/drop", "/retry", "/continue", "/think on", "/system Be brief.",
            "/set temperature 0.5", f"/model {reference(OTHER)}")  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_command_acts_on_the_chat_in_which_it_was_given(tmp_path: Path, command: str) -> None:
    async with two_chats(tmp_path) as (stage, first, second):
        before = stored(stage, first), stored(stage, second)
        await stage.type(command)
        at_once(stage, "enter", AWAY)
        await stage.until(lambda: (stored(stage, first), stored(stage, second)) != before)
        await stage.settle()
        assert stored(stage, first) == before[0]
        assert stored(stage, second) != before[1]
        assert stage.app.chats.active is first


async def test_a_key_acts_on_the_chat_in_which_it_was_pressed(tmp_path: Path) -> None:
    async with two_chats(tmp_path) as (stage, first, second):
        before = stored(stage, first), stored(stage, second)
        at_once(stage, "ctrl+r", AWAY)
        await stage.until(lambda: (stored(stage, first), stored(stage, second)) != before)
        await stage.settle()
        assert stored(stage, first) == before[0]


@pytest.mark.parametrize("verb", ["regenerate", "delete"])
async def test_a_key_on_a_message_acts_on_the_chat_in_which_it_was_pressed(
    tmp_path: Path, verb: Verb
) -> None:
    async with two_chats(tmp_path) as (stage, _, second):
        stage.app.run_registered("message.fork")  # both have the same messages now
        await stage.until(lambda: len(stage.app.chats) == 3)
        fork = stage.app.chats.active
        await stage.until(lambda: len(stage.texts()) == 2)
        before = stored(stage, second), stored(stage, fork)
        await stage.press("alt+up")
        stage.app.chat_screen.transcript.action_act(verb)
        stage.app.run_registered("tab.previous")  # what the transcript asked for is on its way
        assert stage.app.chats.active is second
        await stage.until(lambda: (stored(stage, second), stored(stage, fork)) != before)
        await stage.settle()
        assert stored(stage, second) == before[0]


async def test_the_chat_that_is_exported_is_the_one_in_which_that_was_said(tmp_path: Path) -> None:
    async with two_chats(tmp_path) as (stage, *_):
        await stage.type("/export chat.md")
        at_once(stage, "enter", AWAY)
        await stage.until((tmp_path / "chat.md").exists)
        await stage.until(lambda: "Written" in stage.notices)
        assert "second" in (tmp_path / "chat.md").read_text()


async def test_the_chat_that_is_forked_is_the_one_in_which_that_was_said(tmp_path: Path) -> None:
    async with two_chats(tmp_path) as (stage, *_):
        await stage.type("/fork")
        at_once(stage, "enter", AWAY)
        await stage.until(lambda: len(stage.app.chats) == 3 and stage.texts())
        assert stage.texts() == ["second", "Hello there."]


@pytest.mark.parametrize("keys", [("ctrl+w",), (*"/close", "enter")])
async def test_the_tab_that_closes_is_the_one_in_which_that_was_said(
    tmp_path: Path, keys: tuple[str, ...]
) -> None:
    async with two_chats(tmp_path) as (stage, first, second):
        await stage.press("ctrl+pageup")
        at_once(stage, *keys, "ctrl+pagedown")
        await stage.until(lambda: len(stage.app.chats) == 1)
        assert list(stage.app.chats) == [second]
        assert first not in stage.app.chats


async def test_what_is_set_in_the_panel_is_set_in_the_chat_that_it_showed(tmp_path: Path) -> None:
    async with two_chats(tmp_path) as (stage, first, second):
        await stage.press("f6")
        await stage.until(lambda: stage.app.chat_screen.sides.panel.has_focus_within)
        stage.app.chat_screen.query_one("#panel-system").focus()
        await stage.pilot.pause()
        await stage.type("brief")
        at_once(stage, AWAY)
        await stage.until(lambda: stage.app.chats.active is first)
        await stage.until(lambda: any(each.settings.system_prompt for each in (first, second)))
        assert (first.settings.system_prompt, second.settings.system_prompt) == ("", "brief")


@pytest.mark.parametrize("name", ["system", "stop"])
@pytest.mark.parametrize("key", ["ctrl+w", "ctrl+t", AWAY, "alt+1"])
async def test_what_is_typed_in_the_panel_before_another_tab_is_for_the_chat_and_behind_it_for_the_prompt(
    tmp_path: Path, name: str, key: str
) -> None:
    async with two_chats(tmp_path) as (stage, first, second):
        await stage.press("f6")
        await stage.until(lambda: stage.app.chat_screen.sides.panel.has_focus_within)
        field = stage.app.chat_screen.query_one(f"#panel-{name}")
        field.focus()
        await stage.until(lambda: field.has_focus)
        at_once(stage, *"brief", key, *"behind it")
        await stage.until(lambda: stage.app.chat_screen.prompt.text == "behind it")
        await stage.until(lambda: second.settings != first.settings)
        await stage.press(
            "f6", "tab", "tab", "tab", AWAY
        )  # what stands in the panel is taken when it is left
        await stage.pilot.pause()
        assert "brief" in (second.settings.system_prompt, *(second.settings.stop or ()))
        assert all(each.settings == first.settings for each in stage.app.chats if each is not second)
        assert first.settings.system_prompt == "" and not first.settings.stop


async def test_what_is_typed_in_the_search_before_another_tab_stays_there_and_behind_it_is_for_the_prompt(
    tmp_path: Path,
) -> None:
    async with two_chats(tmp_path) as (stage, _, _second):
        await stage.press("ctrl+f")
        await stage.until(lambda: stage.app.chat_screen.sides.list.has_focus_within)
        at_once(stage, *"words", "ctrl+w", *"behind it")
        await stage.until(lambda: stage.app.chat_screen.prompt.text == "behind it")
        assert stage.app.chat_screen.sides.list.query_text == "words"


@pytest.mark.parametrize(("command", "kept"), [("/delete", 1), ("/close", 2)])
async def test_what_is_typed_behind_a_command_that_closes_the_tab_is_for_the_tab_that_is_shown_then(
    tmp_path: Path, command: str, kept: int
) -> None:
    async with two_chats(tmp_path) as (stage, first, second):
        await stage.type(command)
        at_once(stage, "enter", *"hello")
        await stage.until(lambda: len(stage.app.chats) == 1)
        await stage.until(lambda: len(stage.app.history.chats.list()) == kept)
        assert stage.app.chats.active is first
        assert (stage.app.chat_screen.prompt.text, second.draft.full) == ("hello", "")


async def test_a_message_that_is_sent_behind_a_tab_that_closes_goes_to_the_tab_that_is_shown_then(
    tmp_path: Path,
) -> None:
    async with two_chats(tmp_path) as (stage, _, second):
        at_once(stage, "ctrl+w", *"hello", "enter")
        await stage.until(lambda: len(stage.app.chats) == 1)
        await stage.until(lambda: "hello" in stage.texts())
        await stage.settle()
        assert stage.texts() == ["first", "Hello there.", "hello", "Hello there."]
        assert len(second.conversation.messages) == 2


async def test_the_message_that_an_editor_gets_is_that_of_the_chat_in_which_it_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(command: list[str], **_: Any) -> None:
        file = Path(command[-1])
        file.write_text(f"{file.read_text()}, edited")

    async with two_chats(tmp_path) as (stage, first, second):
        monkeypatch.setattr(subprocess, "run", edit)
        monkeypatch.setattr(stage.app, "suspend", contextlib.nullcontext)
        await stage.type("of the second")
        at_once(stage, "ctrl+o", AWAY)
        await stage.until(lambda: any("edited" in each.draft.full for each in stage.app.chats))
        assert (first.draft.full, second.draft.full) == ("", "of the second, edited")


async def test_what_is_typed_while_an_imported_chat_is_read_is_for_the_tab_that_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loads = ChatSession.load, 0

    async def typed_right_then(session: ChatSession) -> None:
        nonlocal loads
        await load(session)
        loads += 1
        if loads == 2:  # its tab has taken the empty one's place
            stage.app.chat_screen.prompt.insert("typed meanwhile")

    async with on_stage(tmp_path) as stage:
        await stage.ask("a chat")
        await stage.type("/export chat.md")
        await stage.press("enter", "ctrl+w")
        await stage.until((tmp_path / "chat.md").exists)
        await stage.until(lambda: not stage.texts())
        monkeypatch.setattr(ChatSession, "load", typed_right_then)
        await stage.type("/import chat.md")
        await stage.press("enter")
        await stage.until(lambda: "Imported" in stage.notices)
        assert stage.app.chat_screen.prompt.text == "typed meanwhile"


async def test_a_command_that_cannot_be_done_at_once_stands_in_its_prompt_again(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.type("/delete")
        await stage.press("enter")
        await stage.until(lambda: "nothing to delete" in stage.notices)
        assert stage.app.chat_screen.prompt.text == "/delete"


def held_back(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> threading.Event:
    """Let this wait in its thread, as with a slow disk, until the event is set."""
    done, gate = getattr(owner, name), threading.Event()

    def slow(*arguments: Any) -> Any:
        gate.wait(30)
        return done(*arguments)

    monkeypatch.setattr(owner, name, slow)
    return gate


async def delete_and_undo(stage: Stage, before: ChatSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for both in one breath, while the disk is slow; `before` is the chat that is shown once the other is gone."""
    gate = held_back(monkeypatch, Chats, "delete")
    await stage.type("/delete")
    at_once(stage, "enter", *"/undo", "enter")
    await stage.until(
        lambda: stage.app.chats.active is before and len(stage.app.undo._steps) == 1, "undo waits"
    )
    gate.set()


async def test_undo_right_behind_a_delete_undoes_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_chats(tmp_path) as (stage, first, second):
        both = {each.id for each in stage.app.history.chats.list()}
        assert first.chat is not None and second.chat is not None
        await stage.type("/drop")
        await stage.press("enter")
        await stage.until(lambda: "Deleted" in stage.notices)
        await delete_and_undo(stage, first, monkeypatch)
        await stage.until(lambda: "Undone: the chat is back" in stage.notices)
        assert {each.id for each in stage.app.history.chats.list()} == both
        back = stage.app.chats.active
        assert back.chat is not None and back.chat.id == second.chat.id
        assert not stage.texts(), "the drop stays"


async def test_undo_right_behind_the_delete_of_a_message_undoes_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with on_stage(tmp_path) as stage:
        for text in ("one", "two", "three"):
            await stage.ask(text)
        await stage.type("/drop")
        await stage.press("enter")
        await stage.until(lambda: len(stage.texts()) == 4)
        gate = held_back(monkeypatch, Messages, "hide")
        await stage.press(*["alt+up"] * 2)
        at_once(stage, "d", "u")
        await stage.pilot.pause()
        gate.set()
        await stage.until(lambda: "Undone" in stage.notices)
        assert stage.texts()[::2] == ["one", "two"]


async def test_undo_behind_a_delete_that_fails_undoes_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise HistoryError("the disk is full")

    async with two_chats(tmp_path) as (stage, first, second):
        await stage.type("/drop")
        await stage.press("enter")
        await stage.until(lambda: "Deleted" in stage.notices)
        monkeypatch.setattr(Chats, "delete", fail)
        await delete_and_undo(stage, first, monkeypatch)
        await stage.until(lambda: "nothing to undo" in stage.notices)
        assert not second.conversation.messages
        await stage.type("/undo")
        await stage.press("enter")
        await stage.until(lambda: "Undone" in stage.notices)


@pytest.mark.parametrize("given", ["/fork", "a message's key"])
async def test_what_is_typed_and_sent_behind_a_fork_is_for_the_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("a chat")
        first, gate = stage.app.chats.active, held_back(monkeypatch, Chats, "fork")
        if given == "/fork":
            keys = (*given, "enter")
        else:
            await stage.press("alt+up")
            keys = ("f",)
        at_once(stage, *keys, *"sent", "enter", *"and kept")
        await stage.pilot.pause()
        gate.set()
        await stage.until(lambda: len(stage.app.chats) == 2 and "sent" in stage.texts())
        await stage.until(lambda: stage.app.chat_screen.prompt.text == "and kept")
        await stage.settle()
        assert first.draft.empty and len(first.conversation.messages) == 2


async def test_what_is_typed_behind_reopen_is_for_the_tab_that_comes_back(tmp_path: Path) -> None:
    async with two_chats(tmp_path) as (stage, first, _):
        await stage.press("ctrl+w")
        await stage.until(lambda: len(stage.app.chats) == 1)
        at_once(stage, *"/reopen", "enter", *"behind it")
        await stage.until(lambda: len(stage.app.chats) == 2)
        await stage.until(lambda: stage.app.chat_screen.prompt.text == "behind it")
        assert not stage.app.chats.active.blank and stage.app.chats.active is not first and first.draft.empty


async def test_reopen_waits_for_the_tabs_that_are_being_closed_and_brings_back_the_last(
    tmp_path: Path,
) -> None:
    async with two_chats(tmp_path) as (stage, first, second):
        stage.app.run_registered("tab.close")
        stage.app.run_registered("tab.close")
        stage.app.run_registered("tab.reopen")
        await stage.until(lambda: first not in stage.app.chats and second not in stage.app.chats)
        await stage.until(lambda: stage.app.chats.active.chat is not None, "a tab came back")
        assert first.chat is not None and stage.app.chats.active.chat is not None
        assert stage.app.chats.active.chat.id == first.chat.id
        assert stage.notices == ""


async def test_what_is_typed_behind_a_chat_that_opens_is_for_that_chat_and_not_for_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_chats(tmp_path) as (stage, _, second):
        await stage.press("ctrl+w")
        await stage.until(lambda: len(stage.app.chats) == 1)
        await stage.press("f2", "up")
        await stage.until(lambda: stage.app.chat_screen.sides.list.query_one(ChatList).has_focus)
        gate = held_back(monkeypatch, Chats, "get")
        at_once(stage, "enter", *"depend upon it")
        await stage.pilot.pause()
        gate.set()
        await stage.until(lambda: stage.app.chat_screen.prompt.text == "depend upon it")
        assert second.chat is not None and stage.app.chats.active.chat is not None
        assert stage.app.chats.active.chat.id == second.chat.id
        assert len(stage.app.history.chats.list()) == 2


async def test_a_command_that_fails_before_text_does_not_run_into_it(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        at_once(stage, *"/delete", "enter", *"text")
        await stage.until(lambda: "nothing to delete" in stage.notices)
        await stage.until(lambda: stage.app.chat_screen.prompt.text == "text")
        await stage.press("up")
        assert stage.app.chat_screen.prompt.text == "/delete"


@pytest.mark.parametrize("button", [1, 2])
@pytest.mark.parametrize("clicked", [1, 2])
async def test_a_click_on_tabs_that_have_moved_means_the_tab_that_was_seen_there(
    tmp_path: Path, clicked: int, button: int
) -> None:
    async with two_chats(tmp_path) as (stage, first, second):
        await stage.press("ctrl+t")
        await stage.ask("third")
        third = stage.app.chats.active
        await stage.press("ctrl+pageup", "ctrl+pageup")
        strip = stage.app.chat_screen.query_one(TabStrip)
        _, at, _ = strip._spans[3 * clicked]  # a tab has three parts
        stage.app.chats._remove(second, 1)  # it has closed, and the strip does not show it yet
        await stage.pilot.click(strip, offset=(at, 0), button=button)
        await stage.settle()
        if clicked == 1:
            assert list(stage.app.chats) == [first, third] and stage.app.chats.active is first
        elif button == 1:
            assert list(stage.app.chats) == [first, third] and stage.app.chats.active is third
        else:
            await stage.until(lambda: list(stage.app.chats) == [first])
