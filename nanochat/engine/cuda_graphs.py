"""Capture and replay of decode: one CUDA graph holds a whole step, from the last ids to the next ones.

Graphs are captured when first needed, and on one GPU small ones also while nobody waits, for batch sizes 1, 2, 4, 8, 16
and so on up to the maximum, in one shared memory pool; over several ranks once more for steps whose tokens are drawn from
logits that stay divided. Rows beyond the batch are empty: they write nothing. Without a graph (`enforce_eager`, or no memory
for it) the same step is launched anew each time: the same kernels over the same rows, so the same bits.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from nanochat.engine.captures import Captures
from nanochat.engine.device_state import DeviceRows, first_rows
from nanochat.engine.fused_step import fused_decoder
from nanochat.engine.scheduler import Chunk
from nanochat.engine.step import KVTensors, Token
from nanochat.kernels.cuda import CudaKernels
from nanochat.kernels.headway import COMPILING, MEASURING, longer
from nanochat.kernels.layout import AttentionLayout
from nanochat.kernels.stream_calls import ExecutableGraph, Staging, StreamCalls
from nanochat.kernels.triton_sampling import sample_rows
from nanochat.kernels.triton_step import DecodeRows, advance

if TYPE_CHECKING:
    from nanochat.engine.models.decoder import Decoder
    from nanochat.engine.parallel.divided_sampler import DividedSampler

_RING = 64  # steps whose ids may wait to be read
_STAGED = 64  # new blocks of a step that go to the device by the way that keeps the interpreter's lock
_FUSED_ROWS = 8  # the matrix-vector kernels go so far


@dataclass(frozen=True, slots=True)
class CapturedStep:
    """A graph and where it leaves its ids, int64 [batch]: -1 where the logits are not finite."""

    graph: ExecutableGraph
    ids: Tensor


class HostIds:
    """Where a step's ids arrive on the host, and the event that says that they are there."""

    def __init__(self, rows: int, calls: StreamCalls) -> None:
        self._pinned = torch.empty(rows, dtype=torch.int64, pin_memory=True)
        self._address = self._pinned.data_ptr()
        self._numbers = (ctypes.c_int64 * rows).from_address(self._address)
        self._event = torch.cuda.Event()
        self._event.record()  # torch makes the driver's event only now
        self._handle: int = self._event.cuda_event
        self._calls = calls

    def fetch(self, ids: Tensor, stream: int) -> None:
        """Queue the way of `ids` (int64, rows at most) here."""
        self._calls.copy_to_host(self._address, ids.data_ptr(), 8 * ids.shape[0], stream)
        self._calls.record(self._handle, stream)

    def there(self) -> bool:
        """Whether they have arrived."""
        return self._calls.is_done(self._handle)

    def wait(self, count: int) -> list[int]:
        """The first `count`, when they are there."""
        if not self.there():
            self._event.synchronize()
        return self._numbers[:count]


class GraphStep:
    """A replayed step whose tokens were not read yet."""

    def __init__(self, chunks: list[Chunk], ids: HostIds) -> None:
        self.chunks = chunks
        self._ids = ids

    def done(self) -> bool:
        """Whether the device is through with it."""
        return self._ids.there()

    def read(self) -> tuple[list[bool], list[Token]]:
        """Wait for the device: whether each chunk is sound, and its token."""
        ids = self._ids.wait(len(self.chunks))
        return [i >= 0 for i in ids], [Token(i, i >= 0) for i in ids]


