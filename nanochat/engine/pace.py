"""How many prompt tokens go beside decoding sequences in one step, so that no reply waits long for its next token.

A token of a prompt costs more the longer the context before it (the attention of 1,024 tokens over 32,000 positions is
four times the rest of a small model), and ten times as much on one chip as on another. So the number follows from what
steps took: it starts at a default and is set anew after each step that both read and decoded.

On a GPU it is a power of two (or the most that a step takes), since time goes in stairs there: 768 tokens over a long context
occupy an H200 exactly as long as 1,024, as attention's programs are one wave either way; other numbers are padded to a graph's size.
"""

from __future__ import annotations

from nanochat.engine.config import EngineConfig
from nanochat.engine.scheduler import Chunk

_START = {"cuda": 1024, "cpu": 128}  # prompt tokens in the first step that also decodes
_SECONDS = {"cuda": 0.015, "cpu": 0.1}  # what such a step may take: the number of tokens follows
_MOST = {
    "cuda": 1024,
    "cpu": 2**31,
}  # on a GPU what one captured graph takes: beyond that every launch is paid for
_LEAST = 32
_GROWTH = {
    "cuda": 2.0,
    "cpu": 1.25,
}  # at most, from step to step: the next may be costlier than those that were timed


class PrefillPace:
    """Owned by the core.

    Args:
        start: prompt tokens in the first such step.
        most: in any.
        seconds: what such a step may take; 0 keeps to `start`.
        growth: how much larger the next step is, at most.
        stairs: only `most` and powers of two.
    """

    def __init__(
        self, start: int, most: int, seconds: float, *, growth: float = 1.25, stairs: bool = False
    ) -> None:
        self.tokens = min(start, most)
        self._most, self._seconds, self._growth, self._stairs = most, seconds, growth, stairs
        self._last: float | None = None  # when the step before this one was through

    @classmethod
    def of(cls, config: EngineConfig, device: str) -> PrefillPace:
        """An engine's on this type of device; a number that the configuration gives is kept to."""
        fixed = config.prefill_beside_decodes
        if fixed:
            return cls(fixed, fixed, 0.0)
        most = min(config.max_num_batched_tokens, _MOST[device])
        return cls(_START[device], most, _SECONDS[device], growth=_GROWTH[device], stairs=device == "cuda")

    def took(self, chunks: list[Chunk], now: float, more_in_flight: bool) -> None:
        """A step is through. How long it took is known when others were queued on either side of it.

        Args:
            now: seconds, on any clock that only goes forward.
            more_in_flight: false when the engine ran dry: the time to the next step is then not the step's alone.
        """
        last, self._last = self._last, now if more_in_flight else None
        prompt = sum(chunk.count for chunk in chunks if not _decodes(chunk))
        if not self._seconds or last is None or not prompt or not any(map(_decodes, chunks)):
            return
        taken = max(now - last, 1e-6)
        if prompt < self.tokens and taken <= self._seconds:
            return  # the short end of a prompt does not tell how long a full step takes
        fitting = int(max(_LEAST, min(prompt * self._seconds / taken, self.tokens * self._growth)))
        if self._stairs and fitting < self._most:
            fitting = 1 << fitting.bit_length() - 1
        self.tokens = min(fitting, self._most)


def _decodes(chunk: Chunk) -> bool:
    return chunk.count == 1 and chunk.samples and chunk.start >= len(chunk.sequence.prompt)
