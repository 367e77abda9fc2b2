"""How many tokens the prompt holds: counted beside everything else, in a moment of quiet."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nanochat.ui.draft import Draft

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp

QUIET_SECONDS = 0.15  # without a key, before it is counted
PATIENCE_SECONDS = 0.25


class TokenCount:
    """Counts with the loaded model's tokenizer, in a worker."""

    def __init__(self, app: NanochatApp) -> None:
        self._app = app
        self._counting: asyncio.Task[object] | None = None

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

    async def _show(self, draft: Draft) -> None:
        await asyncio.sleep(QUIET_SECONDS)
        tokens = 0 if draft.empty or draft.text.startswith("/") else await self.of(draft.full)
        if not self._app.desk.is_closing:
            self._app.chat_screen.show_draft_tokens(tokens)
