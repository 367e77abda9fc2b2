"""Keys as a terminal sends them: what follows an ESC belongs to it, and how long to wait before nothing does."""

from __future__ import annotations

import logging
import os
import selectors
from codecs import getincrementaldecoder
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from threading import Event

from textual import constants, events
from textual._ansi_sequences import ANSI_SEQUENCES_KEYS
from textual.message import Message

from nanochat.ui.pasting import START, PasteParser

log = logging.getLogger("nanochat.keyboard")

ESC = "\x1b"
PASTE_START = START.encode()
_INTRODUCERS = "OPX"  # ESC with one of these begins a longer sequence: SS3, DCS, SOS
_SCREENS = {"\x1b[?1049;1$y": False, "\x1b[?1049;2$y": True}  # DECRPM; whether it is the main screen
_LOOK_SECONDS = 0.1  # between two looks at whether to end
_REMOTE = ("SSH_CONNECTION", "SSH_TTY", "SSH_CLIENT")


@dataclass(frozen=True, slots=True)
class Patience:
    """How many seconds of silence say that nothing follows: a lone ESC, or a longer beginning, which nobody types.

    A terminal on this machine sends a sequence in one piece; what comes over a network may be cut anywhere.
    """

    escape: float = 0.03
    sequence: float = constants.ESCAPE_DELAY

    @classmethod
    def here(cls, environ: Mapping[str, str] = os.environ) -> Patience:
        """What this terminal needs; `ESCDELAY`, which Textual has read, says otherwise."""
        if "ESCDELAY" in environ:
            return cls(escape=constants.ESCAPE_DELAY)
        return cls(0.1, 0.5) if any(environ.get(name) for name in _REMOTE) else cls()


class ScreenReport(Message):
    """The terminal says which of its screens it shows: the main or the alternate one."""

    def __init__(self, *, main: bool) -> None:
        super().__init__()
        self.main = main


class KeyParser(PasteParser):
    """Textual's parser with whole pastes, but alt with a letter or a digit is known at once.

    Textual waits whether the sequence goes on, which none that begins so does; and it reads ESC 1 as the sign that
    Option+1 types on a Mac. What a terminal says about its screen, Textual drops. ESC and a capital in one read are
    the two keys Esc and that capital, unless alt with it is `bound` to something: text begins so behind an Esc.
    """

    def __init__(self, debug: bool = False, *, bound: Container[str] = ()) -> None:
        super().__init__(debug)
        self._bound = bound

    def _sequence_to_key_events(self, sequence: str, alt: bool = False) -> Iterable[events.Key]:
        if _is_alt_key(sequence):
            return [events.Key(f"alt+{sequence[1]}", sequence[1])]
        if _is_alt_capital(sequence, alt):
            letter = sequence[-1]
            key = f"alt+shift+{letter.lower()}"
            return (
                [events.Key(key, letter)]
                if key in self._bound
                else [events.Key("escape", ESC), events.Key(letter, letter)]
            )
        if sequence in _SCREENS:
            self._tokens.append(ScreenReport(main=_SCREENS[sequence]))
        return super()._sequence_to_key_events(sequence, alt)

    @property
    def waits(self) -> bool:
        """Whether what was read so far may go on."""
        return self._timeout_time is not None

    def expire(self) -> Iterable[Message]:
        """Nothing more came: what was read so far is all there is."""
        if self.waits:
            self._timeout_time = 0.0
        return self.tick()


def _read(descriptor: int) -> bytes:
    """What there is to read; nothing when the terminal is gone."""
    try:
        return os.read(descriptor, 4096)
    except OSError as error:
        log.info("the terminal is gone: %s", error)
        return b""


def _is_alt_key(sequence: str) -> bool:
    if len(sequence) != 2 or sequence[0] != ESC or not sequence[1].isascii():
        return False
    digit, letter = sequence[1] in "123456789", sequence[1].islower()
    return digit or (letter and sequence not in ANSI_SEQUENCES_KEYS)


def _is_alt_capital(sequence: str, alt: bool) -> bool:
    if alt:  # nothing came behind the two
        return len(sequence) == 1 and sequence.isupper()
    return (
        len(sequence) == 2
        and sequence[0] == ESC
        and sequence[1].isupper()
        and sequence[1] not in _INTRODUCERS
    )


def read_keys(
    descriptor: int, take: Callable[[Message], None], ended: Event, *, patience: Patience | None = None,
    anew: Event | None = None, bound: Container[str] = (), debug: bool = False,
) -> None:  # fmt: skip
    """Read keys until the end, or until the terminal is gone. Damaged bytes are dropped, not fatal.

    `bound` are keys that mean something; those that are read otherwise where they mean nothing count.
    `anew` is set when another terminal may send them: its mouse counts cells until it says how large its pixels are.
    Time counts only while nothing can be read: on a busy machine no sequence falls apart.
    """
    patience = patience or Patience.here()
    parser, decoder = KeyParser(debug, bound=bound), getincrementaldecoder("utf-8")()
    seconds = patience.sequence
    with selectors.SelectSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while not ended.is_set():
            if not selector.select(seconds if parser.waits else _LOOK_SECONDS):
                found = parser.expire()
            elif data := _read(descriptor):
                if anew is not None and anew.is_set():
                    anew.clear()
                    parser.mouse_pixels = False
                try:
                    text = decoder.decode(data)
                except UnicodeDecodeError as error:
                    if parser.in_paste or PASTE_START in data:  # text in another encoding
                        waiting, decoder = decoder.getstate()[0], getincrementaldecoder("utf-8")()
                        for message in parser.feed((waiting + data).decode("utf-8", "replace")):
                            take(message)
                        continue
                    log.warning("dropped input that is not UTF-8: %r", error.object[:32])
                    parser, decoder = KeyParser(debug, bound=bound), getincrementaldecoder("utf-8")()
                    continue
                seconds = patience.escape if text.endswith(ESC) else patience.sequence
                found = parser.feed(text) if text else ()
            else:
                return  # the terminal is gone, and no key comes any more
            for message in found:
                take(message)
