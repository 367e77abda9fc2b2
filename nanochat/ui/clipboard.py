"""Text onto the clipboard, by every route there is, and a word on which worked.

Three routes, tried together, since none says whether the reader's clipboard has the text in the end: the
system's clipboard (pyperclip; not over SSH, where it would be the wrong machine's), tmux's own buffer, which
tmux hands on, and OSC 52, which asks the terminal, through SSH and wrapped for tmux and screen.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyperclip

from nanochat.ui.background import detached

log = logging.getLogger("nanochat.clipboard")

#: Bytes after which a terminal is not asked: xterm takes 75 kB, most take 100 kB to 1 MB, the rest is dropped silently.
LONGEST_OSC52 = 1_000_000
LONGEST_SURE_OSC52 = 74_994
#: Bytes of one piece through GNU screen, which cuts longer strings.
SCREEN_PIECE = 700
SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Copied:
    """Which routes took the text. `sure`: at least one of them confirmed it."""

    routes: tuple[str, ...]
    sure: bool
    warning: str = ""

    def describe(self, what: str) -> str:
        """A sentence for the reader: `Copied python code: system clipboard, terminal (OSC 52).`"""
        if not self.routes:
            return f"Could not copy {what}. {self.warning}".rstrip()
        sentence = f"Copied {what}: {', '.join(self.routes)}."
        return f"{sentence} {self.warning}".rstrip()


class Clipboard:
    """Copies text. `write` puts bytes on the terminal, unchanged; `environ` says what stands in between."""

    def __init__(self, write: Callable[[str], object], environ: Mapping[str, str]) -> None:
        self._write = write
        self._environ = environ

    async def copy(self, text: str) -> Copied:
        """Put the text on the clipboard; does not hold the screen up, and ends within a few seconds."""
        routes: list[str] = []
        warning = ""
        if not self._remote and await self._copy_to_system(text):
            routes.append("system clipboard")
        if "TMUX" in self._environ and await asyncio.to_thread(_copy_to_tmux, text, self._environ):
            routes.append("tmux buffer")
        sure = bool(routes)
        size = len(b64encode(text.encode()))
        if size <= LONGEST_OSC52:
            self._write(osc52(text, self._environ))
            routes.append("terminal (OSC 52)")
            if size > LONGEST_SURE_OSC52 and not sure:
                warning = f"{size // 1000} kB is more than some terminals take."
        elif not sure:
            warning = f"{size // 1000} kB is more than a terminal takes: export the chat to a file instead."
        return Copied(tuple(routes), sure, warning)

    async def _copy_to_system(self, text: str) -> bool:
        try:
            return await asyncio.wait_for(detached(lambda: _copy_to_system(text)), SECONDS)
        except TimeoutError:
            log.info("the system clipboard did not answer in %s s", SECONDS)
            return False

    @property
    def _remote(self) -> bool:
        return any(name in self._environ for name in ("SSH_CONNECTION", "SSH_TTY", "SSH_CLIENT"))


def osc52(text: str, environ: Mapping[str, str]) -> str:
    """The escape sequences that ask the terminal to take `text`, wrapped for what is between us and it.

    For tmux both forms are sent: it takes the plain one when `set-clipboard` is on, and passes the wrapped one
    through when `allow-passthrough` is on. (https://github.com/tmux/tmux/wiki/Clipboard)
    """
    plain = f"\x1b]52;c;{b64encode(text.encode()).decode()}\x07"
    if "TMUX" in environ:
        return plain + "\x1bPtmux;" + plain.replace("\x1b", "\x1b\x1b") + "\x1b\\"
    if "STY" in environ:
        pieces = (plain[at : at + SCREEN_PIECE] for at in range(0, len(plain), SCREEN_PIECE))
        return "".join(f"\x1bP{piece}\x1b\\" for piece in pieces)
    return plain


def _copy_to_system(text: str) -> bool:
    try:
        pyperclip.copy(text)
    except pyperclip.PyperclipException as error:
        log.info("no system clipboard: %s", error)
        return False
    return True


def _copy_to_tmux(text: str, environ: Mapping[str, str]) -> bool:
    program = shutil.which("tmux", path=environ.get("PATH"))
    if program is None:
        return False
    command = [program, "load-buffer", "-w", "-"]
    try:
        done = subprocess.run(
            command, input=text.encode(), env=dict(environ), capture_output=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.info("tmux did not take the text: %s", error)
        return False
    if done.returncode:
        log.info("tmux did not take the text: %s", done.stderr.decode(errors="replace").strip())
    return done.returncode == 0
