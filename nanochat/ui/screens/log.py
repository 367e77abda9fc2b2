"""The log: what the program, the drivers and the libraries said."""

from __future__ import annotations

import os
from pathlib import Path

from textual.content import Content
from textual.widgets import Static

from nanochat.sanitize import sanitize
from nanochat.ui.screens.page import Page

_BYTES = 60_000
_LINES = 400


def tail(file: Path) -> str:
    """The last lines of the log, made safe to show. Blocks: call from a worker."""
    try:
        with file.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - _BYTES))
            text = log.read().decode("utf-8", "replace")
    except OSError as error:
        return f"{file} cannot be read: {error.strerror}"
    return sanitize("\n".join(text.splitlines()[-_LINES:])) or "Nothing has been logged yet."


def log_page(file: Path, text: str) -> Page:
    """The log as a page, read from its end."""
    return Page(f"Log · {file}", Static(Content(text), classes="page-log"), at_end=True)
