"""What a user wrote and has not sent is lost in no way: by no tab, edit or error, and by no order of what happens."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from stage import Stage, at_once, make_app, on_stage, prompt
from textual import events

from nanochat.errors import HistoryFull, UsageError
from nanochat.storage.records import Tab
from nanochat.ui import sending
from nanochat.ui.draft import Draft
from nanochat.ui.session import ChatSession


class SlowAttach:
    """Reading the files of a message takes until `gate` is set; then it works, or does not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, works: bool) -> None:
        self.begun, self.gate, self.works = threading.Event(), threading.Event(), works
        monkeypatch.setattr(sending, "attach", self)

    def __call__(self, text: str, folder: Path) -> tuple[str, tuple[()]]:
        self.begun.set()
        self.gate.wait(60)
        if not self.works:
            raise UsageError("the file cannot be read")
        return text, ()


# Tabs --------------------------------------------------------------------------------------------


async def test_a_tab_that_is_typed_into_while_another_chat_is_read_keeps_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = ChatSession.load

    async def typed_right_then(session: ChatSession) -> None:
        await load(session)
        stage.app.chat_screen.prompt.load_draft(Draft("typed meanwhile"))  # no message has told of it yet

    async with on_stage(tmp_path) as stage:
        await stage.ask("a chat")
        await stage.press("ctrl+w")
        await stage.until(lambda: not stage.texts())
        monkeypatch.setattr(ChatSession, "load", typed_right_then)
        stage.app.run_registered("tab.reopen")
        await stage.until(lambda: stage.texts() == ["a chat", "Hello there."])
        assert [session.draft.full for session in stage.app.chats] == ["typed meanwhile", ""]


async def test_a_chat_that_is_opened_twice_at_once_has_one_tab(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("a chat")
        chat = stage.app.chats.active.chat
        assert chat is not None
        await stage.press("ctrl+w")
        await stage.until(lambda: not stage.texts())
        first, second = await asyncio.gather(stage.app.chats.open(chat.id), stage.app.chats.open(chat.id))
        assert first is second
        assert len(stage.app.chats) == 1


async def test_an_older_state_is_never_saved_over_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("a chat")
        tabs, begun, late, newer, gate = stage.app.history.tabs, *(threading.Event() for _ in range(4))
        save = tabs.save

        def slow(state: Sequence[Tab]) -> None:
            if begun.is_set():
                save(state)
                newer.set()
            else:
                begun.set()
                gate.wait(60)
                save(state)
                late.set()

        monkeypatch.setattr(tabs, "save", slow)
        await stage.type("one")
        older = asyncio.create_task(stage.app.chats.save())
        await stage.until(begun.is_set)
        older.cancel()  # as the end does: the thread goes on nevertheless
        await stage.type(" and two")
        last = asyncio.create_task(stage.app.chats.save())
        turn = getattr(stage.app.chats, "_turn", None)
        await stage.until(lambda: newer.is_set() or (turn is not None and turn._waiters))
        gate.set()
        await last
        await stage.until(lambda: newer.is_set() and late.is_set())
        assert stage.app.history.chats.list()[0].draft == "one and two"


async def test_what_cannot_be_saved_when_a_tab_closes_comes_back_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Sequence[Tab]) -> None:
        raise HistoryFull("the disk is full")

    async with on_stage(tmp_path) as stage:
        await stage.ask("a chat")
        monkeypatch.setattr(stage.app.history.tabs, "save", full)
        await stage.type("not saved")
        await stage.press("ctrl+w")
        await stage.until(lambda: not stage.texts() and not stage.app.chats._closing)
        stage.app.run_registered("tab.reopen")
        await stage.until(lambda: stage.texts())
        assert prompt(stage) == "not saved"


async def test_what_was_written_in_a_closed_tab_without_a_chat_comes_back_with_up_after_a_restart(
    tmp_path: Path,
) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.type("never sent")
        await stage.press("ctrl+w")
        await stage.until(lambda: not prompt(stage))
    async with on_stage(tmp_path) as stage:
        await stage.press("up")
        assert prompt(stage) == "never sent"


