"""Capture and replay of decode: one CUDA graph holds a whole step, from the last ids to the next ones.

Graphs are captured when first needed, for batch sizes 1, 2, 4, 8, 16 and so on, and for contexts up to 1k,
4k, 16k and so on, since the attention's grid follows from the longest context that it must cover. All share
one memory pool. Rows beyond the batch are padding: they write nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nanochat.engine.device_state import DeviceState, send
from nanochat.engine.scheduler import Chunk
from nanochat.engine.step import KVTensors, Token
from nanochat.kernels.triton_sampling import sample_rows

if TYPE_CHECKING:
    from nanochat.engine.models import Model

_RING = 64  # steps whose ids may wait to be read


@dataclass(frozen=True, slots=True)
class CapturedStep:
    """A graph, where it reads its seats from and where it leaves its ids (-1 where the logits are not finite)."""

    graph: torch.cuda.CUDAGraph
    seats: Tensor  # int64 [batch]
    ids: Tensor  # int64 [batch]


class GraphStep:
    """A replayed step whose tokens were not read yet."""

    def __init__(self, chunks: list[Chunk], ids: Tensor, done: torch.cuda.Event) -> None:
        self.chunks = chunks
        self._ids = ids
        self._done = done

    def done(self) -> bool:
        """Whether the device is through with it."""
        return self._done.query()

    def read(self) -> tuple[list[bool], list[Token]]:
        """Wait for the device: per chunk whether it is sound, and its token."""
        self._done.synchronize()
        ids: list[int] = self._ids[: len(self.chunks)].tolist()
        return [i >= 0 for i in ids], [Token(i, i >= 0) for i in ids]


class DecodeGraphs:
    """The graphs of one model, made as they are needed."""

    def __init__(
        self, model: Model, kv_cache: KVTensors, state: DeviceState, max_seqs: int, max_model_len: int
    ) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._state = state
        self._max_model_len = max_model_len
        self._sizes = batch_sizes(max_seqs)
        self._captured: dict[tuple[int, int], CapturedStep] = {}
        self._batches: dict[tuple[int, int], list[int]] = {}  # the seats that each graph was last given
        self._pool = torch.cuda.graph_pool_handle()
        self._ring = [torch.empty(max_seqs, dtype=torch.int64, pin_memory=True) for _ in range(_RING)]
        self._events = [torch.cuda.Event() for _ in range(_RING)]
        self._turn = 0

    def dispatch(self, chunks: list[Chunk]) -> GraphStep:
        """Queue one decode step for `chunks` behind whatever the device still does."""
        self._state.upload(chunks)
        size = next(size for size in self._sizes if size >= len(chunks))
        key = (size, self._context(max(chunk.start for chunk in chunks) + 1))
        step = self._captured.get(key)
        if step is None:
            step = self._captured[key] = self._capture(*key)
        seats = [chunk.sequence.seat for chunk in chunks] + [self._state.padding] * (size - len(chunks))
        if self._batches.get(key) != seats:
            step.seats.copy_(send(seats, torch.int64, step.seats.device), non_blocking=True)
            self._batches[key] = seats
        step.graph.replay()
        ids, done = self._ring[self._turn], self._events[self._turn]
        self._turn = (self._turn + 1) % _RING
        ids[:size].copy_(step.ids, non_blocking=True)
        done.record()
        return GraphStep(chunks, ids, done)

    def _context(self, longest: int) -> int:
        bound = 1024
        while bound < longest:
            bound *= 4
        return min(bound, self._max_model_len)

    def _capture(self, size: int, max_context: int) -> CapturedStep:
        device = self._state.positions.device
        seats = torch.full((size,), self._state.padding, dtype=torch.int64, device=device)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):  # kernels are compiled and tuned outside of the capture
            self._step(seats, max_context)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            ids = self._step(seats, max_context)
        return CapturedStep(graph, seats, ids)

    def _step(self, seats: Tensor, max_context: int) -> Tensor:
        ids, positions, layout = self._state.layout(seats, max_context)
        hidden = self._model.forward(ids, positions, layout, self._kv_cache)
        drawn, finite = sample_rows(self._model.logits(hidden), self._state.sampling(seats))
        self._state.advance(seats, drawn)
        return torch.where(finite, drawn, -1)


def batch_sizes(largest: int) -> list[int]:
    """1, 2, 4, 8, then every 8 up to 64 and every 16 above, ending with exactly `largest`."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, largest + 16, 16)]
    return [size for size in sizes if size < largest] + [largest]
