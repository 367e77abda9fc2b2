"""How many tokens the prompt holds, and the shown chat: counted beside everything else, in a moment of quiet."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from nanochat.errors import NanochatError
from nanochat.ui.draft import Draft
from nanochat.ui.session_view import counted

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp

log = logging.getLogger("nanochat.token_count")

QUIET_SECONDS = 0.15  # without a key, before it is counted
PATIENCE_SECONDS = 0.25


class TokenCount:
    """Counts with the loaded model's tokenizer, in a worker."""

    def __init__(self, app: NanochatApp) -> None:
        self._app = app
        self._counting: asyncio.Task[object] | None = None
        self._counting_chat: asyncio.Task[object] | None = None

    async def of(self, text: str) -> int | None:
        """How many tokens a text has; None while no model is there, or when it takes too long to wait for."""
        language = self._app.host.language if self._app.desk.is_open else None
        if language is None:
            return None
        try:
            return await asyncio.wait_for(asyncio.to_thread(language.count, text), PATIENCE_SECONDS)
        except TimeoutError:
            return None

    def show(self, draft: Draft) -> None:
        """Count a draft soon and show it in the prompt's frame; only the latest counts."""
        if self._counting is not None:
            self._counting.cancel()
        self._counting = self._app.spawn(self._show(draft))

    def show_chat(self) -> None:
        """Count the shown chat soon, where the engine has not: after a crash, an import, a deleted reply."""
        if self._counting_chat is not None:
            self._counting_chat.cancel()
        self._counting_chat = self._app.spawn(self._show_chat())

    async def _show(self, draft: Draft) -> None:
        await asyncio.sleep(QUIET_SECONDS)
        tokens = 0 if draft.empty or draft.text.startswith("/") else await self.of(draft.full)
        if not self._app.desk.is_closing:
            self._app.chat_screen.surroundings.show_draft_tokens(tokens)

    async def _show_chat(self) -> None:
        await asyncio.sleep(QUIET_SECONDS)
        session, language = self._app.chats.active, self._app.host.language
        records, settings = session.records, session.settings
        if records is None or language is None or session.busy or counted(records.messages):
            return
        try:
            tokens = await asyncio.to_thread(
                language.tokens, records.in_context, system_prompt=settings.system_prompt,
                thinking=settings.thinking, started=records.chat.created,
            )  # fmt: skip
        except NanochatError as error:
            log.info("a chat cannot be counted: %s", error)
            return
        if session.records is records and not session.busy and not self._app.desk.is_closing:
            session.context_tokens = tokens
            self._app.chat_screen.surroundings.refresh()
            self._app.chat_screen.surroundings.refresh_panel()
