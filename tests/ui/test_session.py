"""One chat's logic, without a screen: the history is real, the engine is scripted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fake_engine import MODEL, OTHER, FakeEngine, FakeLanguage, FakeShelf

from nanochat.engine.config import EngineConfig
from nanochat.engine.outputs import FinishReason
from nanochat.errors import EngineDead, HistoryFull, NanochatError
from nanochat.history import History
from nanochat.storage.records import Message, Role, Status
from nanochat.ui import chrome
from nanochat.ui import reply as reply_module
from nanochat.ui.model_host import HostState, ModelHost
from nanochat.ui.overflow import Overflow
from nanochat.ui.services import Choice, Services, TabState
from nanochat.ui.session import ChatSession
from nanochat.ui.session_view import DROPPED

SECONDS = 5.0


@dataclass
class Room:
    """One session with everything behind it."""

    engine: FakeEngine
    history: History
    host: ModelHost
    notices: list[str] = field(default_factory=list)
    ended: list[Message | None] = field(default_factory=list)
    overflows: list[Overflow] = field(default_factory=list)
    choice: Choice | None = None
    withdrawn: list[tuple[str, Choice | None]] = field(default_factory=list)
    may_unload: bool = True
    ring: Callable[[], object] = lambda: None
    sessions: list[ChatSession] = field(default_factory=list)

    def drain(self) -> None:
        for session in self.sessions:
            if session.reply is not None:
                session.reply.drain()

    def session(self, **given: object) -> ChatSession:
        session = ChatSession(self.services, **given)  # type: ignore[arg-type]
        self.sessions.append(session)
        session.show(True)
        return session

    async def ask_overflow(self, session: ChatSession, needed: Overflow) -> Choice | None:
        self.overflows.append(needed)
        return self.choice

    @property
    def services(self) -> Services:
        return Services(
            history=self.history, host=self.host, ring=lambda: self.ring(), notify=self.notices.append,
            changed=lambda session: None, ended=lambda session, record: self.ended.append(record),
            ask_overflow=self.ask_overflow,
            withdrawn=lambda session, text, choice: self.withdrawn.append((text, choice)),
            go_on=lambda session: None, give_back=lambda session: None,
        )  # fmt: skip


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not true():
            await asyncio.sleep(0.005)


async def slow_load(room: Room) -> None:
    """Begin to load the model again; it ends when the test says so."""
    await room.host.ready()
    room.engine.load_at_once = False
    room.host.unload()
    room.host.start(MODEL)
    await until(lambda: len(room.engine.loads) == 2)


async def finished(session: ChatSession) -> None:
    """Wait until the reply is in the history."""
    await until(lambda: not session.busy)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with History.open(tmp_path / "chats") as history:
        yield history


@pytest.fixture
async def room(history: History) -> AsyncIterator[Room]:
    engine = FakeEngine()
    host = ModelHost(
        engine, configure=lambda folder: EngineConfig(model=folder), find=FakeShelf().find,
        read=lambda model: FakeLanguage(model.name), may_unload=lambda name: answer(room), on_change=lambda: None,
    )  # fmt: skip
    room = Room(engine, history, host)
    host.start(MODEL)
    loop = asyncio.get_running_loop()
    room.ring = lambda: loop.call_soon_threadsafe(room.drain)
    yield room
    engine.close()


async def answer(room: Room) -> bool:
    return room.may_unload


def shown(session: ChatSession) -> list[tuple[str, str, str]]:
    return [(message.role, message.text, message.status) for message in session.conversation.messages]


async def test_the_device_is_lent_when_a_load_under_way_has_ended(room: Room) -> None:
    """A load cannot be interrupted: until it ends its weights fill the memory that was asked for."""
    await slow_load(room)
    lending = asyncio.create_task(room.host.lend())
    await until(lambda: room.engine.closed)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not lending.done()
    room.engine.loads[-1].finish(EngineDead("the load was called off"))
    await asyncio.wait_for(lending, SECONDS)
    room.host.take_back()


async def test_the_users_message_is_on_disk_before_the_engine_sees_the_request(
    room: Room, history: History
) -> None:
    room.engine.manual = True
    session = room.session()
    seen: list[list[str]] = []
    submit = room.engine.submit

    def looking(request, on_ready=None):  # type: ignore[no-untyped-def]
        (chat,) = history.chats.list()
        seen.append([message.content for message in history.messages.open(chat.id).messages])
        return submit(request, on_ready)

    room.engine.submit = looking  # type: ignore[method-assign]
    await session.send("What is a tree?")
    await until(lambda: seen)
    assert seen == [["What is a tree?"]]
    await session.close()


async def test_a_reply_streams_into_the_conversation_and_ends_in_the_history(
    room: Room, history: History
) -> None:
    session = room.session()
    await session.send("Say hello")
    await finished(session)
    assert shown(session) == [("user", "Say hello", "done"), ("assistant", "Hello there.", "done")]
    assert session.chat is not None
    stored = history.messages.open(session.chat.id).messages[-1]
    assert (stored.content, stored.token_ids, stored.status) == ("Hello there.", (1, 2, 3), Status.DONE)
    assert stored.metrics["output_tokens"] == 3
    assert session.conversation.messages[-1].id == stored.id
    assert "3 tok" in session.conversation.messages[-1].footer
    assert "reused 50 %" in session.conversation.messages[-1].footer


async def test_a_message_sent_before_the_model_is_ready_waits_and_goes(room: Room, history: History) -> None:
    await slow_load(room)
    session = room.session()
    await session.send("Early bird")
    assert session.state is TabState.QUEUED
    assert not room.engine.requests
    room.engine.finish_load()
    await finished(session)
    assert shown(session)[-1] == ("assistant", "Hello there.", "done")


async def test_reasoning_is_kept_apart_from_the_answer(room: Room, history: History) -> None:
    room.engine.script = lambda request: ("<think>", "Hm, ", "so.", "</think>", "Yes.")
    session = room.session()
    await session.send("Is it?")
    await finished(session)
    last = session.conversation.messages[-1]
    assert (last.reasoning, last.text) == ("Hm, so.", "Yes.")
    assert session.records is not None
    assert session.records.messages[-1].metrics["reasoned"] is True
    seconds = session.records.messages[-1].metrics["reasoning_seconds"]
    assert last.reasoning_seconds == seconds >= 0


async def test_stop_keeps_the_text(room: Room) -> None:
    room.engine.manual = True
    session = room.session()
    await session.send("Count")
    await until(lambda: session.reply and session.reply.stream)
    room.engine.emit(room.engine.last, "one ", "two ")
    assert session.reply is not None
    session.reply.drain()
    assert session.state is TabState.STREAMING
    session.stop()
    await finished(session)
    assert shown(session)[-1] == ("assistant", "one two ", "stopped")
    assert "stopped" in session.conversation.messages[-1].footer


async def test_stop_while_the_model_loads_ends_the_wait_at_once(room: Room) -> None:
    await slow_load(room)
    session = room.session()
    await session.send("Never mind")
    session.stop()
    await finished(session)
    assert shown(session)[-1] == ("assistant", "", "stopped")
    room.engine.finish_load()
    await asyncio.sleep(0)
    assert not room.engine.requests


async def test_the_partial_text_is_saved_while_it_streams(
    room: Room, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reply_module, "CHECKPOINT_SECONDS", 0.02)
    room.engine.manual = True
    session = room.session()
    await session.send("Long one")
    await until(lambda: session.reply and session.reply.stream)
    room.engine.emit(room.engine.last, "part ", "one ")
    chat = session.chat
    assert chat is not None
    await until(lambda: history.messages.open(chat.id).running[0].content == "part one ")
    assert history.messages.open(chat.id).running[0].token_ids == (1, 2)
    await session.close()


async def test_what_was_interrupted_goes_on_where_it_ended(room: Room, history: History) -> None:
    room.engine.manual = True
    session = room.session()
    await session.send("Count")
    await until(lambda: session.reply and session.reply.stream)
    room.engine.emit(room.engine.last, "one ", "two ")
    session.stop()
    await finished(session)
    await session.continue_reply()
    await until(lambda: session.reply and session.reply.stream)
    assert room.engine.requests[-1].prompt_ids[-2:] == (1, 2)
    room.engine.emit(room.engine.last, "three")
    room.engine.finish(room.engine.last)
    await finished(session)
    last = session.conversation.messages[-1]
    assert (last.text, last.variant, last.variants) == ("one two three", 2, 2)
    assert session.records is not None
    assert session.records.messages[-1].token_ids == (1, 2, 1)


async def test_a_reply_that_goes_on_counts_once_in_the_context(room: Room) -> None:
    def used() -> tuple[int, str]:
        session.reply and session.reply.drain()
        return chrome.chat_figures(session, room.host).context_used, chrome.frame_figures(
            session, room.host, 0
        )[0]

    room.engine.manual = True
    session = room.session()
    await session.send("Count")
    await until(lambda: session.reply and session.reply.stream)
    room.engine.emit(room.engine.last, *["one "] * 500)
    session.stop()
    await finished(session)
    assert used() == (505, "505/1.0k 49 %")
    await session.continue_reply()
    await until(lambda: session.reply and session.reply.stream)
    assert used() == (505, "505/1.0k 49 %")
    room.engine.emit(room.engine.last, "three")
    assert used() == (506, "506/1.0k 49 %")
    session.stop()
    await finished(session)
    assert used() == (506, "506/1.0k 49 %")


async def test_regenerate_keeps_every_version_and_steps_through_them(room: Room) -> None:
    session = room.session()
    await session.send("A joke")
    await finished(session)
    room.engine.script = lambda request: ("Another", " one")
    await session.regenerate()
    await finished(session)
    last = session.conversation.messages[-1]
    assert (last.text, last.variant, last.variants) == ("Another one", 2, 2)
    await session.step_variant(last.id, -1)
    assert session.conversation.messages[-1].text == "Hello there."
    await session.step_variant(session.conversation.messages[-1].id, 1)
    assert session.conversation.messages[-1].text == "Another one"


async def test_edit_makes_a_new_version_and_the_old_one_stays(room: Room, history: History) -> None:
    session = room.session()
    await session.send("A joke")
    await finished(session)
    await session.edit(session.conversation.messages[0].id, "A poem")
    await finished(session)
    assert [text for _, text, _ in shown(session)] == ["A poem", "Hello there."]
    assert session.conversation.messages[0].variants == 2
    await session.step_variant(session.conversation.messages[0].id, -1)
    assert [text for _, text, _ in shown(session)] == ["A joke", "Hello there."]


async def test_a_fork_leaves_the_chat_as_it_was(room: Room, history: History) -> None:
    session = room.session()
    for text in ("one", "two"):
        await session.send(text)
        await finished(session)
    forked = await session.fork(session.conversation.messages[1].id)
    assert [message.content for message in history.messages.open(forked.id).messages] == [
        "one",
        "Hello there.",
    ]
    assert len(session.conversation.messages) == 4


async def test_delete_hides_a_turn_and_undelete_brings_it_back(room: Room) -> None:
    session = room.session()
    for text in ("one", "two"):
        await session.send(text)
        await finished(session)
    hidden = await session.delete(session.conversation.messages[2].id)
    assert [text for _, text, _ in shown(session)] == ["one", "Hello there."]
    await session.undelete(hidden)
    assert [text for _, text, _ in shown(session)] == ["one", "Hello there.", "two", "Hello there."]


async def test_a_dead_engine_fails_the_reply_and_keeps_its_text(room: Room) -> None:
    room.engine.manual = True
    session = room.session()
    await session.send("Hello")
    await until(lambda: session.reply and session.reply.stream)
    room.engine.emit(room.engine.last, "Half a ")
    assert session.reply is not None
    session.reply.drain()
    room.engine.last.fail(EngineDead("the engine stopped: out of luck"))
    await finished(session)
    last = session.conversation.messages[-1]
    assert (last.text, last.status, last.error) == ("Half a ", "failed", "the engine stopped: out of luck")


async def test_an_error_of_one_request_is_shown_with_its_reply(room: Room) -> None:
    room.engine.manual = True
    session = room.session()
    await session.send("Hello")
    await until(lambda: session.reply and session.reply.stream)
    room.engine.finish(room.engine.last, FinishReason.ERROR, "the logits were not numbers")
    await finished(session)
    assert session.conversation.messages[-1].error == "the logits were not numbers"


async def test_nothing_changes_a_chat_while_a_reply_is_on_its_way(room: Room) -> None:
    room.engine.manual = True
    session = room.session()
    await session.send("Hello")
    for change in (
        session.send("again"),
        session.regenerate(),
        session.delete("x"),
        session.continue_reply(),
    ):
        with pytest.raises(NanochatError, match="on its way"):
            await change
    await session.close()


async def test_a_hidden_chat_ends_unseen_and_is_seen_when_shown(room: Room) -> None:
    session = room.session()
    session.show(False)
    await session.send("Hello")
    await finished(session)
    assert session.state is TabState.UNSEEN
    session.show(True)
    assert session.state is TabState.IDLE


async def test_the_visible_chat_goes_first_in_the_engine(room: Room) -> None:
    room.engine.manual = True
    session = room.session()
    await session.send("Hello")
    await until(lambda: session.reply and session.reply.stream)
    assert room.engine.requests[-1].priority == 0
    session.show(False)
    assert room.engine.priorities == {room.engine.requests[-1].request_id: 1}
    session.show(True)
    assert room.engine.priorities == {room.engine.requests[-1].request_id: 0}
    await session.close()


async def test_settings_hold_from_the_next_turn_and_stay_with_the_chat(room: Room, history: History) -> None:
    session = room.session()
    await session.send("Hello")
    await finished(session)
    assert room.engine.requests[-1].params.temperature is None
    await session.apply(session.settings.with_value("temperature", 0.3))
    await session.send("Again")
    await finished(session)
    assert room.engine.requests[-1].params.temperature == 0.3
    assert session.chat is not None
    assert history.chats.get(session.chat.id).settings == {"temperature": 0.3}


# The end of the context ------------------------------------------------------------------------------


async def overfull(room: Room) -> ChatSession:
    """A chat of three turns that outgrew its context with the fourth message."""
    room.engine.context = 80
    session = room.session()
    for _ in range(3):
        await session.send("twelve words are in this message which says nothing of interest today")
        await finished(session)
    room.engine.requests.clear()
    return session


async def test_dropping_the_oldest_turns_drops_as_few_as_needed_and_marks_them(
    room: Room, history: History
) -> None:
    session = await overfull(room)
    room.choice = "drop"
    await session.send("and one more")
    await finished(session)
    assert len(room.overflows) == 1
    assert [message.dropped for message in session.conversation.messages] == [True, True, *[False] * 6]
    assert len(room.engine.requests[-1].prompt_ids) <= room.overflows[0].limit
    assert session.conversation.messages[-1].text == "Hello there."
    said = [DROPPED in message.footer for message in session.conversation.messages]
    assert said == [False, True, *[False] * 6], "where the model's view begins, and nowhere else"


async def test_a_chat_whose_only_message_is_taken_back_is_in_no_list_until_something_is_sent_in_it(
    room: Room, history: History
) -> None:
    room.engine.context = 80
    session = room.session()
    await session.send("many words " * 60)
    await finished(session)
    assert room.withdrawn and history.chats.list() == ()
    await session.send("few words")
    await finished(session)
    assert [chat.id for chat in history.chats.list()] == [session.chat.id if session.chat else ""]
    assert [text for _, text, _ in shown(session)] == ["few words", "Hello there."]


async def test_a_message_taken_back_leaves_no_trace_and_returns_to_the_prompt(room: Room) -> None:
    session = await overfull(room)
    before = shown(session)
    await session.send("and one more")
    await finished(session)
    assert room.withdrawn == [("and one more", None)]
    assert shown(session) == before
    assert not room.engine.requests


async def test_a_fork_with_a_summary_takes_the_message_out_of_this_chat(room: Room) -> None:
    session = await overfull(room)
    room.choice = "fork"
    await session.send("and one more")
    await finished(session)
    assert room.withdrawn == [("and one more", "fork")]


async def test_nothing_is_dropped_without_being_asked(room: Room) -> None:
    session = await overfull(room)
    await session.send("and one more")
    await finished(session)
    assert len(room.overflows) == 1
    assert not any(message.dropped for message in session.conversation.messages)


# The disk --------------------------------------------------------------------------------------------


async def test_a_full_disk_sends_nothing_and_says_so(
    room: Room, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise HistoryFull("no space is left")

    monkeypatch.setattr(history.messages, "add", full)
    session = room.session()
    with pytest.raises(HistoryFull):
        await session.send("Hello")
    assert not session.busy
    assert not room.engine.requests


async def test_a_reply_that_cannot_be_saved_is_tried_again(
    room: Room, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reply_module, "RETRY_SECONDS", 0.01)
    finish, tries = history.replies.finish, []

    def first_full(*given: object, **named: object) -> Message:
        tries.append(1)
        if len(tries) == 1:
            raise HistoryFull("no space is left")
        return finish(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(history.replies, "finish", first_full)
    session = room.session()
    await session.send("Hello")
    await finished(session)
    assert shown(session)[-1] == ("assistant", "Hello there.", "done")
    assert "no space is left" in room.notices[0]


@pytest.mark.parametrize("then", ["send", "close"])
async def test_a_reply_that_the_disk_did_not_take_stays_and_is_saved_once_it_does(
    room: Room, history: History, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    monkeypatch.setattr(reply_module, "RETRY_SECONDS", 0.01)
    finish = history.replies.finish

    def full(*_: object, **__: object) -> Message:
        raise HistoryFull("no space is left")

    monkeypatch.setattr(history.replies, "finish", full)
    session = room.session()
    await session.send("Hello")
    await finished(session)
    with pytest.raises(HistoryFull):
        await session.send("again")
    await session.load()
    assert shown(session)[-1] == ("assistant", "Hello there.", "failed")
    monkeypatch.setattr(history.replies, "finish", finish)
    if then == "send":
        await session.send("again")
        await finished(session)
        assert [text for _, text, _ in shown(session)] == ["Hello", "Hello there.", "again", "Hello there."]
    await session.close()
    assert session.chat is not None
    kept = history.messages.open(session.chat.id).messages
    assert [(each.content, each.status) for each in kept][:2] == [("Hello", "done"), ("Hello there.", "done")]


# Models ----------------------------------------------------------------------------------------------


async def test_a_chat_with_another_model_loads_it_when_nobody_uses_the_first(room: Room) -> None:
    session = room.session()
    await session.apply(session.settings.with_value("model", OTHER.name))
    await session.send("Hello")
    await finished(session)
    assert room.host.model == OTHER
    assert len(room.engine.loads) == 2


async def test_a_model_that_the_user_keeps_fails_the_other_chats_message(room: Room) -> None:
    await room.host.ready()
    room.may_unload = False
    session = room.session()
    await session.apply(session.settings.with_value("model", OTHER.name))
    await session.send("Hello")
    await finished(session)
    assert "stays loaded" in session.conversation.messages[-1].error
    assert room.host.model == MODEL


async def test_a_load_that_fails_fails_what_waits_for_it_and_can_be_tried_again(room: Room) -> None:
    await slow_load(room)
    session = room.session()
    await session.send("Hello")
    room.engine.finish_load(error=EngineDead("out of memory"))
    await finished(session)
    assert session.conversation.messages[-1].error == "out of memory"
    assert room.host.state is HostState.FAILED
    room.engine.load_at_once = True
    await session.regenerate()
    await finished(session)
    assert session.conversation.messages[-1].text == "Hello there."


async def test_a_load_called_off_for_another_model_does_not_end_who_waits(room: Room) -> None:
    await slow_load(room)
    session = room.session()
    await session.send("Hello")
    room.host.start(OTHER)
    await until(lambda: len(room.engine.loads) == 3)
    room.engine.finish_load()
    await finished(session)
    assert shown(session)[-1] == ("assistant", "Hello there.", "done")


def test_roles_of_the_history_are_those_of_the_transcript() -> None:
    assert {Role.USER.value, Role.ASSISTANT.value} <= {"user", "assistant", "notice"}
