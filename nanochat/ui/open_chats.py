"""The open tabs: chats in their order, which one is shown, and how they come back at the next start. No Textual."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator

from nanochat.errors import HistoryError, NanochatError
from nanochat.storage.records import Chat, Tab
from nanochat.ui.chat_settings import ChatSettings
from nanochat.ui.conversation import Conversation
from nanochat.ui.services import Services
from nanochat.ui.session import ChatSession

log = logging.getLogger("nanochat.open_chats")

SAVE_SECONDS = 0.5


class OpenChats:
    """Never empty once `restore` ran. Belongs to the screen's thread."""

    def __init__(
        self, services: Services, *, defaults: ChatSettings, keep: Callable[[], None] = lambda: None
    ) -> None:
        self._services = services
        self._defaults = defaults
        self._keep = (
            keep  # gives the shown chat what stands in the prompt: it is ahead of what the chat knows
        )
        self._sessions: list[ChatSession] = []
        self._active = 0
        # The shown tab and the one from which it was opened, as long as no other is shown.
        self._opened: tuple[ChatSession, ChatSession] | None = None
        self._closed: list[tuple[int, Tab]] = []  # with the number of the closing, the latest last
        self._closing: dict[ChatSession, asyncio.Event] = {}  # the event says that it is closed
        self._closings = 0
        self._saving: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    def __iter__(self) -> Iterator[ChatSession]:
        return iter(self._sessions)

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def active(self) -> ChatSession:
        """The chat that is shown."""
        return self._sessions[self._active]

    @property
    def active_index(self) -> int:
        """Its place among the tabs."""
        return self._active

    def of(self, conversation: Conversation) -> ChatSession | None:
        """The chat whose conversation this is; None where its tab was closed."""
        return next((session for session in self._sessions if session.conversation is conversation), None)

    @property
    def busy(self) -> list[ChatSession]:
        """The chats in which a reply is on its way."""
        return [session for session in self._sessions if session.busy]

    def activate(self, index: int) -> ChatSession:
        """Show the tab at this place."""
        index = max(0, min(index, len(self._sessions) - 1))
        self._active = index
        if self._opened is not None and self._opened[0] is not self.active:
            self._opened = None
        for place, session in enumerate(self._sessions):
            if session.visible != (place == index):
                session.show(place == index)
        self.save_soon()
        return self.active

    def step(self, by: int) -> ChatSession:
        """Show the tab to the right or left, around the ends."""
        return self.activate((self._active + by) % len(self._sessions))

    def new(self, *, settings: ChatSettings | None = None, draft: str = "") -> ChatSession:
        """An empty chat in a tab of its own, right of the active one, and shown. An empty tab is used again."""
        if self._takes_another():
            session = self.active
            session.settings = settings or self._defaults
            return self.activate(self._active)
        session = ChatSession(self._services, settings=settings or self._defaults, draft=draft)
        return self._add(session)

    async def open(self, chat_id: str, *, left: str = "") -> ChatSession:
        """Show a chat: its tab where it has one, else a new tab. `left` is what its closed tab held."""
        if (place := self._place_of(chat_id)) is None:
            chat = await asyncio.to_thread(self._services.history.chats.get, chat_id)
            session = self._session_of(
                chat, chat.draft if left in chat.draft else f"{chat.draft}\n\n{left}".strip()
            )
            await session.load()
            if (place := self._place_of(chat_id)) is None:  # it may have been opened meanwhile
                return self._put(session)
        return self.activate(place)

    def is_last(self, session: ChatSession) -> bool:
        """Whether no other tab is open, or stays so."""
        return all(each is session or each in self._closing for each in self._sessions)

    def close(self, session: ChatSession) -> Awaitable[None]:
        """Close a tab. Another is the active one at once, an empty one when this is the last; the rest is to be awaited.

        That is the one from which it was just opened, else the next one.

        The rest: what is being sent is sent, its reply stops and is saved. What stands in its prompt stays with the
        chat, also what is typed by who goes back to it until it is closed.
        """
        self._keep()
        before = self._closing.get(session)  # who goes back to a tab that is being closed may close it again
        self._closing.setdefault(session, asyncio.Event())
        if session is self.active:
            place = self._active
            near = [*self._sessions[place + 1 :], *reversed(self._sessions[:place])]
            if self._opened is not None and self._opened[1] in near:
                near.insert(0, self._opened[1])
            stays = next((each for each in near if each not in self._closing), None)
            if stays is None:
                self._add(ChatSession(self._services, settings=self._defaults))
            else:
                self.activate(self._sessions.index(stays))
        if before is not None:
            return _seen(before)
        self._closings += 1
        return self._close(session, self._closings)

    async def _close(self, session: ChatSession, number: int) -> None:
        try:
            await self._settle(session)
        finally:
            self._closing.pop(session).set()  # who waits for it goes on when it is gone
        if session in self._sessions:
            self._remove(session, number)

    async def _settle(self, session: ChatSession) -> None:
        saved: str | None = None
        while saved != session.unsent or session.busy or session.outgoing:
            await session.close()
            saved = session.unsent
            await self.save()
            self._keep()

    def _remove(self, session: ChatSession, number: int) -> None:
        place = self._sessions.index(session)
        self._sessions.remove(session)
        if session.chat is not None or session.unsent:
            self._closed.append((number, Tab(session.chat.id if session.chat else None, session.unsent)))
            self._closed.sort(key=lambda closed: closed[0])  # a reply may hold up one that was closed before
        if not self._sessions:
            self._sessions.append(ChatSession(self._services, settings=self._defaults))
        self.activate(
            self._active - 1 if place < self._active else min(self._active, len(self._sessions) - 1)
        )

    async def reopen(self) -> ChatSession | None:
        """Open the tab closed last, also one of which nothing was sent; None when there is none.

        One that is still being closed is waited for.
        """
        for closed in tuple(self._closing.values()):
            await closed.wait()
        while self._closed:
            _, tab = self._closed.pop()
            if tab.chat is None:
                return self._put(ChatSession(self._services, settings=self._defaults, draft=tab.draft))
            try:
                return await self.open(tab.chat, left=tab.draft)
            except NanochatError as error:
                log.info("a closed tab cannot be opened again: %s", error)
                if tab.draft:
                    return self._put(ChatSession(self._services, settings=self._defaults, draft=tab.draft))
        return None

    async def restore(self) -> None:
        """Open the tabs of the last session, with their drafts; only the shown one is read now."""
        tabs = await asyncio.to_thread(self._services.history.tabs.restore)
        active = 0
        for tab in tabs:
            session = await self._restored(tab)
            if session is not None:
                active = len(self._sessions) if tab.active else active
                self._sessions.append(session)
        if not self._sessions:
            self._sessions.append(ChatSession(self._services, settings=self._defaults))
        await self._sessions[min(active, len(self._sessions) - 1)].load()
        self.activate(active)

    def save_soon(self) -> None:
        """Save tabs and drafts in a moment; calls in between are one save."""
        if self._saving is None or self._saving.done():
            self._saving = asyncio.create_task(self._save_later())

    async def save(self) -> None:
        """Save tabs and drafts as they are when its turn comes. Who is cancelled leaves no save half way."""
        await asyncio.shield(asyncio.ensure_future(self._save()))

    async def _save(self) -> None:
        async with self._turn:  # else an older state could be written over a newer one
            self._keep()
            tabs = [
                Tab(session.chat.id if session.chat else None, session.unsent, active=session is self.active)
                for session in self._sessions
            ]
            try:
                await asyncio.to_thread(self._services.history.tabs.save, tabs)
            except HistoryError as error:
                log.warning("the open tabs could not be saved: %s", error)

    async def close_all(self) -> None:
        """Stop every reply and save everything: the orderly end."""
        if self._saving is not None:
            self._saving.cancel()
        await self.save()
        await asyncio.gather(*(session.close() for session in self._sessions))
        await self.save()  # a message that waited for a summary is a draft again

    async def _save_later(self) -> None:
        await asyncio.sleep(SAVE_SECONDS)
        await self.save()

    def _place_of(self, chat_id: str) -> int | None:
        return next(
            (place for place, each in enumerate(self._sessions) if each.chat and each.chat.id == chat_id),
            None,
        )

    def _takes_another(self) -> bool:
        """Whether another chat may take the active tab: nothing is in it, also not in the prompt."""
        self._keep()
        return bool(self._sessions) and self.active.blank and self.active not in self._closing

    def _put(self, session: ChatSession) -> ChatSession:
        """Show a session in the place of an empty tab, else in one of its own."""
        if self._takes_another():
            self._sessions[self._active] = session
            return self.activate(self._active)
        return self._add(session)

    def _add(self, session: ChatSession) -> ChatSession:
        if not self._sessions:
            self._sessions.append(session)
            return self.activate(0)
        before = self.active
        self._sessions.insert(self._active + 1, session)
        self.activate(self._active + 1)
        self._opened = session, before
        return session

    async def _restored(self, tab: Tab) -> ChatSession | None:
        if tab.chat is None:
            return ChatSession(self._services, settings=self._defaults, draft=tab.draft)
        try:
            chat = await asyncio.to_thread(self._services.history.chats.get, tab.chat)
        except NanochatError as error:
            log.warning("a tab cannot be restored: %s", error)
            return None
        return self._session_of(chat, tab.draft)

    def _session_of(self, chat: Chat, draft: str | None = None) -> ChatSession:
        settings = ChatSettings.from_json(chat.settings)
        return ChatSession(
            self._services, chat=chat, settings=settings, draft=chat.draft if draft is None else draft
        )


async def _seen(event: asyncio.Event) -> None:
    await event.wait()
