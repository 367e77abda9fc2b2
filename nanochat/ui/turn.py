"""A chat's turn to answer: its reply is begun in the history, comes, and is shown as the message that it became. No Textual."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nanochat.errors import NanochatError
from nanochat.storage.records import Message, Status
from nanochat.ui.conversation import TranscriptMessage
from nanochat.ui.fitting import Fitting
from nanochat.ui.reply import HIDDEN, VISIBLE, Reply
from nanochat.ui.services import Services
from nanochat.ui.session_view import view
from nanochat.ui.shelf import reference

if TYPE_CHECKING:
    from nanochat.ui.session import ChatSession


class Turn:
    """Of one reply, from `begin` on; `see_through` is to be awaited. Meanwhile the chat has its `reply`."""

    def __init__(self, session: ChatSession, services: Services, reply: Reply, fitting: Fitting) -> None:
        self._session, self._services = session, services
        self._reply, self._fitting = reply, fitting

    @classmethod
    async def begin(
        cls, session: ChatSession, services: Services, chat_id: str, parent: str,
        start: Message | None = None, sent: str = "",
    ) -> Turn:  # fmt: skip
        """Write into the history that a reply to `parent` comes, and show it.

        Args:
            start: the reply that it goes on with.
            sent: the message that was just sent for it, "" where there is none.
        """
        host, history = services.host, services.history
        name = session.settings.model or (reference(host.model) if host.model else "")
        running = await asyncio.to_thread(
            history.replies.begin, chat_id, parent, model=name, params=session.settings.as_json(),
            content=start.content if start else "", reasoning=start.reasoning if start else "",
            token_ids=start.token_ids if start else (),
        )  # fmt: skip
        await session.load()
        session.failed = session.unseen = False
        session.conversation.append(
            TranscriptMessage(running.id, "assistant", running.content, running.reasoning, status="queued")
        )
        fitting = Fitting(session, services, running, sent)
        session.reply = reply = Reply(
            running, session.conversation, history, prepare=fitting.prepare, submit=host.submit,
            ring=services.ring, notify=services.notify, priority=VISIBLE if session.visible else HIDDEN,
        )  # fmt: skip
        return cls(session, services, reply, fitting)

    async def see_through(self) -> None:
        """Wait until the reply is saved and shown, and tell what waits for it."""
        session, services, reply = self._session, self._services, self._reply
        record: Message | None = None
        try:
            record = await reply.run()
            await self._settle(record)
        except NanochatError as error:
            services.notify(f"The chat could not be read again: {error}")
        finally:
            session.reply = None
        services.ended(session, record)
        if reply.stopping or (record is not None and record.status is Status.DONE):
            services.go_on(session)  # what waits for a stopped one was entered after the stop
        else:
            services.give_back(session)

    @property
    def reply_id(self) -> str:
        """What the reply is called in the conversation until it has its message."""
        return self._reply.running.id

    async def save_again(self) -> None:
        """The disk did not take the reply, which has stayed in sight: write it now. Raises HistoryError: it still does not."""
        await self._settle(await self._reply.save_again())

    async def _settle(self, record: Message | None) -> None:
        """The reply has ended: show its message in the place of what streamed."""
        session, streamed = self._session, self._reply.running.id
        if record is None:
            fault = "not saved: the disk does not take it. The next message tries again, and so does quitting"
            session.unsaved = self
            session.conversation.change(streamed, status="failed", error=fault)
            return
        session.failed = record.status is Status.FAILED and not session.visible
        session.unseen = not session.visible and not session.failed
        session.conversation.rename(streamed, record.id)
        session.conversation.update(view(record))
        await self._fitting.take_back(record)
        await session.load()
