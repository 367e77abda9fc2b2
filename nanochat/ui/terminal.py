"""The real terminal while the application holds it: nothing but the screen writes there, and it is given back."""

from __future__ import annotations

import asyncio
import faulthandler
import io
import logging
import os
import signal
import sys
import termios
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, cast

from textual import constants
from textual.drivers import linux_driver
from textual.message import Message

from nanochat.settings import private_folder
from nanochat.ui.guardian import dismiss, post_guardian
from nanochat.ui.keyboard import ScreenReport, read_keys

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp

log = logging.getLogger("nanochat.terminal")

# Mouse off, focus reports off, bracketed paste off, in-band resize off, kitty keys off, line wrap on, main screen,
# cursor shown, attributes reset: everything that the driver turns on.
RESTORE = (
    "\x1b[?1000l\x1b[?1003l\x1b[?1015l\x1b[?1006l\x1b[?1004l\x1b[?2004l\x1b[?2048l\x1b[<u\x1b[?7h"
    "\x1b[?1049l\x1b[?25h\x1b[0m"
)  # fmt: skip

RESTORE_SECONDS = 0.1  # of silence after SIGWINCH
_KITTY_FLAGS = (
    linux_driver.KITTY_DISAMBIGUATE_ESCAPE_CODES
    | linux_driver.KITTY_REPORT_ALL_KEYS
    | linux_driver.KITTY_REPORT_ASSOCIATED_TEXT
)


class ScreenFile(io.TextIOWrapper):
    """The terminal as a file; once the terminal is gone, writing does nothing instead of raising."""

    def write(self, text: str, /) -> int:
        """Write to the terminal, or nowhere when it has hung up."""
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        """Flush to the terminal, or nowhere when it has hung up."""
        try:
            super().flush()
        except OSError as error:
            log.debug("the terminal is gone: %s", error)


class TerminalDriver(linux_driver.LinuxDriver):
    """Textual's driver, with what it lacks in real terminals.

    Keys are read by `read_keys`: it survives bytes that are not UTF-8 (X10 mouse reports after a tmux reattach), a paste
    is one text whatever is in it, Esc and alt+1 to alt+9 act at once, and a network may cut what a key sends. The
    terminal's size is believed, not an exported COLUMNS.

    SIGWINCH may come from another terminal (dtach, a reload), which neither knows the screen nor has its modes. So a
    moment after it, and once for many, all modes are set again: a few bytes that change nothing in a terminal that has
    them. Only the alternate screen does, some clear it: where the size is another, Textual has drawn on it just now, and
    it is entered again only in a terminal that says that it shows its main screen (some know 1049 alone).
    """

    def start_application_mode(self) -> None:
        """Take the terminal."""
        self._taken = False
        self._anew = threading.Event()
        self._restoring: asyncio.TimerHandle | None = None
        self._drawn = self._get_terminal_size()
        resumed = self._must_signal_resume
        super().start_application_mode()
        self._mode = read_attributes()
        textual = signal.getsignal(signal.SIGWINCH)
        if callable(textual):
            self._resized = textual
            signal.signal(signal.SIGWINCH, self._watched)
            self._taken = True
        if resumed:  # the alternate screen is empty, and Textual draws what has changed since
            self._loop.call_soon_threadsafe(self._app.refresh)

    def stop_application_mode(self) -> None:
        """Give the terminal back."""
        self._taken = False
        super().stop_application_mode()

    def process_message(self, message: Message) -> None:
        """Take what the terminal sent; called in the thread that reads it."""
        if isinstance(message, ScreenReport):
            self._loop.call_soon_threadsafe(self._draw_again if message.main else self._enable_kitty_keys)
        else:
            super().process_message(message)

    def _sigcont_application(self, *arguments: object) -> None:
        """Go on. After SIGSTOP the terminal was never given back: it is not taken a second time, with two readers."""
        if self._taken:
            restore_attributes(self._mode)  # a shell that has used it meanwhile has its own
            self._loop.call_soon_threadsafe(self._restore_soon)
        else:
            super()._sigcont_application(*arguments)

    def _watched(self, number: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._restore_soon)
        self._resized(number, frame)

    def _restore_soon(self) -> None:
        """Restore after a moment; the alternate screen now, before Textual draws, where it can be had uncleared."""
        if self._taken:
            self.write("\x1b[?1047h")
        if self._restoring is not None:
            self._restoring.cancel()
        self._restoring = self._loop.call_later(RESTORE_SECONDS, self._restore)

    def _restore(self) -> None:
        """Set every mode again; what only this terminal can say (in-band resize, mouse in pixels) is asked anew."""
        if not self._taken:
            return
        size, before = self._get_terminal_size(), self._drawn
        self._drawn = size
        if size == before:
            self._draw_again()
        # In-band resize off: where it was on, only its first report says how large the pixels of the mouse are.
        self._in_band_window_resize, self._mouse_pixels = False, False
        self._anew.set()
        self.write("\x1b[?25l\x1b[?1004h\x1b[?2048l")  # cursor hidden, focus reports on
        self._enable_mouse_support()
        self._enable_bracketed_paste()
        self._disable_line_wrap()
        if os.environ.get("TERM_PROGRAM") != "Apple_Terminal":  # it shows the p of a question
            self._query_in_band_window_resize()
            self.write("\x1b[?1049$p")  # main screen, or ours?
        # The terminal before told its size in band: Textual did not hear the signal.
        if size != self._app.size:
            self._resized(signal.SIGWINCH, None)

    def _draw_again(self) -> None:
        if self._taken:
            self.write("\x1b[?1049h")
            self._enable_kitty_keys()
            self._app.refresh()

    def _enable_kitty_keys(self) -> None:
        """Set what Textual pushes, without another level. Each screen has its own flags: only on the alternate one."""
        if self._taken and not constants.DISABLE_KITTY_KEY:
            self.write(f"\x1b[={_KITTY_FLAGS};1u")

    def _get_terminal_size(self) -> tuple[int, int]:
        try:
            size = os.get_terminal_size(self.fileno)
            return size.columns, size.lines
        except OSError:
            return super()._get_terminal_size()

    def run_input_thread(self) -> None:
        """Read keys until the end."""
        bound = ",".join(cast("NanochatApp", self._app).keys.values()).split(",")
        read_keys(
            self.fileno, self.process_message, self.exit_event, anew=self._anew, bound=bound, debug=self._debug
        )  # fmt: skip


