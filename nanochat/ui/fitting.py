"""A chat's prompt, made to fit into the model's context; what does not fit is taken back. No Textual."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from nanochat.storage.records import Message, Running
from nanochat.ui.overflow import measure
from nanochat.ui.prompting import ask, drop_oldest, last_fits
from nanochat.ui.reply import Prepared, Stopped
from nanochat.ui.services import Choice, Services

if TYPE_CHECKING:
    from nanochat.ui.session import ChatSession


class Fitting:
    """Of one reply. `sent` is the message that was just sent for it, "" where there is none."""

    def __init__(self, session: ChatSession, services: Services, running: Running, sent: str) -> None:
        self._session, self._services = session, services
        self._running, self._sent = running, sent
        self._refused = False
        self._choice: Choice | None = None

    async def prepare(self) -> Prepared:
        """Wait for the model, then make the prompt; asks what to do where the chat is longer than the context.

        Raises:
            Stopped: it is to be taken back.
        """
        session, history, running = self._session, self._services.history, self._running
        while True:
            ready = await self._services.host.ready(session.settings.model)
            asked = await asyncio.to_thread(ask, history, ready.language, running, session.settings)
            needed = measure(len(asked.ids), len(running.token_ids), ready.context)
            if needed is None:
                session.context_tokens = len(asked.ids) - len(running.token_ids)  # the reply counts its own
                params = replace(session.settings.sampling(), skip_special_tokens=asked.skip_special_tokens)
                return Prepared(asked.ids, params, asked.reader, ready.context)
            chat = (history, ready.language, running, session.settings, needed.limit)
            alone = not await asyncio.to_thread(last_fits, *chat)
            choice = await self._services.ask_overflow(session, replace(needed, alone=alone))
            if choice == "drop" and await asyncio.to_thread(drop_oldest, *chat):
                await session.load()
                continue
            if choice == "model":
                continue  # the settings have another model now
            self._refused, self._choice = True, choice
            raise Stopped

    async def take_back(self, record: Message) -> None:
        """Undo what did not fit: hide the empty reply, and the message with it when it was just sent.

        A chat that has nothing else is deleted, and comes back with the next message that is sent in it.
        """
        if not self._refused:
            return
        hidden = record.parent if self._sent else record.id
        await asyncio.to_thread(self._hide, hidden)
        if self._sent:
            self._services.withdrawn(self._session, self._sent, self._choice)

    def _hide(self, message: str) -> None:
        history, chat = self._services.history, self._running.chat
        history.messages.hide(chat, message)
        left = history.messages.open(chat)
        if not left.messages and not left.running:
            history.chats.delete(chat)
