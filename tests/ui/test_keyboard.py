"""Keys as a terminal sends them."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from contextlib import closing
from queue import Empty, Queue
from time import monotonic

import pytest
from textual import events
from textual.message import Message

from nanochat.ui import keyboard
from nanochat.ui.keyboard import KeyParser, Patience, read_keys


def keys(parser: KeyParser, text: str) -> list[str]:
    return [message.key for message in parser.feed(text) if isinstance(message, events.Key)]


@pytest.mark.parametrize("key", ["1", "9", "z"])
def test_alt_with_a_letter_or_a_digit_is_known_at_once(key: str) -> None:
    parser = KeyParser()
    assert keys(parser, f"\x1b{key}") == [f"alt+{key}"]
    assert not parser.waits


def test_alt_keys_that_mean_something_else_still_do() -> None:
    parser = KeyParser()
    assert keys(parser, "\x1bf\x1bb\x1b[A\x1bOP\x1b[1;3A") == [
        "ctrl+right",
        "ctrl+left",
        "up",
        "f1",
        "alt+up",
    ]


@pytest.mark.parametrize("text", ["The end", "Ça va", "G"])
def test_a_capital_in_one_read_with_an_escape_is_a_key_of_its_own(text: str) -> None:
    parser = KeyParser()
    found = [message for message in parser.feed(f"\x1b{text}") if isinstance(message, events.Key)]
    assert not parser.waits
    assert [key.key for key in found][:2] == ["escape", text[0]]
    assert "".join(key.character or "" for key in found[1:]) == text


@pytest.mark.parametrize("text", ["Oh", "Perhaps", "X"])
def test_a_capital_with_which_a_sequence_could_begin_is_one_when_none_comes(text: str) -> None:
    parser = KeyParser()
    found = [*parser.feed(f"\x1b{text}"), *parser.expire()]
    assert [key.key for key in found if isinstance(key, events.Key)] == ["escape", *text]


def test_alt_and_a_capital_stay_one_key_where_the_user_gave_it_a_meaning() -> None:
    parser = KeyParser(bound={"alt+shift+h"})
    assert keys(parser, "\x1bH\x1bJ") == ["alt+shift+h", "escape", "J"]


def test_an_escape_is_a_key_when_nothing_follows() -> None:
    parser = KeyParser()
    assert keys(parser, "\x1b") == []
    assert parser.waits
    assert [message.key for message in parser.expire() if isinstance(message, events.Key)] == ["escape"]
    assert not parser.waits


class Keyboard:
    """`read_keys` on a pipe."""

    def __init__(self, patience: Patience | None = None) -> None:
        self._out, self._in = os.pipe()
        self._found: Queue[Message] = Queue()
        self._ended, self.anew = threading.Event(), threading.Event()
        self._thread = threading.Thread(
            target=read_keys, args=(self._out, self._found.put, self._ended),
            kwargs={"patience": patience, "anew": self.anew},
        )  # fmt: skip
        self._thread.start()

    def type(self, data: bytes) -> None:
        os.write(self._in, data)

    def paste(self) -> str:
        message = self._found.get(timeout=20)
        assert isinstance(message, events.Paste)
        return message.text

    def next(self) -> str:
        message = self._found.get(timeout=20)
        assert isinstance(message, events.Key)
        return message.key

    def click(self, column: int, row: int) -> tuple[int, int]:
        """Press the mouse there, counted from 1; returns the cell that it is taken for."""
        self.type(f"\x1b[<0;{column};{row}M".encode())
        while not isinstance(message := self._found.get(timeout=20), events.MouseDown):
            pass
        return message.x, message.y

    def forget(self, last: bytes) -> None:
        """Type a last key, and read up to it."""
        self.type(last)
        while self.next() != last.decode():
            pass

    def close(self) -> None:
        self._ended.set()
        self._thread.join(20)
        os.close(self._in)
        os.close(self._out)
        with pytest.raises(Empty):
            self._found.get_nowait()


def relay(seconds: float) -> None:
    """Time passes on the way."""
    select.select([], [], [], seconds)


@pytest.fixture
def terminal() -> Iterator[Keyboard]:
    with closing(Keyboard()) as found:
        yield found


def test_another_terminals_mouse_counts_cells_until_it_says_how_large_its_pixels_are(
    terminal: Keyboard,
) -> None:
    terminal.type(b"\x1b[48;24;80;480;800t")  # rows, columns, and both in pixels
    assert terminal.click(401, 241) == (40, 12)
    terminal.anew.set()
    assert terminal.click(41, 13) == (40, 12)
    terminal.type(b"\x1b[48;24;80;960;1600t")
    assert terminal.click(801, 481) == (40, 12)


def test_a_lone_escape_acts_by_itself(terminal: Keyboard) -> None:
    terminal.type(b"\x1b")
    assert terminal.next() == "escape"


def test_a_sequence_that_comes_in_pieces_is_one_key() -> None:
    with closing(Keyboard(Patience(20.0, 20.0))) as terminal:  # however slow this machine is
        terminal.type(b"\x1b")
        terminal.type(b"[")
        terminal.type(b"A")
        assert terminal.next() == "up"


@pytest.mark.parametrize("name", ["SSH_CONNECTION", "SSH_TTY", "SSH_CLIENT"])
def test_a_network_may_cut_a_sequence_after_its_escape(name: str) -> None:
    with closing(Keyboard(Patience.here({name: "somewhere"}))) as terminal:
        while True:
            began = monotonic()
            terminal.type(b"\x1b")
            relay(0.06)
            terminal.type(b"[A")
            if monotonic() - began < 0.1:  # else it was this machine that was slow
                break
            terminal.forget(b"q")
        assert terminal.next() == "up"


def test_a_terminal_of_this_machine_waits_less_for_a_lone_escape() -> None:
    assert Patience.here({}).escape < Patience.here({"SSH_TTY": "/dev/pts/1"}).escape == 0.1
    assert Patience.here({"SSH_TTY": "/dev/pts/1", "ESCDELAY": "100"}) == Patience(escape=0.1)


def test_a_letter_of_several_bytes_may_come_in_pieces(terminal: Keyboard) -> None:
    terminal.type("é".encode()[:1])
    terminal.type("é".encode()[1:])
    assert terminal.next() == "é"


def test_input_that_is_not_text_is_dropped_and_keys_go_on(
    terminal: Keyboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = threading.Event()
    monkeypatch.setattr(keyboard.log, "warning", lambda *said: dropped.set())
    terminal.type(b"\x1b[M \xff\xff")
    assert dropped.wait(20)
    terminal.type(b"\x1b[A")
    assert terminal.next() == "up"


def test_a_paste_in_another_encoding_stays_one_paste(terminal: Keyboard) -> None:
    for piece in (b"\x1b[200~one\r", b"caf\xe9\r", b"two\r", b"\x1b[201~"):
        terminal.type(piece)
    assert terminal.paste() == "one\rcaf\ufffd\rtwo\r"
    terminal.type(b"\x1b[A")
    assert terminal.next() == "up"


def test_a_terminal_that_is_gone_ends_the_reading() -> None:
    """A thread that waits for keys for ever would keep the process, and the model in its memory, for ever."""
    ours, theirs = os.openpty()
    thread = threading.Thread(target=read_keys, args=(theirs, lambda _: None, threading.Event()), daemon=True)
    thread.start()
    os.close(ours)
    thread.join(20)
    assert not thread.is_alive()
    os.close(theirs)
