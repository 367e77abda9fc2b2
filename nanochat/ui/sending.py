"""What happens when the user presses Enter: a slash command, an edit, or a message with its files."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Coroutine
from typing import TYPE_CHECKING, Any

from nanochat.errors import NanochatError, UsageError
from nanochat.ui import edits, queue_flow
from nanochat.ui.actions import Action
from nanochat.ui.attachments import attach, unfound
from nanochat.ui.draft import Draft
from nanochat.ui.session import ChatSession

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp

_COMMAND = re.compile(r"/[a-z][a-z_-]*(\s|$)")


def send(app: NanochatApp, draft: Draft) -> Coroutine[Any, Any, None]:
    """Take what the prompt of the shown chat held; the rest is to be awaited. On an error it stands there again.

    The chat is known at once, a command's too: who presses another key right behind Enter may be in another tab then.
    """
    session = app.chat_screen.shown
    if session is None:
        return _when_begun(app, draft)
    if is_command(draft):
        return _command(app, session, draft, _begin(app, draft.text))
    if queue_flow.must_wait(session):
        return queue_flow.add(app, session, draft)
    session.outgoing.add(draft)
    app.chat_screen.transcript.follow()
    return _message(app, session, draft, edits.finish(app, session))


def send_next(app: NanochatApp, session: ChatSession) -> None:
    """Send the first message that waits, once nothing is on its way. The view stays: the user may read elsewhere."""
    if session.summing is not None:  # the chat goes on in another one
        queue_flow.give_back(app, session)
    if session.queue and not (session.busy or session.outgoing or app.desk.is_closing):
        draft = session.queue.take_first()
        session.outgoing.add(draft)
        app.chat_screen.surroundings.refresh_frame()
        app.attempt(_message(app, session, draft, ""))


def is_command(draft: Draft) -> bool:
    """Whether this is a command and no message."""
    return not draft.folds and _COMMAND.match(draft.text) is not None


async def _when_begun(app: NanochatApp, draft: Draft) -> None:
    await app.lifetime.begun.wait()
    await send(app, draft)


async def _command(
    app: NanochatApp, session: ChatSession, draft: Draft, work: Awaitable[None] | None
) -> None:
    try:
        if work is not None:
            await work
    except NanochatError:
        app.chat_screen.keep_draft()
        if session.draft.empty and session in app.chats and not app.key_turns.waiting:
            app.chat_screen.put_draft(session, draft)
        else:
            app.remember(draft.text)  # a command is no part of a message: Up brings it back
        raise


def _begin(app: NanochatApp, line: str) -> Awaitable[None] | None:
    """Do what a command does at once; the rest is to be awaited."""
    try:
        action, argument = _find(app, line)
        return action.run(app, argument)
    except NanochatError as error:
        return _fail(error)


async def _fail(error: NanochatError) -> None:
    raise error


def _find(app: NanochatApp, line: str) -> tuple[Action, str]:
    found = app.registry.find_slash(line)
    if found is None:
        name = line.split()[0]
        close = app.registry.close_slash(name[1:].lower())
        hint = f" Is it {' or '.join('/' + known for known in close)}?" if close else " /help lists them."
        raise UsageError(f"there is no command {name}.{hint} A space before it sends it as a message.")
    return found


async def _message(app: NanochatApp, session: ChatSession, draft: Draft, edited: str) -> None:
    """Send a message, or another version of the one that was edited."""
    with session.outgoing.settling(draft):
        try:
            if session.busy:
                raise UsageError("a reply is on its way in this chat: wait for it, or stop it with Esc")
            full, files = await asyncio.to_thread(attach, draft.full, app.folder)
            if missing := await asyncio.to_thread(unfound, draft.text, app.folder):
                app.say(f"{', '.join(missing)}. The message goes as it is.", severity="warning")
            if edited:
                await session.edit(edited, full)
            else:
                await session.send(full)
        except NanochatError:
            _give_back(app, session, draft, edited)
            raise
    send_next(app, session)  # where no reply came of this one
    app.inputs.add(draft.full)
    app.spawn(asyncio.to_thread(app.inputs.save))
    if files:
        app.say(f"Sent with {', '.join(f'{file.name} ({file.size})' for file in files)}")
    app.chats.save_soon()


def _give_back(app: NanochatApp, session: ChatSession, draft: Draft, edited: str) -> None:
    """Put what was not sent back where it came from, before what was typed there since; and what waits behind it."""
    if not edited or session.reply is None:  # else that waits for a reply, as before
        queue_flow.give_back(app, session)
    if edited and not session.editing:
        edits.resume(app, session, edited, draft)
        return
    edits.put_back(app, session, draft)
