"""The ends of several ranks in one process, for the interpreter: all send before one receives, since no two run at once here.

Import `interpreted` before this.
"""

from __future__ import annotations

import torch

from nanochat.kernels.triton_one_shot import OneShot, inbox_bytes
from nanochat.kernels.triton_row_inbox import LINE, row_stride
from nanochat.kernels.triton_wide_sum import WideSum, wide_bytes

CPU = torch.device("cpu")
ROWS, LOOKS = 5, 3
WORDS = 96  # of a row in one shot
ROW_BYTES = 400  # of a row of a wide sum
#: int32 in every inbox of wide sums at first, a NaN in each of the dtypes: what was not sent must not be read.
UNWRITTEN = -1


class OneShotRanks:
    """The ends of all ranks, and their inboxes."""

    def __init__(self, count: int) -> None:
        self.memory = [
            torch.zeros(inbox_bytes(count, ROWS, WORDS) // 8, dtype=torch.int64) for _ in range(count)
        ]
        inboxes = [memory.data_ptr() for memory in self.memory]
        self.ends = [OneShot(inboxes, rank, ROWS, WORDS, CPU, LOOKS, parts=2) for rank in range(count)]

    def send(self, deltas: list[torch.Tensor]) -> None:
        for end, delta in zip(self.ends, deltas, strict=True):
            end._launch(delta, None, None, 0.0, receive=False)

    def add_norm(self, deltas: list[torch.Tensor], x: torch.Tensor, weight: torch.Tensor):
        self.send(deltas)
        return [
            end._launch(delta, x, weight, 1e-5, send=False)
            for end, delta in zip(self.ends, deltas, strict=True)
        ]

    def sum(self, deltas: list[torch.Tensor]) -> list[torch.Tensor]:
        self.send(deltas)
        return [
            end._launch(delta, None, None, 0.0, send=False)[0]
            for end, delta in zip(self.ends, deltas, strict=True)
        ]


class WideRanks:
    """The ends of all ranks, and their inboxes: one memory each, wide sums behind those in one shot."""

    def __init__(self, count: int) -> None:
        begin, size = inbox_bytes(count, ROWS, 100), wide_bytes(count, ROWS, ROW_BYTES)
        self.memory = [torch.zeros((begin + size) // 4, dtype=torch.int32) for _ in range(count)]
        inboxes = [memory.data_ptr() for memory in self.memory]
        self.small = [OneShot(inboxes, rank, ROWS, 100, CPU, LOOKS) for rank in range(count)]
        self.ends = [
            WideSum([inbox + begin for inbox in inboxes], ROWS, ROW_BYTES, end) for end in self.small
        ]
        first, last = begin // 4, begin // 4 + 2 * count * ROWS * row_stride(ROW_BYTES) // 4
        self.wide = [memory[first:last].view(2, count, ROWS, -1) for memory in self.memory]
        self.flagless = [memory[last:] for memory in self.memory]
        for area in self.wide:
            area[..., : -LINE // 4] = UNWRITTEN

    def send(self, deltas: list[torch.Tensor]) -> None:
        for end, delta in zip(self.ends, deltas, strict=True):
            end._launch(delta, None, None, 0.0, own=False, receive=False)

    def receive(self, deltas: list[torch.Tensor], x=None, weight=None, eps: float = 0.0):
        """What was sent; in two shots what owners send first, into outputs that the others complete."""
        found = [
            end._launch(delta, x, weight, eps, send=False, receive=not end.two_shots)
            for end, delta in zip(self.ends, deltas, strict=True)
        ]
        for end, delta, (normed, total) in zip(self.ends, deltas, found, strict=True):
            if end.two_shots:
                others = torch.arange(len(delta)) % len(self.ends) != end.rank
                rest = end._launch(delta, x, weight, eps, send=False, own=False)
                normed[others], total[others] = rest[0][others], rest[1][others]
        return found

    def add_norm(self, deltas: list[torch.Tensor], x: torch.Tensor, weight: torch.Tensor):
        self.send(deltas)
        return self.receive(deltas, x, weight, 1e-5)

    def sum(self, deltas: list[torch.Tensor]) -> list[torch.Tensor]:
        self.send(deltas)
        return [total for total, _ in self.receive(deltas)]

    def take(self, shots: int) -> None:
        """From now on every wide sum goes in so many shots."""
        for end in self.ends:
            end.two_shots = shots - 1


def numbers(seed: int, count: int, rows: int, width: int, dtype: torch.dtype) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, width, generator=draw).to(dtype) for _ in range(count)]
