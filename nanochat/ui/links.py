"""Links do nothing until the user has seen the whole address and said what to do with it."""

from __future__ import annotations

import asyncio
import webbrowser
from typing import TYPE_CHECKING

from nanochat.errors import UsageError
from nanochat.ui.screens.question import Answer, Question

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp


async def confirm(app: NanochatApp, url: str) -> None:
    """Show the address; open it in the browser, or copy it, only when told to."""
    answers = [
        Answer("back", "Do nothing"),
        Answer("copy", "Copy the address"),
        Answer("open", "Open it in the browser"),
    ]
    answer = await app.ask(Question("A link from the chat", url, answers))
    if answer == "copy":
        app.copy(url, "the address")
    elif answer == "open" and not await asyncio.to_thread(webbrowser.open, url):
        raise UsageError("no browser could be started; the address can be copied instead")
