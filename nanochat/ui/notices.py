"""Words to the user that go by themselves after some seconds."""

from __future__ import annotations

from time import monotonic
from typing import Any, Literal

from textual.app import App

from nanochat.sanitize import sanitize

Severity = Literal["information", "warning", "error"]


class Notices:
    """Says things once: two parts of the application may meet the same error."""

    def __init__(self, app: App[Any]) -> None:
        self._app = app
        self._last = ("", 0.0)

    def say(self, text: str, severity: Severity) -> None:
        """A word; an error that is still on screen is not said again."""
        stays = 4 if severity == "information" else 8  # seconds
        again = text == self._last[0] and monotonic() - self._last[1] < stays
        if again and severity != "information":
            return
        self._last = (text, monotonic())
        self._app.notify(sanitize(text), severity=severity, markup=False, timeout=stays)
