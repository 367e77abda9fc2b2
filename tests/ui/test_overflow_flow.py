"""A chat that has outgrown its model's context: what is asked, and what each answer does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake_engine import MODEL, FakeEngine
from stage import Stage, on_stage

from nanochat.engine.request import Request
from nanochat.engine.stream import Stream
from nanochat.errors import HistoryFull
from nanochat.history import History
from nanochat.ui.screens.question import Question
from nanochat.ui.widgets.paged_list import PagedList


async def overflow(stage: Stage) -> None:
    """Send more than a context of 80 tokens holds, until the question comes what to do."""
    for _ in range(3):
        await stage.ask("twelve words are in this message which says nothing of interest today")
    await stage.type("and one more")
    await stage.press("enter")
    await stage.until(lambda: isinstance(stage.app.screen, Question))


async def test_a_chat_beyond_its_context_asks_and_drops_only_when_told_to(tmp_path: Path) -> None:
    async with on_stage(tmp_path, FakeEngine(context=80)) as stage:
        await overflow(stage)
        await stage.press("enter")
        await stage.settle()
        assert [message.dropped for message in stage.app.chats.active.conversation.messages][:3] == [
            True,
            True,
            False,
        ]


async def test_a_message_that_alone_is_too_long_is_not_offered_what_cannot_help(tmp_path: Path) -> None:
    async with on_stage(tmp_path, FakeEngine(context=80)) as stage:
        await stage.ask("short")
        await stage.type("word " * 100)
        await stage.press("enter")
        await stage.until(lambda: isinstance(stage.app.screen, Question))
        offered = stage.app.screen.query_one(PagedList).options
        assert [each.id for each in offered] == ["model", "back"]
        await stage.press("down", "enter")
        await stage.settle()
        assert stage.app.chat_screen.prompt.draft.full.strip() == ("word " * 100).strip()


async def test_a_question_goes_with_the_reply_that_asked_it(tmp_path: Path) -> None:
    async with on_stage(tmp_path, FakeEngine(context=80)) as stage:
        await overflow(stage)
        stage.app.run_registered("tab.close")  # as from a key before it
        await stage.until(lambda: not stage.texts(), "the tab is closed")
        assert stage.screen == "ChatScreen"


async def test_a_fork_with_a_summary_goes_on_in_a_new_chat(tmp_path: Path) -> None:
    engine = FakeEngine(context=1100, script=lambda request: ("short", " summary"))
    async with on_stage(tmp_path, engine) as stage:
        long = " ".join(["word"] * 250)
        while not isinstance(stage.app.screen, Question):
            stage.app.chat_screen.prompt.load_text(long)
            await stage.press("enter")
            await stage.until(lambda: not stage.app.chats.busy or isinstance(stage.app.screen, Question))
        await stage.press("down", "enter")
        await stage.until(lambda: len(stage.app.chats) == 2)
        await stage.settle()
        assert stage.texts() == [long, "short summary"]
        assert "short summary" in stage.app.chats.active.settings.system_prompt
        await stage.until(lambda: stage.app.chats.active.title.startswith("Continued · word word"))


async def outgrown(stage: Stage) -> str:
    """A chat that is longer than its context, up to the question; returns the message that did not fit."""
    long = " ".join(["word"] * 250)
    while not isinstance(stage.app.screen, Question):
        stage.app.chat_screen.prompt.load_text(long)
        await stage.press("enter")
        await stage.until(lambda: not stage.app.chats.busy or isinstance(stage.app.screen, Question))
    return long


async def summing(stage: Stage, engine: FakeEngine) -> tuple[str, Stream]:
    """The message that did not fit, and the summary that is being written."""
    long = await outgrown(stage)
    engine.manual = True
    await stage.press("down", "enter")

    def summaries() -> list[Request]:  # what the engine is asked in idle time is shorter
        return [request for request in engine.requests if request.params.max_tokens == engine.context // 4]

    await stage.until(lambda: summaries() and "summing up" in stage.status, "the summary began")
    return long, engine.streams[summaries()[0].request_id]


@pytest.mark.parametrize("key", ["escape", "ctrl+c"])
async def test_a_summary_stops_as_a_reply_does_and_the_message_is_back(tmp_path: Path, key: str) -> None:
    engine = FakeEngine(context=1100, script=lambda request: ("short", " summary"))
    async with on_stage(tmp_path, engine) as stage:
        long, summary = await summing(stage, engine)
        await stage.type("typed since")
        await stage.press(key)
        await stage.until(lambda: stage.app.chat_screen.prompt.text == f"{long}\n\ntyped since", "it is back")
        assert summary.request_id in engine.cancelled and summary.finished
        assert len(stage.app.chats) == 1 and not stage.app.chats.busy
        assert "summing" not in stage.status and "summary was stopped" in stage.notices


async def test_a_message_that_waits_for_a_summary_is_lost_in_no_way(tmp_path: Path) -> None:
    engine = FakeEngine(context=1100, script=lambda request: ("short", " summary"))
    async with on_stage(tmp_path, engine) as stage:
        long, summary = await summing(stage, engine)
        with History.open(tmp_path / "data" / "chats") as other:  # as after a kill at this moment
            await stage.until(lambda: other.chats.list()[0].draft == long, "it is saved as a draft")
        await stage.press("ctrl+w")
        await stage.until(lambda: summary.finished and not stage.texts(), "the tab is closed")
        assert stage.app.history.chats.list()[0].draft == long
        await stage.type("/reopen")
        await stage.press("enter")
        await stage.until(lambda: stage.app.chat_screen.prompt.text == long, "the draft came back")


async def test_a_message_that_cannot_be_sent_after_the_summary_is_back_in_the_new_chats_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(context=1100, script=lambda request: ("short", " summary"))
    async with on_stage(tmp_path, engine) as stage:
        long = await outgrown(stage)
        first = stage.app.chats.active
        waiting: list[str] = []

        def full(*_: object) -> None:
            waiting.append(first.unsent)
            raise HistoryFull("no space is left")

        with monkeypatch.context() as disk:
            disk.setattr(stage.app.history.messages, "add", full)
            await stage.press("down", "enter")
            await stage.until(lambda: "no space is left" in stage.notices and not stage.app.chats.busy)
        assert waiting == [long], "a kill at that moment loses it"
        assert len(stage.app.chats) == 2 and stage.app.chat_screen.prompt.text == long and not first.unsent
        await stage.press("enter")
        await stage.until(stage.texts, "it is sent now")
        await stage.settle()
        assert stage.texts() == [long, "short summary"]
        assert "short summary" in stage.app.chats.active.settings.system_prompt


@pytest.mark.parametrize("context", [120, 400])
async def test_a_summary_in_a_short_context_is_made_or_refused_and_never_hangs(
    tmp_path: Path, context: int
) -> None:
    engine = FakeEngine(context=context, script=lambda request: ("short", " summary"))
    async with on_stage(tmp_path, engine) as stage:
        long = " ".join(["word"] * (context // 3))
        while not isinstance(stage.app.screen, Question):
            stage.app.chat_screen.prompt.load_text(long)
            await stage.press("enter")
            await stage.until(lambda: not stage.app.chats.busy or isinstance(stage.app.screen, Question))
        await stage.press("down", "enter")
        if context == 400:
            await stage.until(lambda: len(stage.app.chats) == 2 and not stage.app.chats.busy)
            assert "short summary" in stage.app.chats.active.settings.system_prompt
            assert all(len(request.prompt_ids) <= context for request in engine.requests)
        else:
            await stage.until(lambda: "too short to sum a chat up" in stage.notices)
            await stage.until(lambda: stage.app.chat_screen.prompt.text == long, "the message is back")


async def test_a_longer_model_is_never_the_one_that_is_too_short(tmp_path: Path) -> None:
    async with on_stage(tmp_path, FakeEngine(context=80), models=(replace(MODEL, context=8192),)) as stage:
        await overflow(stage)
        await stage.press("down", "down", "enter")
        await stage.until(lambda: "no model with a context of more than 80 tokens" in stage.notices)
        await stage.until(lambda: isinstance(stage.app.screen, Question), "it asks again")
        await stage.press("escape")
        await stage.settle()
        assert stage.app.chat_screen.prompt.text == "and one more"