class DecodeGraphs:
    """The graphs of one model, made as they are needed."""

    def __init__(
        self,
        model: Decoder,
        kv_cache: KVTensors,
        last_ids: Tensor,
        max_seqs: int,
        max_blocks: int,
        *,
        eager: bool = False,
        divided: DividedSampler | None = None,
    ) -> None:
        self._eager = eager
        self._divided = divided
        self._tuned: set[int] = set()
        self._model = model
        self._kv_cache = kv_cache
        self._sizes = batch_sizes(max_seqs)
        self._calls = StreamCalls()
        staging = Staging(self._calls, _RING, _STAGED)
        self._rows = DeviceRows(self._sizes[-1], max_blocks, last_ids, staging)
        self._query_start = torch.arange(self._sizes[-1] + 1, dtype=torch.int32, device=last_ids.device)
        self._fused = fused_decoder(model)
        self._pdl = isinstance(model.kernels, CudaKernels) and model.kernels.pdl
        self._captured: dict[tuple[int, bool], CapturedStep] = {}
        self._captures = Captures(alone=model.reduce is None)
        self._pool = torch.cuda.graph_pool_handle()
        self._ring = [HostIds(self._sizes[-1], self._calls) for _ in range(_RING)]
        self._turn = 0

    def describe(self) -> str:
        """Which form of a decode step is captured, in a few words."""
        if self._fused is None:
            return "plain steps"
        dependent = ", launched dependently" if self._fused.dependent else ""
        return f"fused steps up to {_FUSED_ROWS} rows{dependent}"

    def dispatch(self, chunks: list[Chunk]) -> GraphStep:
        """Queue one decode step for `chunks` behind whatever the device still does."""
        size = next(size for size in self._sizes if size >= len(chunks))
        stream = torch.cuda.current_stream().cuda_stream
        divided = self._divided is not None and self._divided.takes([chunk.sequence for chunk in chunks])
        step = self._ready(size, divided)
        ordered = self._rows.upload(chunks)
        try:
            drawn = self._launch(step, size, divided, stream)
        except RuntimeError:
            self._rows.step_back(ordered)
            raise
        ids = self._ring[self._turn]
        self._turn = (self._turn + 1) % _RING
        ids.fetch(drawn, stream)
        return GraphStep(ordered, ids)

    def _ready(self, size: int, divided: bool) -> CapturedStep | None:
        """A size's graph; `None` where there is none, and then its step can be launched uncaptured."""
        step = self._captured.get((size, divided))
        if step is None and not self._eager:
            name = f"{size} rows" + (", divided" if divided else "")
            step = self._captures.attempt(name, lambda: self._capture(size, divided))
        if step is None:
            with longer(MEASURING):
                self._tune(size)
        return step

    def _launch(self, step: CapturedStep | None, size: int, divided: bool, stream: int) -> Tensor:
        """Queue a step; returns where its ids will be. What may fail comes before the rows move on."""
        if step is None:
            with longer(COMPILING):
                return self._step(size, divided)
        self._calls.launch(step.graph.handle, stream)
        return step.ids

    def hand_back(self) -> None:
        """Before a step outside of graphs: what this knows of the running sequences becomes everybody's."""
        self._rows.hand_back()

    @property
    def uncaptured(self) -> list[int]:
        """The sizes of a few chats side by side that have no graph yet, and need no measurements of seconds for it."""
        few = [] if self._eager else [size for size in self._sizes if size <= _FUSED_ROWS]
        fused = self._fused
        return [
            size
            for size in few
            if (size, False) not in self._captured and (fused is None or fused.is_tuned(size))
        ]

    def prepare(self) -> None:
        """Capture the smallest of `uncaptured`."""
        size = self.uncaptured[0]
        self._captures.now(lambda: self._capture(size, divided=False))

    def _capture(self, size: int, divided: bool) -> CapturedStep:
        self._rows.hand_back()  # capturing runs steps: they must find nothing to do
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with longer(MEASURING):
            with torch.cuda.stream(stream):  # kernels are compiled and tuned outside of the capture
                self._tune(size)
                self._step(size, divided)
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode=capture_mode(self._model)):
            ids = self._step(size, divided)
        step = self._captured[size, divided] = CapturedStep(ExecutableGraph(graph), ids)
        return step

    def _tune(self, size: int) -> None:
        """Measure this size's products once, where its step has any that are tuned."""
        if self._fused is not None and size <= _FUSED_ROWS and size not in self._tuned:
            self._fused.tune(size)
        self._tuned.add(size)

    def _step(self, size: int, divided: bool) -> Tensor:
        rows, sampling = first_rows(self._rows.decode, self._rows.sampling, size)
        share = self._logits(rows, size)
        if divided and self._divided is not None:
            ids, finite = self._divided.draw_rows(share, sampling, pdl=self._pdl)
        else:
            ids, finite = sample_rows(self._model.whole_logits(share), sampling, pdl=self._pdl)
        # Last: when a step fails for want of memory, its rows stand where they stood.
        return advance(rows, ids, finite, pdl=self._pdl)

    def _logits(self, rows: DecodeRows, size: int) -> Tensor:
        """Of this rank's part of the vocabulary."""
        query_start = self._query_start[: size + 1]
        if self._fused is not None and size <= _FUSED_ROWS:
            return self._fused.logits(rows, query_start, self._kv_cache)
        layout = AttentionLayout(
            slots=rows.slots,
            block_tables=rows.block_tables,
            query_start=query_start,
            context_lens=rows.context_lens,
            query_lens=[],
            contexts=[],
            tables=[],
            max_query_len=1,
            max_context=rows.block_tables.shape[1] * 16,
            captured=True,
        )
        hidden = self._model.forward(rows.ids, rows.positions, layout, self._kv_cache)
        return self._model.share_of_logits(hidden)


def capture_mode(model: Decoder) -> Literal["global", "thread_local"]:
    """What other threads may do meanwhile: NCCL's own ones ask for events, which a global capture forbids."""
    return "global" if model.reduce is None else "thread_local"


def batch_sizes(largest: int) -> list[int]:
    """1, 2, 4, 8, then every 8 up to 64 and every 16 above, ending with exactly `largest`."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, largest + 16, 16)]
    return [size for size in sizes if size < largest] + [largest]
