"""Which graphs memory had no room for: their steps run uncaptured, and now and then the capture is tried again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

from nanochat.kernels.shortage import comes_from_out_of_memory

STEPS_WITHOUT = 256  # before another attempt, which costs about three steps

log = logging.getLogger("nanochat.engine")

Captured = TypeVar("Captured")


class Captures:
    """The attempts at capturing one model's steps."""

    def __init__(self, *, alone: bool) -> None:
        """`alone`: no other rank waits in the step, so it can be begun again in another form."""
        self._alone = alone
        self._left: dict[Hashable, int] = {}  # steps to do without, by graph

    def attempt(self, name: Hashable, capture: Callable[[], Captured]) -> Captured | None:
        """What `capture` returns; `None` where memory has no room for it, or had none a short while ago."""
        left = self._left.get(name, 0)
        if left:
            self._left[name] = left - 1
            return None
        try:
            return self.now(capture)
        except RuntimeError as error:
            if not self._alone or not comes_from_out_of_memory(error):
                raise
            log.warning("no memory to capture %s: %s", name, str(error).splitlines()[0])
        self._left[name] = STEPS_WITHOUT
        return None

    def now(self, capture: Callable[[], Captured]) -> Captured:
        """What `capture` returns. A capture that fails may leave its stream behind as the current one: not here."""
        with torch.cuda.stream(torch.cuda.current_stream()):
            return capture()
