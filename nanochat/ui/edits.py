"""A sent message that the user changes in the prompt; what stood there waits aside until that is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanochat.sanitize import sanitize
from nanochat.storage.records import Message
from nanochat.ui.draft import Draft
from nanochat.ui.session import ChatSession

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp


def begin(app: NanochatApp, message_id: str) -> None:
    """Put a message of the user's into the prompt, to be sent as a new version."""
    screen = app.chat_screen
    session = screen.shown
    record = session.message(message_id) if session is not None else None
    if session is None or record is None:
        return
    call_off(app)
    screen.keep_draft()
    screen.prompt.leave_recall()
    session.editing, session.aside = message_id, session.draft
    screen.put_draft(session, _as_draft(record))
    screen.transcript.clear_cursor()
    screen.surroundings.refresh_frame()
    screen.focus_prompt()


def call_off(app: NanochatApp) -> bool:
    """Leave the edit of the shown chat; returns whether there was one. What was changed comes back with Up."""
    screen = app.chat_screen
    session = screen.shown
    if session is None or not session.editing:
        return False
    screen.keep_draft()
    screen.prompt.leave_recall()
    record, text = session.message(session.editing), session.draft.full
    if record is None or text != _as_draft(record).full:
        app.remember(text)
    session.editing = ""
    _bring_back(app, session)
    return True


def finish(app: NanochatApp, session: ChatSession) -> str:
    """The prompt's text is sent: the message that it replaces, "" for a new one. What was aside is in the prompt again."""
    message, session.editing = session.editing, ""
    if message:
        app.chat_screen.keep_draft()
        _bring_back(app, session)
    return message


def resume(app: NanochatApp, session: ChatSession, message_id: str, draft: Draft) -> None:
    """It could not be sent: it is edited on, and what came into the prompt meanwhile waits aside."""
    app.chat_screen.keep_draft()
    session.editing, session.aside = message_id, session.draft
    app.chat_screen.put_draft(session, draft)
    app.chat_screen.surroundings.refresh_frame()


def put_back(app: NanochatApp, session: ChatSession, draft: Draft) -> None:
    """Put what was not sent before what is typed; where a message is edited, before what waits aside."""
    app.chat_screen.keep_draft()
    if session.editing and session in app.chats:
        session.aside = Draft.joined(draft, session.aside)
    else:
        app.chat_screen.put_draft(session, Draft.joined(draft, session.draft))


def _bring_back(app: NanochatApp, session: ChatSession) -> None:
    aside, session.aside = session.aside, Draft()
    app.chat_screen.put_draft(session, aside)
    app.chat_screen.surroundings.refresh_frame()


def _as_draft(record: Message) -> Draft:
    return Draft.of(sanitize(record.content) if len(record.content) < 2000 else record.content)
