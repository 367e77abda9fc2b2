"""Progress on the last line of a terminal; a few plain lines where there is no terminal that can redraw one."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import TextIO

from nanochat.starter import NAME, StarterProgress

_REDRAW_SECONDS = 0.1
_BAR = 20
_WORDS = {
    "waiting": "another nanochat is making the starter model; waiting for it",
    "fetching": f"fetching the starter model {NAME}, once",
    "checking": "checking it",
    "converting": "converting it",
}


class ProgressLine:
    """One line of progress on `stream`, erased when it has done its work."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._redraws = self._stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._stage = ""
        self._drawn = 0.0
        self._shown = False

    def starter(self, progress: StarterProgress) -> None:
        """Show how far the starter model is: bar, size, speed and time left."""
        words = _WORDS[progress.stage]
        if progress.stage == "waiting" or not progress.total:
            return self.show(progress.stage, words)
        done, total = progress.done / 1e6, progress.total / 1e6
        parts = [words, _bar(progress.done / progress.total), f"{done:.1f}/{total:.1f} MB"]
        if progress.speed:
            parts.append(f"{progress.speed / 1e6:.1f} MB/s")
        if progress.seconds_left is not None:
            parts.append(f"{_clock(progress.seconds_left)} left")
        plain = f"{words} ({total:.1f} MB)" if progress.stage == "fetching" else words
        return self.show(progress.stage, plain, "  ".join(parts))

    def fraction(self, words: str, fraction: float) -> None:
        """Show a part of one, such as a load."""
        self.show(words, words, f"{words}  {_bar(fraction)}  {fraction:.0%}")

    def show(self, stage: str, plain: str, drawn: str | None = None) -> None:
        """Draw the line `drawn` again; without a terminal that redraws, write `plain` once for each stage."""
        now = time.monotonic()
        if not self._redraws:
            if stage != self._stage:
                print(f"nanochat: {plain}", file=self._stream, flush=True)
        elif stage != self._stage or now - self._drawn >= _REDRAW_SECONDS:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r\x1b[K" + (drawn or plain)[:width])
            self._stream.flush()
            self._drawn, self._shown = now, True
        self._stage = stage

    def erase(self) -> None:
        """Leave no trace on a terminal."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False
        self._stage = ""


def _bar(fraction: float) -> str:
    full = round(max(0.0, min(fraction, 1.0)) * _BAR)
    return "[" + "#" * full + "-" * (_BAR - full) + "]"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
