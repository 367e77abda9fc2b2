"""How a message comes to wait for a reply's end, and how it goes back into the prompt without having been sent."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from nanochat.ui import edits
from nanochat.ui.draft import Draft
from nanochat.ui.session import ChatSession

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp


def must_wait(session: ChatSession) -> bool:
    """Whether a new message of this chat comes behind a reply or another message. An edit does not wait."""
    before = session.reply is not None or bool(session.outgoing) or bool(session.queue)
    return before and not session.editing


def add(app: NanochatApp, session: ChatSession, draft: Draft) -> Coroutine[Any, Any, None]:
    """Let a message wait. What is to be awaited saves it at once, as unsent text.

    The files that it mentions are read when it is sent: they go as they are then.
    """
    session.queue.add(draft)
    app.chat_screen.surroundings.refresh_frame()
    return app.chats.save()


def take_back(app: NanochatApp) -> bool:
    """Put what was entered last into the empty prompt of the shown chat; returns whether anything waited."""
    session = app.chat_screen.shown
    if session is None or session.editing or not session.queue:
        return False
    app.chat_screen.put_draft(session, session.queue.take_last())
    _changed(app)
    return True


def give_back(app: NanochatApp, session: ChatSession) -> None:
    """The reply was stopped, or failed: all that waited is the chat's draft again, before what is typed there."""
    if not session.queue or app.desk.is_closing:  # at the end it is saved where it is
        return
    drafts = session.queue.take_all()
    edits.put_back(app, session, Draft.joined(*drafts))
    _changed(app)
    what = "the message that waited is" if len(drafts) == 1 else f"the {len(drafts)} messages that waited are"
    where = "in the prompt" if session is app.chat_screen.shown else f"in the prompt of “{session.title}”"
    app.say(f"Not sent: {what} {where} again.")


def _changed(app: NanochatApp) -> None:
    app.chat_screen.surroundings.refresh_frame()
    app.chats.save_soon()