async def test_the_only_tab_has_nothing_to_close_when_it_is_empty(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        at_once(stage, "ctrl+w", *"hello")
        await stage.until(lambda: prompt(stage) == "hello")


async def test_a_key_of_the_application_that_comes_to_the_prompt_deletes_no_word_there(
    tmp_path: Path,
) -> None:
    """As Ctrl+W does right behind the Esc that closes a page: when the application saw it, the page was there."""
    async with on_stage(tmp_path) as stage:
        await stage.type("several words")
        await stage.app._check_bindings("ctrl+w")  # as it comes up from that page
        assert prompt(stage) == "several words"
        stage.app.chat_screen.prompt.post_message(events.Key("ctrl+w", None))
        await stage.until(lambda: not prompt(stage))
        stage.app.run_registered("tab.reopen")
        await stage.until(lambda: prompt(stage) == "several words")


async def test_a_new_tab_is_not_the_one_that_closes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("a chat")
        await stage.press("ctrl+t")
        closing, gate = stage.app.chats.active, asyncio.Event()
        save = stage.app.chats.save

        async def slow() -> None:
            await gate.wait()
            await save()

        monkeypatch.setattr(stage.app.chats, "save", slow)
        await stage.press("ctrl+w", "ctrl+t", *"new")
        gate.set()
        await stage.until(lambda: closing not in stage.app.chats)
        assert prompt(stage) == "new"


# The beginning -----------------------------------------------------------------------------------


async def test_what_is_typed_before_the_chats_are_there_stands_after_the_last_sessions_draft(
    tmp_path: Path,
) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.type("of yesterday")
    app = make_app(tmp_path)
    async with app.run_test() as pilot:
        app.chat_screen.prompt.load_draft(Draft("of today"))
        assert app.chat_screen.shown is None
        stage = Stage(app, FakeEngine(), pilot)
        await stage.until(lambda: app.chat_screen.shown)
        assert prompt(stage) == "of yesterday\n\nof today"
        await app.desk.close(app)


# Sending -----------------------------------------------------------------------------------------


async def test_a_message_goes_to_the_chat_in_which_enter_was_pressed(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("first")
        await stage.press("ctrl+t")
        await stage.ask("second")
        await stage.type("to the second")
        at_once(stage, "enter", "ctrl+pageup")
        await stage.until(lambda: len(list(stage.app.chats)[1].conversation.messages) == 4)
        await stage.settle()
        assert stage.texts() == ["first", "Hello there."]


async def test_a_tab_closes_after_what_is_being_sent_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach = SlowAttach(monkeypatch, works=True)
    async with on_stage(tmp_path, FakeEngine(manual=True)) as stage:
        session = stage.app.chats.active
        await stage.type("on its way")
        await stage.press("enter")
        await stage.until(attach.begun.is_set)
        assert session.unsent == "on its way", "as it would be saved now"
        await stage.press("ctrl+w")
        attach.gate.set()
        await stage.until(lambda: session not in stage.app.chats)
        assert (session.chat is not None, session.busy, session.unsent) == (True, False, "")
        assert [chat.title for chat in stage.app.history.chats.list()] == ["on its way"]


async def test_the_end_waits_for_what_is_being_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attach = SlowAttach(monkeypatch, works=True)
    async with on_stage(tmp_path, FakeEngine(manual=True)) as stage:
        session = stage.app.chats.active
        await stage.type("on its way")
        await stage.press("enter")
        await stage.until(attach.begun.is_set)
        closing = asyncio.create_task(session.close())
        await stage.pilot.pause()
        assert not closing.done()
        attach.gate.set()
        await closing
        assert (session.chat is not None, session.busy, session.unsent) == (True, False, "")


async def test_what_cannot_be_sent_from_a_tab_that_closes_stays_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach = SlowAttach(monkeypatch, works=False)
    async with on_stage(tmp_path) as stage:
        await stage.type("on its way")
        await stage.press("enter")
        await stage.until(attach.begun.is_set)
        session = stage.app.chats.active
        await stage.press("ctrl+w")
        attach.gate.set()
        await stage.until(lambda: session not in stage.app.chats)
        stage.app.run_registered("tab.reopen")
        await stage.until(lambda: prompt(stage) == "on its way")


# Edits -------------------------------------------------------------------------------------------


async def test_what_stood_in_the_prompt_comes_back_after_an_edit_that_was_left(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("a joke")
        await stage.type("half a thought")
        stage.app.run_registered("message.edit_last")
        assert prompt(stage) == "a joke"
        await stage.type(" about cats")
        assert stage.app.chats.active.unsent == "half a thought\n\na joke about cats"
        await stage.press("escape")
        assert prompt(stage) == "half a thought"
        await stage.press("up")
        assert prompt(stage) == "a joke about cats"
        await stage.press("down")
        assert prompt(stage) == "half a thought"


async def test_what_stood_in_the_prompt_comes_back_when_the_edit_is_sent(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("a joke")
        await stage.type("half a thought")
        stage.app.run_registered("message.edit_last")
        await stage.type(" please")
        await stage.press("enter")
        await stage.until(lambda: stage.texts() == ["a joke please", "Hello there."])
        assert prompt(stage) == "half a thought"


async def test_an_edit_that_cannot_be_sent_is_an_edit_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("a joke")
        message = stage.app.chats.active.conversation.messages[0].id
        await stage.type("half a thought")
        stage.app.run_registered("message.edit_last")
        await stage.type(" please")
        attach = SlowAttach(monkeypatch, works=False)
        attach.gate.set()
        await stage.press("enter")
        await stage.until(lambda: "cannot be read" in stage.notices)
        assert (prompt(stage), stage.app.chats.active.editing) == ("a joke please", message)
        await stage.press("escape")
        assert prompt(stage) == "half a thought"


async def test_an_edit_of_another_message_keeps_what_was_changed_in_the_first(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("a joke")
        await stage.type("half a thought")
        for _ in range(2):
            stage.app.run_registered("message.edit_last")
            await stage.type(" about cats")
        await stage.press("escape", "up")
        assert prompt(stage) == "a joke about cats"
        await stage.press("down")
        assert prompt(stage) == "half a thought"


@pytest.mark.parametrize("works", [True, False])
async def test_what_was_written_in_an_editor_is_kept_with_what_came_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    async with on_stage(tmp_path) as stage:

        def edit(command: list[str], **_: Any) -> None:
            Path(command[-1]).write_text("of the editor\n")
            stage.app.chat_screen.prompt.load_draft(Draft("given back"))
            if not works:
                raise subprocess.CalledProcessError(1, command)

        monkeypatch.setattr(subprocess, "run", edit)
        monkeypatch.setattr(stage.app, "suspend", contextlib.nullcontext)
        stage.app.run_registered("message.editor")
        if works:
            await stage.until(lambda: prompt(stage) == "of the editor\n\ngiven back")
        else:
            await stage.until(lambda: "did not work" in stage.notices)
            assert prompt(stage) == "given back"
            await stage.press("up")
            assert prompt(stage) == "of the editor"


@pytest.mark.parametrize(
    ("chosen", "told"), [('vi "', "No closing quotation"), ("/nowhere/vi", "/nowhere/vi did not work")]
)
async def test_an_editor_that_cannot_be_started_is_told_and_the_message_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str, told: str
) -> None:
    monkeypatch.setenv("VISUAL", chosen)
    async with on_stage(tmp_path) as stage:
        monkeypatch.setattr(stage.app, "suspend", contextlib.nullcontext)
        await stage.type("hello")
        stage.app.run_registered("message.editor")
        await stage.until(lambda: told in stage.notices)
        assert prompt(stage) == "hello"


# Up and Down -------------------------------------------------------------------------------------


async def test_every_tab_has_its_own_place_among_what_was_sent(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("sent")
        await stage.type("mine")
        await stage.press("up")
        await stage.type(", changed")
        await stage.press("ctrl+t")
        await stage.type("another")
        await stage.press("down")
        assert prompt(stage) == "another"
        await stage.press("up", "down")
        assert prompt(stage) == "another"
        await stage.press("ctrl+pageup")
        assert prompt(stage) == "sent, changed"
        await stage.press("down")
        assert prompt(stage) == "mine"
        await stage.press("up")
        assert prompt(stage) == "sent, changed"


async def test_the_unsent_text_outlives_a_recalled_line_that_is_sent_and_a_restart(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("sent")
        await stage.type("mine")
        await stage.press("up")
        assert stage.app.chats.active.unsent == "mine"
        await stage.press("enter")
        await stage.settle()
        await stage.press("up", "up")
        assert prompt(stage) == "mine"
        await stage.press("down", "down")
        await stage.type("later")
        await stage.press("up")
    async with on_stage(tmp_path) as stage:
        assert prompt(stage) == "later"
