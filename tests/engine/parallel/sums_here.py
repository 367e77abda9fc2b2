"""What ranks exchange where all of them are threads of this process: in its memory, a tenth of the work that gloo's sockets are."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor


class Meeting:
    """Where the ranks of one engine put what they have."""

    def __init__(self, ranks: int) -> None:
        self.barrier = threading.Barrier(ranks)
        self.brought: list[Tensor] = [torch.empty(0)] * ranks


class SumsHere:
    """One rank's side, with what `Collectives` asks of a group of gloo's."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self._meeting, self._rank = meeting, rank

    def allreduce(self, tensors: Sequence[Tensor], _: object) -> None:
        """The sum over all ranks in place, in the order of the ranks."""
        (x,) = tensors
        self._bring(x)
        total = torch.stack(self._meeting.brought).sum(0)
        self._meeting.barrier.wait()  # everybody has read it
        x.copy_(total)

    def gather(self, parts: Sequence[Sequence[Tensor]], tensors: Sequence[Tensor], _: object) -> None:
        """Everybody's for rank 0."""
        self._bring(*tensors)
        for into in parts:
            for part, brought in zip(into, self._meeting.brought, strict=True):
                part.copy_(brought)
        self._meeting.barrier.wait()

    def abort(self) -> None:
        """Whoever waits gets a RuntimeError."""
        self._meeting.barrier.abort()

    def _bring(self, x: Tensor) -> None:
        self._meeting.brought[self._rank] = x
        self._meeting.barrier.wait()


class Meetings:
    """Takes the place of what connects to gloo."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._meetings: dict[str, Meeting] = {}

    def connect(self, store: torch.distributed.FileStore, rank: int, ranks: int, _: torch.device) -> SumsHere:
        """A rank's side of the engine whose ranks meet at `store`."""
        with self._lock:
            meeting = self._meetings.setdefault(store.path, Meeting(ranks))
        return SumsHere(meeting, rank)
