"""What the user is asked before the loaded model goes, while replies use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanochat.ui.screens.question import Answer, Question

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp


async def ask(app: NanochatApp, wanted: str) -> bool:
    """Whether it may go: asks where replies use it. `wanted` is what would take its place, "" for nothing."""
    others = [
        session
        for session in app.chats.busy
        if session.reply is not None and session.reply.stream is not None
    ]
    if not others:
        return True
    text = f"{len(others)} {'reply uses' if len(others) == 1 else 'replies use'} the model that is loaded. "
    does = f"Load {wanted}" if wanted else "Unload it"
    them, their = ("it", "its") if len(others) == 1 else ("them", "their")
    text += f"{'Loading ' + wanted if wanted else 'Unloading'} ends {them}; {their} text so far is kept."
    answers = [Answer("stay", "Keep the loaded model"), Answer("load", does)]
    return await app.ask(Question("The model is in use", text, answers)) == "load"
