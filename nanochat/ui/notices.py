"""Words to the user that go by themselves after some seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Literal

from textual.app import App
from textual.notifications import Notification, Notify
from textual.widget import Widget

from nanochat.sanitize import sanitize

Severity = Literal["information", "warning", "error"]
MOST = 3  # at a time: on a screen of 24 lines they cover half of it
_ROOM = 6  # lines that they have at least, however long the message in the prompt is


class Notices:
    """Says things once: two parts of the application may meet the same error. `forget` takes one from the screen."""

    def __init__(self, app: App[Any], forget: Callable[[Notification], None]) -> None:
        self._app, self._forget = app, forget
        self._last = ("", 0.0)
        self._shown: deque[Notification] = deque()

    def say(self, text: str, severity: Severity) -> None:
        """A word; an error that is still on screen is not said again, and the oldest gives way to a fourth."""
        stays = 4 if severity == "information" else 8  # seconds
        again = text == self._last[0] and monotonic() - self._last[1] < stays
        if again and severity != "information":
            return
        self._last = (text, monotonic())
        notice = Notification(sanitize(text), severity=severity, timeout=stays)
        self._shown.append(notice)
        self._app.post_message(Notify(notice))
        if len(self._shown) > MOST:
            self._app.call_later(self._forget, self._shown.popleft())  # in its turn: it may not be there yet


def stand_above(prompt: Widget) -> None:
    """Notices of the prompt's screen stand above it: what waits and what is being written stays in sight."""
    screen = prompt.screen
    below = screen.size.height - prompt.region.y
    for rack in screen.query("ToastRack"):
        rack.styles.margin = (0, 0, max(0, min(below, screen.size.height - _ROOM)), 0)
