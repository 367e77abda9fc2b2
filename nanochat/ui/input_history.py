"""What was sent before, for up and down in the prompt box; kept over restarts."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

log = logging.getLogger("nanochat.input_history")

_KEPT = 500
_LONGEST = 20_000  # characters; longer messages are found through the chats, not here


class InputHistory:
    """Sent texts, newest last, and a place among them. Reading and saving block: call them from a worker."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._entries: list[str] = []
        self._place: int | None = None  # None: at the unsent text, below the newest
        self._unsent = ""

    def load(self) -> None:
        """Read what earlier sessions saved; lines that cannot be read are skipped."""
        if self._file is None:
            return
        try:
            lines = self._file.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("the prompt history cannot be read: %s", error)
            return
        earlier: list[str] = []
        for line in lines[-_KEPT:]:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, str):
                earlier.append(entry)
        self._entries = earlier + self._entries

    def add(self, text: str) -> None:
        """Remember a sent text; the same twice in a row is kept once."""
        self._place = None
        if text.strip() and len(text) <= _LONGEST and (not self._entries or self._entries[-1] != text):
            self._entries.append(text)
            del self._entries[:-_KEPT]

    def save(self) -> None:
        """Write all entries, readable by the user only, replacing the file in one step."""
        if self._file is None:
            return
        fresh = self._file.with_suffix(".new")
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as out:
                out.writelines(json.dumps(entry) + "\n" for entry in self._entries)
            fresh.replace(self._file)
        except OSError as error:
            log.warning("the prompt history cannot be saved: %s", error)

    def older(self, unsent: str) -> str | None:
        """The text before the present one; the unsent text is remembered at the first step. None at the oldest."""
        if self._place is None:
            self._unsent = unsent
        place = len(self._entries) if self._place is None else self._place
        if place == 0:
            return None
        self._place = place - 1
        return self._entries[self._place]

    def newer(self) -> str | None:
        """The text after the present one, at last the unsent one; None when already there."""
        if self._place is None:
            return None
        self._place += 1
        if self._place < len(self._entries):
            return self._entries[self._place]
        self._place = None
        return self._unsent
