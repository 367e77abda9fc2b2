"""A real program on a pseudo-terminal: what it writes, and keys for it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from time import monotonic


class PtyChild:
    """A child process whose terminal is ours."""

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], size: tuple[int, int] = (24, 80)
    ) -> None:
        self.master, slave = pty.openpty()
        self.resize(*size)
        self.before = termios.tcgetattr(slave)
        self.started = monotonic()
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=dict(env), start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        self.slave = slave
        self.output = bytearray()

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, seconds: float) -> bytes:
        """What comes within some time, as soon as anything does."""
        ready, _, _ = select.select([self.master], [], [], seconds)
        if not ready:
            return b""
        try:
            piece = os.read(self.master, 65536)
        except OSError:
            return b""
        self.output += piece
        return piece

    def until(self, text: bytes, seconds: float = 20.0, *, since: int = 0) -> float:
        """Read until `text` has come after position `since`; returns the moment."""
        end = monotonic() + seconds
        while self.output.find(text, since) < 0:
            assert monotonic() < end, f"{text!r} never came; the last output: {bytes(self.output[-2000:])!r}"
            self.read(0.05)
        return monotonic()

    def write(self, data: bytes) -> None:
        os.write(self.master, data)

    def wait(self, seconds: float = 20.0) -> int:
        """Wait for the end, reading what comes meanwhile."""
        end = monotonic() + seconds
        while self.process.poll() is None:
            assert monotonic() < end, "it does not end"
            self.read(0.05)
        while self.read(0.3):
            pass
        return self.process.returncode

    def attributes(self) -> list[object]:
        return termios.tcgetattr(self.slave)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.slave)
        os.close(self.master)
