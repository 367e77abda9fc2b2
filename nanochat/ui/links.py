"""Links do nothing until the user has seen the whole address and said what to do with it."""

from __future__ import annotations

import webbrowser
from pathlib import PurePath
from typing import TYPE_CHECKING

from nanochat.errors import UsageError
from nanochat.ui.background import detached
from nanochat.ui.screens.question import Answer, Question

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp

_IN_A_TERMINAL = {"www-browser", "links", "links2", "elinks", "lynx", "w3m", "browsh"}


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
    elif answer == "open" and not await detached(lambda: _open(url)):
        raise UsageError("no browser could be started; the address can be copied instead")


def _open(url: str) -> bool:
    """Whether a browser took the address: the first choice, and none that would draw where this application does."""
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return False
    name = PurePath(str(getattr(browser, "name", ""))).name
    return name not in _IN_A_TERMINAL and browser.open(url)
