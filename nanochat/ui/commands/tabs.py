"""What can be done with tabs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from nanochat.errors import UsageError
from nanochat.ui.actions import Action, on_chat
from nanochat.ui.chat_settings import ChatSettings

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp
    from nanochat.ui.session import ChatSession

_GROUP = "Tabs"


def new(app: NanochatApp, _: str) -> None:
    """An empty chat in a new tab."""
    app.chat_screen.keep_draft()
    app.chats.new(settings=ChatSettings(system_prompt=app.settings.system_prompt))
    app.chat_screen.show_active()


@on_chat
def close(app: NanochatApp, session: ChatSession, _: str) -> Awaitable[None] | None:
    """Close the shown tab; its reply is stopped and saved. When it is the only one and empty there is nothing to do."""
    app.chat_screen.keep_draft()
    return None if app.chats.is_last(session) and session.blank else close_tab(app, session)


def close_tab(app: NanochatApp, session: ChatSession) -> Awaitable[None]:
    """Show another tab at once: what is typed from now on is for that one. The rest is to be awaited."""
    saved = app.chats.close(session)
    if app.shown is session:
        app.chat_screen.show_active()
    return _see_closed(app, session, saved)


async def _see_closed(app: NanochatApp, session: ChatSession, saved: Awaitable[None]) -> None:
    await saved
    if session.chat is None:
        app.remember(session.unsent)  # it has no chat to stay with
    if app.shown is session:  # the user went back to it
        app.chat_screen.show_active()
    else:
        app.chat_screen.surroundings.refresh()


def reopen(app: NanochatApp, _: str) -> Awaitable[None]:
    """Open the tab closed last. What is typed from now on is for that one."""
    return app.key_turns.until_done(_reopen(app))


async def _reopen(app: NanochatApp) -> None:
    app.chat_screen.keep_draft()
    if await app.chats.reopen() is None:
        app.say("No tab was closed in this session.")
    app.chat_screen.show_active()


def show(app: NanochatApp, session: ChatSession) -> None:
    """Bring an open chat into view."""
    go(list(app.chats).index(session))(app, "")


def choose(app: NanochatApp, session: ChatSession, *, close: bool = False) -> None:
    """A click on a tab: show it, or close it. One that has closed meanwhile is left alone."""
    if session not in app.chats:
        return
    show(app, session)
    if close:
        app.run_registered("tab.close")


def step(by: int) -> Callable[[NanochatApp, str], None]:
    """Go to the tab to the right (1) or left (-1)."""

    def run(app: NanochatApp, _: str) -> None:
        app.chat_screen.keep_draft()
        app.chats.step(by)
        app.chat_screen.show_active()

    return run


def go(index: int) -> Callable[[NanochatApp, str], None]:
    """Go to the tab at this place."""

    def run(app: NanochatApp, _: str) -> None:
        if index < len(app.chats):
            app.chat_screen.keep_draft()
            app.chats.activate(index)
            app.chat_screen.show_active()

    return run


def go_to(app: NanochatApp, number: str) -> None:
    """Go to the tab of this number."""
    if not number.isdecimal() or not 1 <= int(number) <= len(app.chats):
        raise UsageError(f"/tab takes a number from 1 to {len(app.chats)}")
    go(int(number) - 1)(app, "")


ACTIONS: tuple[Action, ...] = (
    Action(
        id="tab.new", title="New tab", help="Begin a chat in a new tab.", group=_GROUP, run=new, keys="ctrl+t",
        slash="new", priority=True,
    ),
    Action(
        id="tab.close", title="Close tab", help="Close the tab: its reply stops and is saved, the chat stays.",
        group=_GROUP, run=close, keys="ctrl+w", slash="close", priority=True,
    ),
    Action(
        id="tab.reopen", title="Reopen tab", help="Open the tab closed last.", group=_GROUP, run=reopen, slash="reopen",
    ),
    Action(
        id="tab.next", title="Next tab", help="Go to the tab to the right.", group=_GROUP, run=step(1),
        keys="ctrl+pagedown", priority=True,
    ),
    Action(
        id="tab.previous", title="Previous tab", help="Go to the tab to the left.", group=_GROUP, run=step(-1),
        keys="ctrl+pageup", priority=True,
    ),
    Action(
        id="tab.go", title="Go to tab", help="Alt+1 to Alt+9 go to a tab: /tab 3.", group=_GROUP, run=go_to,
        slash="tab", argument="number",
    ),
    *(
        Action(
            id=f"tab.{number}", title=f"Tab {number}", help=f"Go to tab {number}.", group=_GROUP, run=go(number - 1),
            keys=f"alt+{number}", priority=True, listed=False,
        )
        for number in range(1, 10)
    ),
)  # fmt: skip
