"""What the engine does when nobody waits for it: warm the cache for the next turn, and give chats their titles."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

from nanochat.engine.request import Request
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.stream import Stream
from nanochat.errors import NanochatError
from nanochat.storage.records import Role, TitleBy
from nanochat.ui.chat_model import ChatModel
from nanochat.ui.model_host import HostState, ModelHost
from nanochat.ui.session import ChatSession
from nanochat.ui.titles import LEAD, TITLE_PARAMS, clean_title, title_request

if TYPE_CHECKING:
    from nanochat.history import History

log = logging.getLogger("nanochat.idle_work")

WARM_PRIORITY, TITLE_PRIORITY = 100, 200
QUIET_SECONDS = 0.3
TIMEOUT_SECONDS = 120.0


class IdleWork:
    """One task at a time, only while no reply is on its way; a new message interrupts it. Runs in the event loop."""

    def __init__(
        self, history: History, host: ModelHost, *, busy: Callable[[], bool], titled: Callable[[str], None]
    ) -> None:
        self._history, self._host, self._busy, self._titled = history, host, busy, titled
        self._warm: dict[str, tuple[ChatSession, float]] = {}
        self._title: dict[str, ChatSession] = {}
        self._wake = asyncio.Event()
        self._stream: Stream | None = None

    def reply_ended(self, session: ChatSession) -> None:
        """A chat has a new reply: warm the cache for its next turn, and name it when it has no name yet."""
        if session.chat is None:
            return
        self._warm[session.chat.id] = (session, monotonic())
        if session.chat.title_by in (TitleBy.NONE, TitleBy.FIRST):
            self._title[session.chat.id] = session
        self._wake.set()

    def interrupt(self) -> None:
        """Somebody waits for the engine: what runs here ends, and is taken up again later."""
        if self._stream is not None:
            self._stream.cancel()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._warm or self._title:
                await asyncio.sleep(QUIET_SECONDS)
                if self._busy() or self._host.state is not HostState.READY or self._host.language is None:
                    break
                await self._next(self._host.language)

    async def _next(self, language: ChatModel) -> None:
        try:
            if self._warm:
                chat_id = max(
                    self._warm, key=lambda chat: self._warm[chat][1]
                )  # the latest is the likeliest to go on
                session, _ = self._warm.pop(chat_id)
                await self._warm_up(session, language)
            else:
                chat_id, session = self._title.popitem()
                await self._name(session, language)
        except NanochatError as error:
            log.info("work in idle time was given up: %s", error)

    async def _warm_up(self, session: ChatSession, language: ChatModel) -> None:
        if session.chat is None or session.records is None:
            return
        messages, settings = session.records.in_context, session.settings
        ids = await asyncio.to_thread(
            language.warm,
            messages,
            system_prompt=settings.system_prompt,
            thinking=settings.thinking,
            started=session.chat.created,
        )
        if ids and len(ids) < self._host.context:
            await self._ask(ids, SamplingParams(max_tokens=0), WARM_PRIORITY)

    async def _name(self, session: ChatSession, language: ChatModel) -> None:
        if session.chat is None or session.records is None or session.chat.title_by is TitleBy.USER:
            return
        first = next((each for each in session.records.messages if each.role is Role.USER), None)
        ask = title_request(first) if first is not None else ()
        if not ask:
            return
        asked = await asyncio.to_thread(language.prompt, ask, system_prompt="", thinking=False, begin=LEAD)
        if len(asked.ids) + (TITLE_PARAMS.max_tokens or 0) >= self._host.context:
            return
        params = replace(TITLE_PARAMS, skip_special_tokens=asked.skip_special_tokens)
        text = await self._ask(asked.ids, params, TITLE_PRIORITY)
        if text is None:  # interrupted
            self._title.setdefault(session.chat.id, session)
            return
        title = clean_title(asked.reader.push(text).text + asked.reader.finish().text)
        if title and await asyncio.to_thread(
            self._history.chats.rename, session.chat.id, title, by=TitleBy.AUTO
        ):
            self._titled(session.chat.id)

    async def _ask(self, ids: tuple[int, ...], params: SamplingParams, priority: int) -> str | None:
        """The reply's text; None when it was interrupted."""
        stream = self._host.engine.submit(Request(ids, params, priority))
        self._stream = stream
        try:
            output = await asyncio.to_thread(stream.result, TIMEOUT_SECONDS)
        except TimeoutError:
            stream.cancel()
            return None
        finally:
            self._stream = None
        return None if output.finish_reason == "abort" else output.text
