"""Whatever is done to a history, in whatever order: every id holds, nothing acknowledged is lost, search agrees."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from nanochat.history import History
from nanochat.storage.records import Message, Role, Running, Status

TEXT = st.text(alphabet='abAB é漢字\n"*', max_size=12)
ENDS = st.sampled_from([Status.DONE, Status.STOPPED, Status.FAILED])


@dataclass
class Expected:
    """What a chat must hold, from what the history acknowledged."""

    head: str
    messages: dict[str, Message] = field(default_factory=dict[str, Message])
    hidden: dict[str, str] = field(default_factory=dict[str, str])  # message -> what it was deleted with
    deleted: bool = False

    def path(self) -> list[str]:
        found: list[str] = []
        at = self.head
        while at in self.messages:
            found.append(at)
            at = self.messages[at].parent
        return found[::-1]

    def below(self, top: str) -> set[str]:
        found = {top}
        for each in self.messages.values():  # in the order of writing: parents first
            if each.parent in found:
                found.add(each.id)
        return found

    def shown(self) -> list[Message]:
        return [message for name, message in self.messages.items() if name not in self.hidden]

    def reveal(self, top: str) -> None:
        while top in self.messages:
            self.hidden.pop(top, None)
            top = self.messages[top].parent

    def add(self, message: Message, *, stand: bool) -> None:
        self.messages[message.id] = message
        if stand:
            self.reveal(message.parent)
            self.head = message.id
        elif message.parent in self.hidden:
            self.hidden[message.id] = self.hidden[message.parent]


class HistoryMachine(RuleBasedStateMachine):
    chats = Bundle("chats")
    running = Bundle("running")

    @initialize(target=chats)
    def start(self) -> str:
        self.folder = Path(tempfile.mkdtemp(prefix="nanochat-history-"))
        self.ticks = itertools.count(1_700_000_000)
        self.expected: dict[str, Expected] = {}
        self.open_replies: dict[str, tuple[str, Running, str]] = {}
        self.open()
        return self.create()

    def open(self) -> None:
        self.history = History.open(self.folder, clock=lambda: float(next(self.ticks)))

    def teardown(self) -> None:
        if hasattr(self, "history"):
            self.history.close()
            shutil.rmtree(self.folder)

    def some(self, chat: str, choice: int) -> str | None:
        names = list(self.expected[chat].messages)
        return names[choice % len(names)] if names else None

    def create(self) -> str:
        chat = self.history.chats.create()
        self.expected[chat.id] = Expected(chat.head)
        return chat.id

    @rule(target=chats)
    def another(self) -> str:
        return self.create()

    @rule(chat=chats, texts=st.lists(TEXT, min_size=1, max_size=3))
    def ask(self, chat: str, texts: list[str]) -> None:
        for text in texts:
            message = self.history.messages.add(chat, Role.USER, text)
            assert message.parent == self.expected[chat].head
            self.expected[chat].add(message, stand=True)

    @rule(target=running, chat=chats, choice=st.integers(0, 99))
    def begin(self, chat: str, choice: int) -> str:
        expected = self.expected[chat]
        parent = self.some(chat, choice) or expected.head  # under any message: a first answer, or another one
        reply = self.history.replies.begin(chat, parent, model="tiny")
        expected.reveal(parent)
        expected.head = parent
        self.open_replies[reply.id] = (chat, reply, "")
        return reply.id

    @rule(reply=running, text=TEXT)
    def checkpoint(self, reply: str, text: str) -> None:
        if reply in self.open_replies:
            chat, begun, before = self.open_replies[reply]
            self.history.replies.checkpoint(reply, before + text)
            self.open_replies[reply] = (chat, begun, before + text)

    @rule(reply=consumes(running), end=ENDS, text=TEXT)
    def finish(self, reply: str, end: Status, text: str) -> None:
        if reply not in self.open_replies:
            return
        chat, begun, _ = self.open_replies.pop(reply)
        stand = self.expected[chat].head == begun.parent
        message = self.history.replies.finish(reply, end, text, token_ids=range(len(text)))
        assert (message.content, message.status, message.parent) == (text, end, begun.parent)
        self.expected[chat].add(message, stand=stand)

    @rule(chat=chats, choice=st.integers(0, 99), text=TEXT)
    def edit(self, chat: str, choice: int, text: str) -> None:
        if old := self.some(chat, choice):
            message = self.history.messages.edit(chat, old, text)
            assert message.parent == self.expected[chat].messages[old].parent
            self.expected[chat].add(message, stand=True)

    @rule(target=chats, chat=chats, choice=st.integers(0, 99))
    def fork(self, chat: str, choice: int) -> str:
        expected = self.expected[chat]
        top = self.some(chat, choice) or expected.head
        fork = self.history.chats.fork(chat, top)
        copy = Expected(top, dict(expected.messages))
        copy.messages = {name: expected.messages[name] for name in copy.path()}
        self.expected[fork.id] = copy
        return fork.id

    @rule(chat=chats, choice=st.integers(0, 99), by=st.sampled_from([-1, 1]))
    def step(self, chat: str, choice: int, by: int) -> None:
        if name := self.some(chat, choice):
            expected = self.expected[chat]
            siblings = [m.id for m in expected.shown() if m.parent == expected.messages[name].parent]
            head = self.history.messages.step(chat, name, by)
            if name in siblings:
                chosen = siblings[max(0, min(len(siblings) - 1, siblings.index(name) + by))]
                assert head in expected.below(chosen) and head not in expected.hidden
            expected.head = head

    @rule(chat=chats, choice=st.integers(0, 99))
    def go(self, chat: str, choice: int) -> None:
        if name := self.some(chat, choice):
            self.history.messages.go(chat, name)
            self.expected[chat].reveal(name)
            self.expected[chat].head = name

    @rule(chat=chats, choice=st.integers(0, 99))
    def hide(self, chat: str, choice: int) -> None:
        if name := self.some(chat, choice):
            expected = self.expected[chat]
            for each in expected.below(name):
                expected.hidden.setdefault(each, name)
            head = self.history.messages.hide(chat, name)
            assert expected.head in expected.hidden or head == expected.head
            expected.head = head

    @rule(chat=chats, choice=st.integers(0, 99))
    def unhide(self, chat: str, choice: int) -> None:
        if name := self.some(chat, choice):
            expected = self.expected[chat]
            expected.hidden = {each: top for each, top in expected.hidden.items() if top != name}
            expected.reveal(name)
            expected.head = self.history.messages.unhide(chat, name)
            assert expected.head in expected.below(name)

    @rule(chat=chats)
    def delete_or_restore(self, chat: str) -> None:
        expected = self.expected[chat]
        (self.history.chats.restore if expected.deleted else self.history.chats.delete)(chat)
        expected.deleted = not expected.deleted

    @precondition(lambda self: hasattr(self, "history"))
    @rule()
    def reopen(self) -> None:
        self.history.close()
        self.open()
        assert all(message.status is Status.INTERRUPTED for message in self.history.recovered)
        # Oldest first, as they are recovered.
        for message, (chat, begun, text) in zip(
            self.history.recovered, self.open_replies.values(), strict=True
        ):
            assert (message.parent, message.content) == (begun.parent, text)
            self.expected[chat].add(message, stand=self.expected[chat].head == begun.parent)
        self.open_replies.clear()

    @rule(query=TEXT)
    def search(self, query: str) -> None:
        words = [word.casefold() for word in query.split()]
        found = {
            found.chat.id: {hit.message for hit in found.hits}
            for found in self.history.search(query, chats=999, hits=999)
        }
        expected = {
            chat: {
                m.id for m in each.shown() if words and all(word in m.content.casefold() for word in words)
            }
            for chat, each in self.expected.items()
            if not each.deleted
        }
        assert {chat: hits for chat, hits in found.items() if hits} == {
            chat: hits for chat, hits in expected.items() if hits
        }

    @invariant()
    def everything_is_whole(self) -> None:
        if hasattr(self, "history"):
            assert self.history.check() == ()

    @invariant()
    def nothing_acknowledged_is_lost(self) -> None:
        for chat, expected in getattr(self, "expected", {}).items():
            conversation = self.history.messages.open(chat)
            assert conversation.chat.head == expected.head
            assert [m.id for m in conversation.messages] == expected.path()
            held = {m.id: m for m in self.history.bundle(chat).messages[1:]}
            assert held.keys() == {m.id for m in expected.shown()}
            for name, message in held.items():
                wrote = expected.messages[name]
                assert (message.content, message.role, message.status, message.packed_ids, message.parent) == (
                    wrote.content, wrote.role, wrote.status, wrote.packed_ids, wrote.parent,
                )  # fmt: skip
                assert message.expected_id() == message.id


TestHistoryMachine = HistoryMachine.TestCase
TestHistoryMachine.settings = settings(
    max_examples=60, stateful_step_count=30, suppress_health_check=list(HealthCheck)
)
