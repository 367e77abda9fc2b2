"""What happens when the user presses Enter: a slash command, an edit, or a message with its files."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from nanochat.errors import NanochatError, UsageError
from nanochat.ui.attachments import attach
from nanochat.ui.draft import Draft
from nanochat.ui.session import ChatSession

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp

_COMMAND = re.compile(r"/[a-z][a-z_-]*(\s|$)")


async def send(app: NanochatApp, draft: Draft) -> None:
    """Do what the prompt says. On an error the draft stands in the prompt again."""
    session = app.chats.active
    try:
        if not draft.folds and _COMMAND.match(draft.text):
            await _command(app, draft.text)
        else:
            await _message(app, session, draft)
    except NanochatError:
        _give_back(app, session, draft)
        raise


async def _command(app: NanochatApp, line: str) -> None:
    found = app.registry.find_slash(line)
    if found is None:
        name = line.split()[0]
        close = app.registry.complete_slash(name[1:2])
        hint = f" Is it {', '.join('/' + action.slash for action in close[:4])}?" if close else ""
        raise UsageError(f"there is no command {name}.{hint} A space before it sends it as a message.")
    await app.run_action_now(*found)


async def _message(app: NanochatApp, session: ChatSession, draft: Draft) -> None:
    if session.busy:
        raise UsageError("a reply is on its way in this chat: wait for it, or stop it with Esc")
    full, files = await asyncio.to_thread(attach, draft.full, app.folder)
    app.chat_screen.transcript.follow()
    if session.editing:
        message, session.editing = session.editing, ""
        await session.edit(message, full)
    else:
        await session.send(full)
    app.inputs.add(draft.full)
    app.spawn(asyncio.to_thread(app.inputs.save))
    if files:
        app.say(
            "Sent with "
            + ", ".join(f"{file.name} ({file.text.count(chr(10)) + 1:,} lines)" for file in files)
        )
    app.chats.save_soon()


def _give_back(app: NanochatApp, session: ChatSession, draft: Draft) -> None:
    """Put what was not sent back where it came from, before what was typed there since."""
    app.chat_screen.keep_draft()
    if draft.text.startswith("/") and not session.draft.empty:
        app.inputs.add(draft.text)  # a command is no part of a message: Up brings it back
        return
    since = session.draft
    session.draft = draft if since.empty else Draft.of(f"{draft.full}\n\n{since.full}")
    if session is app.chats.active:
        app.chat_screen.prompt.load_draft(session.draft)