@contextmanager
def held(log_file: Path) -> Generator[None]:
    """Hold the terminal for the block.

    Descriptors 1 and 2 point at the log meanwhile, so that what drivers and compilers write from C lands there;
    `sys.__stdout__` and `sys.__stderr__`, which Textual writes to, keep the terminal. Afterwards everything is as it
    was, also after an exception; after a kill, a waiting shell restores the screen.
    """
    attributes = read_attributes()
    screen = _screen_descriptor()
    guardian = post_guardian(screen, RESTORE)
    saved = os.dup(1), os.dup(2)
    streams = sys.__stdout__, sys.__stderr__
    sink = _sink(log_file)
    terminal = ScreenFile(os.fdopen(screen, "wb"), encoding="utf-8", errors="replace", newline="")
    clean = False
    try:
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        sys.__stdout__ = sys.__stderr__ = terminal  # pyright: ignore[reportAttributeAccessIssue]
        faulthandler.enable(sink)
        yield
        clean = True
    finally:
        faulthandler.disable()
        if not clean:
            terminal.write(RESTORE)
        terminal.flush()
        sys.__stdout__, sys.__stderr__ = streams  # pyright: ignore[reportAttributeAccessIssue]
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        for descriptor in (*saved, sink):
            os.close(descriptor)
        restore_attributes(attributes)
        dismiss(guardian)
        _close(terminal)


def speaks_utf8(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this terminal is set up for UTF-8; without it the screen keeps to ASCII.

    Where nothing is set (containers), UTF-8 is what terminals speak. Python itself sets LC_CTYPE=C.UTF-8 in the C
    locale (PEP 538), so beside LANG=C that says nothing.
    """
    language = environ.get("LC_ALL") or environ.get("LC_CTYPE") or environ.get("LANG") or "C.UTF-8"
    coerced = (
        not environ.get("LC_ALL")
        and environ.get("LC_CTYPE") == "C.UTF-8"
        and environ.get("LANG") in ("C", "POSIX")
    )
    return not coerced and ("utf-8" in language.lower() or "utf8" in language.lower())


def _sink(log_file: Path) -> int:
    """A descriptor of the log; of nothing where it cannot be written, which is no reason not to chat."""
    try:
        private_folder(log_file.parent)
        return os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)


def _screen_descriptor() -> int:
    """A descriptor of our own for the terminal: standard error's or output's, else the controlling terminal."""
    for descriptor in (2, 1):
        if os.isatty(descriptor):
            return os.dup(descriptor)
    return os.open("/dev/tty", os.O_WRONLY) if os.isatty(0) else os.dup(2)


def read_attributes() -> list[object] | None:
    """The terminal's line discipline, None where there is no terminal."""
    try:
        return termios.tcgetattr(0)
    except termios.error:
        return None


def restore_attributes(attributes: list[object] | None) -> None:
    """Set the line discipline that `read_attributes` has read."""
    if attributes is None:
        return
    try:
        termios.tcsetattr(0, termios.TCSANOW, attributes)  # pyright: ignore[reportArgumentType]
    except termios.error as error:
        log.debug("the terminal's attributes could not be restored: %s", error)


def _close(terminal: ScreenFile) -> None:
    try:
        terminal.close()
    except OSError as error:
        log.debug("the terminal is gone: %s", error)
