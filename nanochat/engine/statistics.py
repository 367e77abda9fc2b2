"""Counters since load, and rates over the last second."""

from __future__ import annotations

import time
from collections import deque

from nanochat.engine.scheduler import Chunk

_WINDOW = 1.0  # seconds


class Statistics:
    """Counts steps and tokens. Written by the engine's thread; reading from another sees whole numbers."""

    def __init__(self) -> None:
        self.steps = 0
        self.prefill_tokens = 0
        self.cached_tokens = 0
        self.decode_tokens = 0
        self._since = 0.0
        self._recent: deque[tuple[float, float, int, int]] = deque()  # end, seconds, prefill, decode

    def resume(self, now: float) -> None:
        """The first step after a pause is dispatched: the clock starts again."""
        self._since = now

    def count(self, chunks: list[Chunk], now: float) -> None:
        """Take in one step; it took the time since the one before it, or since the pause's end."""
        seconds, self._since = now - self._since, now
        decodes = sum(chunk.start >= len(chunk.sequence.prompt) and chunk.count == 1 for chunk in chunks)
        prefill = sum(chunk.count for chunk in chunks) - decodes
        self.steps += 1
        self.prefill_tokens += prefill
        self.decode_tokens += decodes
        self._recent.append((now, seconds, prefill, decodes))
        while self._recent and self._recent[0][0] < now - _WINDOW:
            self._recent.popleft()

    def rates(self) -> tuple[float, float]:
        """(prefill, decode) tokens per second over the steps of the last second that did such work."""
        now = time.perf_counter()
        recent = [entry for entry in tuple(self._recent) if entry[0] >= now - _WINDOW]
        return _rate([(s, p) for _, s, p, _ in recent if p]), _rate([(s, d) for _, s, _, d in recent if d])


def _rate(work: list[tuple[float, int]]) -> float:
    seconds = sum(s for s, _ in work)
    return sum(n for _, n in work) / seconds if seconds > 0 else 0.0
