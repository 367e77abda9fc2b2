"""What the terminal sends as one paste, taken as one text whatever is in it."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from textual import events
from textual._xterm_parser import XTermParser
from textual.message import Message

START, END = "\x1b[200~", "\x1b[201~"


class PasteParser(XTermParser):
    """Textual's parser, with pastes kept out of it.

    Textual 8.2 looks for keys inside a paste, too: an escape sequence there (a log with colours) loses text, and what
    follows it is typed, with its Enter keys. Here everything up to the end's mark is one `Paste`. The marks themselves
    go through Textual's parser, so that they may come in pieces, as every other sequence.
    """

    def __init__(self, debug: bool = False) -> None:
        super().__init__(debug)
        self._passed = ""  # the last characters that Textual's parser has seen
        self._paste: str | None = None

    @property
    def in_paste(self) -> bool:
        """Whether the end of a paste is still to come."""
        return self._paste is not None

    def feed(self, data: str) -> Iterable[Message]:
        """Parse what the terminal sent, in any pieces; nothing is the end."""
        if not data:
            yield from super().feed(data)
        while data:
            data = yield from (self._feed_keys(data) if self._paste is None else self._feed_paste(data))

    def _feed_keys(self, data: str) -> Generator[Message, None, str]:
        """Up to the beginning of a paste; returns what is left."""
        seen = self._passed + data
        at = seen.find(START)
        if at < 0:
            self._passed = seen[1 - len(START) :]
            yield from super().feed(data)
            return ""
        begin = at + len(START) - len(self._passed)
        self._passed, self._paste = "", ""
        yield from super().feed(data[:begin])
        return data[begin:]

    def _feed_paste(self, data: str) -> Generator[Message, None, str]:
        """Up to the end of a paste; returns what is left."""
        known, paste = len(self._paste or ""), (self._paste or "") + data
        at = paste.find(END, max(0, known + 1 - len(END)))
        self._paste = paste if at < 0 else None
        if at < 0:
            return ""
        for message in super().feed(END):
            if not isinstance(message, events.Paste):  # the empty one that it saw
                yield message
        if at:
            yield events.Paste(paste[:at].replace("\0", ""))
        return paste[at + len(END) :]
