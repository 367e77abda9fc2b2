"""Where graphs are captured, and which of them memory had no room for.

Steps without a graph run uncaptured, and now and then their capture is tried again.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

from nanochat.kernels.shortage import comes_from_out_of_memory

STEPS_WITHOUT = 256  # before another attempt, which costs about three steps

log = logging.getLogger("nanochat.engine")

Captured = TypeVar("Captured")


class Captures:
    """The attempts at capturing one model's steps.

    Attributes:
        pool: the memory that its graphs share.
    """

    def __init__(self, *, alone: bool) -> None:
        """`alone`: no other rank waits in the step, so it can be begun again in another form."""
        self._alone = alone
        self._left: dict[Hashable, int] = {}  # steps to do without, by graph
        self._held = False  # whether a graph keeps the pool
        self.pool = torch.cuda.graph_pool_handle()

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
            try:
                step = capture()
            except RuntimeError:
                if not self._held:  # torch begins no second capture in a pool whose last graph is gone
                    self.pool = torch.cuda.graph_pool_handle()
                raise
        self._held = True
        return step


def run_aside(step: Callable[[], object], device: torch.device) -> None:
    """Run a step before it is captured, on another stream as torch advises, and wait for it.

    Always the same stream: for each one that it ever saw, torch keeps 32 MiB for cuBLAS.
    """
    aside, current = _aside(device), torch.cuda.current_stream(device)
    aside.wait_stream(current)
    try:
        with torch.cuda.stream(aside):
            step()
    finally:  # also what was launched of a step that failed
        current.wait_stream(aside)
        torch.cuda.synchronize(device)


@functools.cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
