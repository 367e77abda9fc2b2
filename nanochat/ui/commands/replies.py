"""What can be done with replies: stop, make again, continue, copy, step through versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanochat.storage.records import Role
from nanochat.ui.actions import Action, Run, on_chat

if TYPE_CHECKING:
    from nanochat.storage.records import Message
    from nanochat.ui.app import NanochatApp
    from nanochat.ui.session import ChatSession

_GROUP = "Replies"


def stop(app: NanochatApp, _: str) -> None:
    """Stop the reply of the shown chat, or leave what Esc leaves elsewhere."""
    if app.focused is None:
        app.chat_screen.focus_prompt()  # a click beside everything took the keys away
    elif not app.chat_screen.leave_something():
        app.chats.active.stop()
        app.chat_screen.surroundings.refresh()


@on_chat
async def regenerate(app: NanochatApp, session: ChatSession, _: str) -> None:
    """A new version of the last reply."""
    await regenerate_at(app, session, None)


async def regenerate_at(app: NanochatApp, session: ChatSession, message_id: str | None) -> None:
    """A new version of a reply, the last one without `message_id`; the view goes to it."""
    await session.regenerate(message_id)
    _follow(app, session)


@on_chat
async def continue_reply(app: NanochatApp, session: ChatSession, _: str) -> None:
    """Go on where the last reply ended."""
    await session.continue_reply()
    _follow(app, session)


def _follow(app: NanochatApp, session: ChatSession) -> None:
    """Go to the chat's end, where it is in view."""
    if app.shown is session:
        app.chat_screen.transcript.follow()


def step_variant(by: int) -> Run:
    """The version of the last reply before (-1) or after (1)."""

    @on_chat
    async def run(app: NanochatApp, session: ChatSession, _: str) -> None:
        last = session.records.messages[-1] if session.records and session.records.messages else None
        if last is None:
            app.say("There is no reply yet.")
            return
        await session.step_variant(last.id, by)
        if not 1 <= last.variant + by <= last.variants:
            app.say(_no_further(last, by))

    return run


def _no_further(last: Message, by: int) -> str:
    if last.variants > 1:
        return f"This is the {'first' if by < 0 else 'last'} of {last.variants} versions."
    return "There is only this version: /retry makes another."


async def step_from(app: NanochatApp, session: ChatSession, message_id: str, by: int) -> None:
    """Another version of a message: the selected one stays on screen, however long what follows it is."""
    transcript = app.chat_screen.transcript
    selected = (
        app.shown is session and transcript.cursor is not None and transcript.cursor.message_id == message_id
    )
    await session.step_variant(message_id, by)
    if selected and app.shown is session:
        transcript.bring_cursor()


def copy_reply(app: NanochatApp, _: str) -> None:
    """Copy the last reply."""
    last = app.chats.active.last(Role.ASSISTANT)
    if last is None:
        app.say("There is no reply to copy yet.")
    else:
        app.copy(last.content, "the reply")


def copy_code(app: NanochatApp, _: str) -> None:
    """Copy the last code block of the chat."""
    from nanochat.ui.blocks import BlockSplitter

    records = app.chats.active.records
    for record in reversed(records.messages if records else ()):
        splitter = BlockSplitter()
        splitter.feed(record.content)
        splitter.finish()
        code = [block.text for block in splitter.blocks if block.kind in ("fence", "code")]
        if code:
            app.copy(code[-1], "the code")
            return
    app.say("There is no code block in this chat yet.")


ACTIONS: tuple[Action, ...] = (
    Action(
        id="reply.stop", title="Stop", help="Stop the reply; its text stays.", group=_GROUP, run=stop, keys="escape",
        slash="stop",
    ),
    Action(
        id="reply.regenerate", title="Regenerate", help="Make the last reply again; the old one stays as a version.",
        group=_GROUP, run=regenerate, keys="ctrl+r", slash="retry", priority=True,
    ),
    Action(
        id="reply.continue", title="Continue", help="Go on where the last reply was stopped or cut.", group=_GROUP,
        run=continue_reply, slash="continue",
    ),
    Action(
        id="reply.variant_previous", title="Version before", help="Show the version of the last reply before this one.",
        group=_GROUP, run=step_variant(-1), slash="previous",
    ),
    Action(
        id="reply.variant_next", title="Version after", help="Show the version of the last reply after this one.",
        group=_GROUP, run=step_variant(1), slash="next",
    ),
    Action(
        id="reply.copy", title="Copy reply", help="Copy the last reply.", group=_GROUP, run=copy_reply, slash="copy",
    ),
    Action(
        id="reply.copy_code", title="Copy code", help="Copy the last code block, byte for byte.", group=_GROUP,
        run=copy_code, slash="code",
    ),
)  # fmt: skip
