"""Progress on the last line of a terminal; a few plain lines where there is no terminal that can redraw one."""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import dataclass
from typing import TextIO

from nanochat.modelhub.starter import NAME, StarterProgress
from nanochat.sanitize import sanitize_line

_REDRAW_SECONDS = 0.1
_BAR = 20  # cells at most
_SHORTEST_BAR = 5
_WORDS = {
    "waiting": "another nanochat is making the starter model; waiting for it",
    "fetching": "fetching the starter model, once",
    "checking": "checking it",
    "converting": "converting it",
}


def redraws(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that does what escape sequences say."""
    return stream.isatty() and (os.environ.get("TERM") or "dumb") != "dumb"


class ProgressLine:
    """One line of progress on `stream`, erased when it has done its work."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._redraws = redraws(self._stream)
        self._stage = ""
        self._drawn = 0.0
        self._shown = False

    def starter(self, progress: StarterProgress) -> None:
        """Show how far the starter model is: bar, size, speed and time left."""
        words = _WORDS[progress.stage]
        if progress.stage == "waiting" or not progress.total:
            return self.show(progress.stage, words)
        done, total = progress.done / 1e6, progress.total / 1e6
        facts = [f"{done:.1f}/{total:.1f} MB"]
        if progress.speed:
            facts.append(f"{progress.speed / 1e6:.1f} MB/s")
        if progress.seconds_left is not None:
            facts.append(f"{_clock(progress.seconds_left)} left")
        named = f"fetching the starter model {NAME}, once ({total:.1f} MB)"
        plain = named if progress.stage == "fetching" else words
        return self.show(progress.stage, plain, _Bar(words, progress.done / progress.total, facts))

    def fraction(self, words: str, fraction: float) -> None:
        """Show a part of one, such as a load."""
        self.show(words, words, _Bar(words, fraction, [f"{fraction:.0%}"]))

    def show(self, stage: str, plain: str, drawn: _Bar | None = None) -> None:
        """Draw the line again, with its bar; without a terminal that redraws, write `plain` once for each stage."""
        now, plain = time.monotonic(), sanitize_line(plain)
        if not self._redraws:
            if stage != self._stage:
                print(f"nanochat: {plain}", file=self._stream, flush=True)
        elif stage != self._stage or now - self._drawn >= _REDRAW_SECONDS:
            width = shutil.get_terminal_size().columns - 1
            line = plain[:width] if drawn is None else sanitize_line(drawn.line(width))
            self._stream.write("\r\x1b[K" + line)
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


@dataclass(frozen=True, slots=True)
class _Bar:
    words: str
    fraction: float
    facts: list[str]

    def line(self, width: int) -> str:
        """Words, bar and facts in `width` cells; where that is too little, the bar gives way, then the words."""
        facts = "  ".join(self.facts)
        room = min(_BAR, width - len(self.words) - len(facts) - len("  []  "))
        if room < _SHORTEST_BAR:
            return f"{self.words[: max(0, width - len(facts) - 2)]}  {facts}"[-width:]
        full = round(max(0.0, min(self.fraction, 1.0)) * room)
        return f"{self.words}  [{'#' * full}{'-' * (room - full)}]  {facts}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
