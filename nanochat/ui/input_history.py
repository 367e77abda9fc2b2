"""What was sent before, or was written and not sent, for up and down in the prompt box; kept over restarts."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger("nanochat.input_history")

_KEPT = 500
_LONGEST = 20_000  # characters; longer messages are found through the chats, not here


class InputHistory:
    """Texts of all tabs, newest last. Reading and saving block: call them from a worker."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._entries: list[str] = []
        self._saving = threading.Lock()

    @property
    def entries(self) -> Sequence[str]:
        """The texts."""
        return self._entries

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

    def add(self, text: str, *, sent: bool = True) -> None:
        """Remember a text; the same twice in a row is kept once. One that was not sent may be of any length."""
        fits = not sent or len(text) <= _LONGEST
        if text.strip() and fits and (not self._entries or self._entries[-1] != text):
            self._entries.append(text)
            del self._entries[:-_KEPT]

    def save(self) -> None:
        """Write all entries, readable by the user only, replacing the file in one step."""
        if self._file is None:
            return
        with self._saving:
            self._write(self._file, list(self._entries))

    def _write(self, file: Path, entries: list[str]) -> None:
        fresh = file.with_suffix(".new")
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as out:
                out.writelines(json.dumps(entry) + "\n" for entry in entries)
            fresh.replace(file)
        except OSError as error:
            log.warning("the prompt history cannot be saved: %s", error)
