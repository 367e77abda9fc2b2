"""The tokens of captured steps on their way to the host: a ring in pinned memory, and a step that is read from it."""

from __future__ import annotations

import ctypes

import torch

from nanochat.engine.sampler import Logprobs
from nanochat.engine.scheduler import Chunk
from nanochat.engine.step import Token, tokens_of
from nanochat.kernels.stream_calls import StreamCalls
from nanochat.kernels.triton_step import Told

RING = 64  # steps whose ids may wait to be read


class HostIds:
    """The host's end of the ring in which steps leave their tokens (`Told`).

    Attributes:
        told: the device's end.
    """

    def __init__(self, rows: int, device: torch.device, calls: StreamCalls) -> None:
        on_gpu = device.type == "cuda"
        ring = torch.zeros(RING, 1 + rows, dtype=torch.int64, pin_memory=on_gpu)
        self.told = Told(ring, torch.zeros(1, dtype=torch.int64, device=device))
        self._numbers = (ctypes.c_int64 * ring.numel()).from_address(ring.data_ptr())
        self._width, self._calls, self._turn = 1 + rows, calls, 0
        self._events = [torch.cuda.Event() for _ in range(RING)]
        for event in self._events:
            event.record()  # torch makes the driver's event only now
        self._handles: list[int] = [event.cuda_event for event in self._events]

    def skip(self) -> None:
        """A step was queued whose tokens nobody reads."""
        self._turn += 1

    def note(self, stream: int) -> int:
        """A step was queued: its number, for the questions below."""
        turn, self._turn = self._turn, self._turn + 1
        self._calls.record(self._handles[turn % RING], stream)
        return turn

    def there(self, turn: int) -> bool:
        """Whether the step's tokens have arrived."""
        return self._calls.is_done(self._handles[turn % RING])

    def wait(self, turn: int, count: int) -> list[int]:
        """The step's first `count` tokens, when they are there."""
        if not self.there(turn):
            self._events[turn % RING].synchronize()
        begin = turn % RING * self._width
        if self._numbers[begin] != turn:
            raise RuntimeError(
                f"the tokens of step {self._numbers[begin]} stand where those of {turn} should"
            )
        return self._numbers[begin + 1 : begin + 1 + count]


class GraphStep:
    """A replayed step whose tokens were not read yet."""

    def __init__(
        self, chunks: list[Chunk], ids: HostIds, turn: int, logprobs: Logprobs | None = None
    ) -> None:
        """`logprobs`: in pinned memory, complete when the step is done."""
        self.chunks = chunks
        self._ids, self._turn, self._logprobs = ids, turn, logprobs

    def done(self) -> bool:
        """Whether the device is through with it."""
        return self._ids.there(self._turn)

    def read(self) -> tuple[list[bool], list[Token]]:
        """Wait for the device: whether each chunk is sound, and its token."""
        ids = self._ids.wait(self._turn, len(self.chunks))
        healthy = [i >= 0 for i in ids]
        return healthy, tokens_of([chunk.sequence for chunk in self.chunks], ids, healthy, self._logprobs)
