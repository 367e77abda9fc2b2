"""What stands around the transcript, kept as it is now: tabs, welcome, the prompt's frame, the side panel, the figures."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from nanochat.ui import chrome, figures, waiting
from nanochat.ui.keymap import first_key
from nanochat.ui.shelf import short_name
from nanochat.ui.status_fields import fields
from nanochat.ui.widgets.prompt_bar import PromptBar
from nanochat.ui.widgets.status_bar import StatusBar
from nanochat.ui.widgets.tabs import TabStrip
from nanochat.ui.widgets.welcome import Welcome

if TYPE_CHECKING:
    from nanochat.ui.screens.chat import ChatScreen

STATUS_SECONDS = 0.2


class Surroundings:
    """Draws them anew when told that something has changed; nothing before the chats are there."""

    def __init__(self, screen: ChatScreen) -> None:
        self._screen = screen
        self._last_status = 0.0
        self._draft_tokens: int | None = None

    def refresh(self) -> None:
        """Tabs, welcome, frame and status bar, as they are now."""
        screen = self._screen
        if screen.shown is None:
            return
        app, session = screen.nanochat, screen.shown
        screen.query_one(TabStrip).show(
            [chrome.tab_label(each) for each in app.chats], app.chats.active_index
        )
        empty = not session.conversation.ids
        screen.query_one(Welcome).display = empty
        screen.transcript.display = not empty
        self.refresh_frame()
        self.refresh_status(at_once=True)

    def refresh_status(self, *, at_once: bool = False) -> None:
        """The status bar, five times a second at most."""
        now, session = monotonic(), self._screen.shown
        if session is None or (now - self._last_status < STATUS_SECONDS and not at_once):
            return
        self._last_status = now
        app = self._screen.nanochat
        chat = chrome.chat_figures(session, app.host, note=app.note)
        self._screen.query_one(StatusBar).show(fields(chat, chrome.engine_figures(app.host), app.reading))
        waiting.show(session, app.host, app.desk.offers)

    def refresh_panel(self) -> None:
        """The side panel, where it is shown."""
        session, sides = self._screen.shown, self._screen.sides
        if session is None or not sides.panel.display:
            return
        host = self._screen.nanochat.host
        language = host.language
        used = session.context_tokens
        sides.panel.show(
            session,
            model=short_name(host.model.name) if host.model else "none",
            defaults=language.defaults if language else {},
            can_think=language.can_think if language else False,
            note=f"Another system prompt, thinking or model makes the next turn read the whole chat again: "
            f"{figures.count(used)} tokens." if used else "",
        )  # fmt: skip

    def show_draft_tokens(self, tokens: int | None) -> None:
        """How many tokens stand in the prompt."""
        self._draft_tokens = tokens
        self.refresh_frame()

    def refresh_frame(self) -> None:
        """What the prompt's frame says."""
        session = self._screen.shown
        if session is None:
            return
        app = self._screen.nanochat
        keys, host = app.keys, app.host
        send, up = first_key("prompt.send", "enter", keys), first_key("prompt.up", "up", keys)
        title = chrome.frame_title(session, host, app.desk.offers, send=send, up=up)
        said, tone = chrome.frame_figures(session, host, self._draft_tokens)
        bar = self._screen.query_one(PromptBar)
        bar.frame(title=title, figures=said, tone=tone)
        bar.queued.show(session.queue.drafts)
