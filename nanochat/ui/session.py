"""One chat's logic: its place in the history, its settings, and the reply that is coming. No Textual."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from nanochat.errors import HistoryError, NanochatError
from nanochat.storage.records import Chat, Message, Role
from nanochat.storage.records import Conversation as Records
from nanochat.ui.chat_settings import ChatSettings
from nanochat.ui.conversation import Conversation
from nanochat.ui.draft import Draft
from nanochat.ui.message_queue import MessageQueue
from nanochat.ui.outgoing import Outgoing
from nanochat.ui.recall import Recall
from nanochat.ui.reply import HIDDEN, VISIBLE, Reply
from nanochat.ui.services import Services, Summing, TabState
from nanochat.ui.session_view import tokens_in, views
from nanochat.ui.turn import Turn


class ChatSession:
    """One open chat. Belongs to the screen's thread; history calls go to workers.

    A chat without messages is not in the history yet: `chat` is None until the first is sent.
    """

    def __init__(
        self,
        services: Services,
        *,
        chat: Chat | None = None,
        settings: ChatSettings | None = None,
        draft: str = "",
    ) -> None:
        self._services = services
        self.chat = chat
        self.settings = settings or ChatSettings()
        self.draft = Draft.of(draft)
        self.recall, self.outgoing, self.queue = Recall(), Outgoing(), MessageQueue()
        self.conversation = Conversation(chat.id if chat else "new")
        self.records: Records | None = None
        self.reply: Reply | None = None
        self.unsaved: Turn | None = None  # whose reply the disk did not take
        self.visible = False
        self.unseen = self.failed = False
        self.context_tokens = 0
        self.editing = ""  # the message that the draft will replace
        self.aside = Draft()  # what stood in the prompt when that began
        self.summing: Summing | None = None
        self._task: asyncio.Task[None] | None = None
        self._starting = False

    # What it is --------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """The chat's title, or what stands for one."""
        return (self.chat.title if self.chat else "") or "New chat"

    @property
    def state(self) -> TabState:
        """What it is doing."""
        if self.reply is None:
            return TabState.FAILED if self.failed else TabState.UNSEEN if self.unseen else TabState.IDLE
        stream = self.reply.stream
        if stream is None:
            return TabState.QUEUED
        if stream.state == "waiting":
            return TabState.WAITING
        return TabState.PREFILLING if stream.state == "prefilling" else TabState.STREAMING

    @property
    def busy(self) -> bool:
        """Whether a reply, or a summary, is on its way."""
        return self._starting or self.reply is not None or self.summing is not None

    @property
    def unsent(self) -> str:
        """What would be lost with the tab: the draft, and before it what waits to be sent or to be written on."""
        summing = self.summing.text if self.summing else ""
        waiting = [*self.outgoing.texts, summing, *self.queue.texts, self.aside.full]
        return "\n\n".join(filter(None, (*waiting, *self.recall.texts(self.draft))))

    @property
    def blank(self) -> bool:
        """Whether nothing was ever written here."""
        return self.chat is None and not self.busy and not self.unsent.strip()

    @property
    def stopping(self) -> bool:
        """Whether the reply was told to stop."""
        return self.reply is not None and self.reply.stopping

    def message(self, message_id: str) -> Message | None:
        """The record behind a message of the transcript; None for one that is not in the history."""
        messages = self.records.messages if self.records else ()
        return next((record for record in messages if record.id == message_id), None)

    def last(self, role: Role) -> Message | None:
        """The last message of a role."""
        messages = self.records.messages if self.records else ()
        return next((record for record in reversed(messages) if record.role is role), None)

    # What the user does ------------------------------------------------------------------------

    async def load(self) -> None:
        """Read the chat and show it; what is drawn of equal messages stays."""
        if self.chat is None:
            return
        before = self.records.messages if self.records else ()
        self.records = await asyncio.to_thread(self._services.history.messages.open, self.chat.id)
        self.chat = self.records.chat
        if self.records.messages != before:
            self.context_tokens = tokens_in(self.records.messages)
        shown = list(views(self.records))
        writing = self.reply.running.id if self.reply else self.unsaved.reply_id if self.unsaved else ""
        if writing in self.conversation:
            shown.append(self.conversation.get(writing))
        self.conversation.replace_all(shown)
        self._services.changed(self)

    async def send(self, text: str) -> None:
        """Commit the user's message, then ask for a reply. Raises HistoryError: then nothing was sent."""
        async with self._alone():
            chat = await self._ensure_chat()
            message = await asyncio.to_thread(self._services.history.messages.add, chat.id, Role.USER, text)
            await self._answer(message.id, sent=text)

    async def regenerate(self, message_id: str | None = None) -> None:
        """A new variant of a reply, the last one without `message_id`."""
        async with self._alone():
            record = self._at(message_id, "make again")
            await self._answer(record.id if record.role is Role.USER else record.parent)

    async def continue_reply(self) -> None:
        """Go on where the last reply was stopped, interrupted or cut. The old one stays, as a variant."""
        async with self._alone():
            record = self._at(None, "continue")
            if record.role is Role.USER:
                await self._answer(record.id)
            else:
                await self._answer(record.parent, start=record if record.token_ids else None)

    async def edit(self, message_id: str, text: str) -> None:
        """A new variant of a message; to one of the user's, a reply is made. The old one stays."""
        async with self._alone():
            record = self._at(message_id, "edit")
            edit = self._services.history.messages.edit
            edited = await asyncio.to_thread(edit, self._chat_id(), record.id, text)
            if edited.role is Role.USER:
                await self._answer(edited.id)
            else:
                await self.load()

    async def step_variant(self, message_id: str, step: int) -> None:
        """Go to the version before or after."""
        async with self._alone():
            record = self._at(message_id, "step from")
            await asyncio.to_thread(self._services.history.messages.step, self._chat_id(), record.id, step)
            await self.load()

    async def go_to(self, message_id: str) -> None:
        """Show the version of the chat that has this message; while a reply is on its way, the shown one stays."""
        if self.busy or (self.records is not None and self.message(message_id) is not None):
            return
        await asyncio.to_thread(self._services.history.messages.step, self._chat_id(), message_id, 0)
        await self.load()

    async def delete(self, message_id: str) -> str:
        """Hide a message and all under it; returns its id for `undelete`."""
        async with self._alone():
            record = self._at(message_id, "delete")
            await asyncio.to_thread(self._services.history.messages.hide, self._chat_id(), record.id)
            await self.load()
            return record.id

    async def undelete(self, message_id: str) -> None:
        """Undo `delete`."""
        async with self._alone():
            await asyncio.to_thread(self._services.history.messages.unhide, self._chat_id(), message_id)
            await self.load()

    async def fork(self, message_id: str | None = None) -> Chat:
        """A new chat that shares everything up to a message, the last one without `message_id`."""
        record = self._at(message_id, "fork")
        return await asyncio.to_thread(self._services.history.chats.fork, self._chat_id(), record.id)

    async def apply(self, settings: ChatSettings) -> None:
        """Use other settings from the next turn on."""
        self.settings = settings
        if self.chat is not None:
            await asyncio.to_thread(
                self._services.history.chats.set_settings, self.chat.id, settings.as_json()
            )
        self._services.changed(self)

    async def rename(self, title: str) -> None:
        """Give the chat a title of the user's."""
        chat = await self._ensure_chat()
        await asyncio.to_thread(self._services.history.chats.rename, chat.id, title)
        await self.refresh_chat()

    async def refresh_chat(self) -> None:
        """Read title and pin again."""
        if self.chat is not None:
            self.chat = await asyncio.to_thread(self._services.history.chats.get, self.chat.id)
            self._services.changed(self)

    def stop(self) -> bool:
        """Stop the reply, whose text stays, or the summary; what waits for it is not sent. Returns whether there was one."""
        self._services.give_back(self)
        if self.summing is not None:
            self.summing.task.cancel()
        if self.reply is not None:
            self.reply.stop()
        return self.reply is not None or self.summing is not None

    def show(self, visible: bool) -> None:
        """The chat came into view, or left it: who is seen goes first in the engine."""
        self.visible = visible
        if visible:
            self.unseen = self.failed = False
        if self.reply is not None:
            self.reply.priority = VISIBLE if visible else HIDDEN
            if self.reply.stream is not None:
                self._services.host.engine.set_priority(self.reply.stream.request_id, self.reply.priority)
            self.reply.drain()

    async def close(self) -> None:
        """Let what is being sent be sent, stop, and wait until the reply is saved."""
        await self.outgoing.settled()
        self.stop()
        if self.summing is not None:
            await asyncio.wait({self.summing.task})
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        with suppress(HistoryError):  # it was told, and the history keeps what it has
            await self._save_reply()

    # The reply ---------------------------------------------------------------------------------

    async def _answer(self, parent: str, start: Message | None = None, sent: str = "") -> None:
        turn = await Turn.begin(self, self._services, self._chat_id(), parent, start, sent)
        self._task = asyncio.create_task(turn.see_through())
        self._services.changed(self)

    async def _ensure_chat(self) -> Chat:
        if self.chat is None:
            chats = self._services.history.chats
            self.chat = await asyncio.to_thread(lambda: chats.create(settings=self.settings.as_json()))
        return self.chat

    def _chat_id(self) -> str:
        if self.chat is None:
            raise NanochatError("this chat has no message yet: send one first")
        return self.chat.id

    async def _save_reply(self) -> None:
        """What was shown of a reply that the disk did not take must not go. Raises HistoryError: the disk is still full."""
        if self.unsaved is not None:
            await self.unsaved.save_again()
            self.unsaved = None

    def _at(self, message_id: str | None, what: str) -> Message:
        """The record of a message, the last one without `message_id`."""
        messages = self.records.messages if self.records else ()
        record = self.message(message_id) if message_id else messages[-1] if messages else None
        if record is None and self.reply is not None and message_id == self.reply.running.id:
            raise NanochatError(
                f"this reply is still coming: {what} it when it has ended, or stop it with Esc"
            )
        if record is None:
            raise NanochatError(f"there is nothing to {what} here: send a message first")
        return record

    @asynccontextmanager
    async def _alone(self) -> AsyncGenerator[None]:
        """One thing at a time: nothing changes the path of a chat while a reply is on its way, or not saved."""
        if self.busy:
            raise NanochatError("a reply is on its way in this chat: wait for it, or stop it with Esc")
        self._starting = True
        try:
            await self._save_reply()
            yield
        finally:
            self._starting = False
