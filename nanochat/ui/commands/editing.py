"""Writing and changing messages: the editor, editing the last message, forking, deleting."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import TYPE_CHECKING

from textual.app import SuspendNotSupported

from nanochat.errors import NanochatError, UsageError
from nanochat.storage.records import Role
from nanochat.ui import edits
from nanochat.ui.actions import Action, on_chat
from nanochat.ui.draft import Draft
from nanochat.ui.editor import edit, editor_command

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp
    from nanochat.ui.session import ChatSession

_GROUP = "Messages"


@on_chat
async def editor(app: NanochatApp, session: ChatSession, _: str) -> None:
    """Write the message in $EDITOR. Replies go on meanwhile."""
    command, screen = editor_command(), app.chat_screen
    screen.keep_draft()
    before = session.draft.full
    with tempfile.TemporaryDirectory(prefix="nanochat-") as folder:
        file = Path(folder) / "message.md"
        file.write_text(before, encoding="utf-8")
        try:
            with (
                app.suspend(),
                app.batch_update(),
                app.desk.signals.lent(),
            ):  # nothing may be drawn over the editor
                await asyncio.to_thread(edit, command, file)
            text = file.read_text(encoding="utf-8", errors="replace").rstrip("\n")
        except SuspendNotSupported as error:
            raise UsageError("an editor needs a real terminal") from error
        except (OSError, subprocess.CalledProcessError) as error:
            _keep_written(app, file, before)
            raise UsageError(
                f"{command[0]} did not work: {error}. Set EDITOR to the editor you want"
            ) from error
    screen.keep_draft()
    if session.draft.full == before:
        screen.put_draft(session, Draft.of(text))
    else:  # something came into the prompt meanwhile
        screen.put_draft(session, Draft.joined(Draft.of(text), session.draft))
    screen.focus_prompt()


def _keep_written(app: NanochatApp, file: Path, before: str) -> None:
    """What was saved in an editor that ended badly comes back with Up."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace").rstrip("\n")
    except OSError:
        return
    if text != before.rstrip("\n"):
        app.remember(text)


def edit_last(app: NanochatApp, _: str) -> None:
    """Put the last message of the user's into the prompt, to be sent as a new version."""
    last = app.chats.active.last(Role.USER)
    if last is None:
        app.say("There is no message of yours to edit yet.")
    else:
        edits.begin(app, last.id)


@on_chat
def fork(app: NanochatApp, session: ChatSession, _: str) -> Awaitable[None]:
    """A new tab with a chat that shares everything up to here."""
    return fork_at(app, session, None)


def fork_at(app: NanochatApp, session: ChatSession, message_id: str | None) -> Awaitable[None]:
    """A new tab with a chat that shares everything up to a message. What is typed from now on is for that one."""
    return app.key_turns.until_done(_fork(app, session, message_id))


async def _fork(app: NanochatApp, session: ChatSession, message_id: str | None) -> None:
    chat = await session.fork(message_id)
    app.chat_screen.keep_draft()
    await app.chats.open(chat.id)
    app.chat_screen.show_active()
    app.say("Forked: the other tab keeps the chat as it was.")


async def delete_message(app: NanochatApp, session: ChatSession, message_id: str) -> None:
    """Hide a message and what follows it; `/undo` brings it back."""
    with app.undo.begin() as step:
        hidden = await session.delete(message_id)
        step.remember("the message is back", lambda: session.undelete(hidden))
    if app.shown is session and not session.conversation.ids:
        app.chat_screen.focus_prompt()
    app.say("Deleted, with what followed it. /undo brings it back.")


@on_chat
async def drop_last(app: NanochatApp, session: ChatSession, _: str) -> None:
    """Hide the last message and its reply."""
    last = session.last(Role.USER)
    if last is None:
        raise NanochatError("there is no message to delete yet")
    await delete_message(app, session, last.id)


async def undo(app: NanochatApp, _: str) -> None:
    """Undo the last delete, of a message or a chat."""
    said = await app.undo.last()
    app.say(
        f"Undone: {said}."
        if said
        else "There is nothing to undo since this start. `nanochat chats list --deleted` shows deleted chats, "
        "`nanochat chats restore` brings one back."
    )


ACTIONS: tuple[Action, ...] = (
    Action(
        id="message.editor", title="Open editor", help="Write the message in $EDITOR.", group=_GROUP, run=editor,
        keys="ctrl+o", slash="editor", priority=True,
    ),
    Action(
        id="message.edit_last", title="Edit last message", group=_GROUP, run=edit_last,
        help="Change your last message and send it as a new version.", slash="edit",
    ),
    Action(
        id="message.fork", title="Fork chat", help="Go on in a new tab from here; this chat stays as it is.",
        group=_GROUP, run=fork, slash="fork",
    ),
    Action(
        id="message.delete_last", title="Delete last turn", help="Delete your last message and its reply.",
        group=_GROUP, run=drop_last, slash="drop",
    ),
    Action(
        id="undo", title="Undo delete", help="Bring back what was deleted last: a message or a chat.", group=_GROUP,
        run=undo, slash="undo",
    ),
)  # fmt: skip
