"""Capture and replay of decode: one CUDA graph holds a whole step, from the last ids to the next ones.

Graphs are captured when first needed, and on one GPU small ones also while nobody waits, for batch sizes 1, 2, 4, 8, 16
and so on up to the maximum, in one shared memory pool; over several ranks once more for steps whose tokens are drawn from
logits that stay divided. Rows beyond the batch are empty: they write nothing. Without a graph (`enforce_eager`, or no memory
for it) the same step is launched anew each time: the same kernels over the same rows, so the same bits.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from nanochat.engine.captures import Captures, run_aside
from nanochat.engine.device_state import DeviceRows, first_rows
from nanochat.engine.fused_step import fused_decoder
from nanochat.engine.scheduler import Chunk
from nanochat.engine.step import KVTensors, Token
from nanochat.kernels.cuda import CudaKernels
from nanochat.kernels.headway import COMPILING, MEASURING, longer
from nanochat.kernels.layout import AttentionLayout
from nanochat.kernels.stream_calls import ExecutableGraph, Staging, StreamCalls
from nanochat.kernels.triton_sampling import sample_rows
from nanochat.kernels.triton_step import DecodeRows, Told, advance

if TYPE_CHECKING:
    from nanochat.engine.models.decoder import Decoder
    from nanochat.engine.parallel.divided_sampler import DividedSampler

_RING = 64  # steps whose ids may wait to be read
_STAGED = 64  # new blocks of a step that go to the device by the way that keeps the interpreter's lock
_FUSED_ROWS = 8  # the matrix-vector kernels go so far


class HostIds:
    """The host's end of the ring in which steps leave their tokens (`Told`).

    Attributes:
        told: the device's end.
    """

    def __init__(self, rows: int, device: torch.device, calls: StreamCalls) -> None:
        on_gpu = device.type == "cuda"
        ring = torch.zeros(_RING, 1 + rows, dtype=torch.int64, pin_memory=on_gpu)
        self.told = Told(ring, torch.zeros(1, dtype=torch.int64, device=device))
        self._numbers = (ctypes.c_int64 * ring.numel()).from_address(ring.data_ptr())
        self._width, self._calls, self._turn = 1 + rows, calls, 0
        self._events = [torch.cuda.Event() for _ in range(_RING)]
        for event in self._events:
            event.record()  # torch makes the driver's event only now
        self._handles: list[int] = [event.cuda_event for event in self._events]

    def skip(self) -> None:
        """A step was queued whose tokens nobody reads."""
        self._turn += 1

    def note(self, stream: int) -> int:
        """A step was queued: its number, for the questions below."""
        turn, self._turn = self._turn, self._turn + 1
        self._calls.record(self._handles[turn % _RING], stream)
        return turn

    def there(self, turn: int) -> bool:
        """Whether the step's tokens have arrived."""
        return self._calls.is_done(self._handles[turn % _RING])

    def wait(self, turn: int, count: int) -> list[int]:
        """The step's first `count` tokens, when they are there."""
        if not self.there(turn):
            self._events[turn % _RING].synchronize()
        begin = turn % _RING * self._width
        if self._numbers[begin] != turn:
            raise RuntimeError(
                f"the tokens of step {self._numbers[begin]} stand where those of {turn} should"
            )
        return self._numbers[begin + 1 : begin + 1 + count]


class GraphStep:
    """A replayed step whose tokens were not read yet."""

    def __init__(self, chunks: list[Chunk], ids: HostIds, turn: int) -> None:
        self.chunks = chunks
        self._ids, self._turn = ids, turn

    def done(self) -> bool:
        """Whether the device is through with it."""
        return self._ids.there(self._turn)

    def read(self) -> tuple[list[bool], list[Token]]:
        """Wait for the device: whether each chunk is sound, and its token."""
        ids = self._ids.wait(self._turn, len(self.chunks))
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
        self._captured: dict[tuple[int, bool], ExecutableGraph] = {}
        self._captures = Captures(alone=model.reduce is None)
        self._ids = HostIds(self._sizes[-1], last_ids.device, self._calls)

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
            self._launch(step, size, divided, stream)
        except RuntimeError:
            self._rows.step_back(ordered)
            raise
        return GraphStep(ordered, self._ids, self._ids.note(stream))

    def _ready(self, size: int, divided: bool) -> ExecutableGraph | None:
        """A size's graph; `None` where there is none, and then its step can be launched uncaptured."""
        step = self._captured.get((size, divided))
        if step is None and not self._eager:
            name = f"{size} rows" + (", divided" if divided else "")
            step = self._captures.attempt(name, lambda: self._capture(size, divided))
        if step is None:
            with longer(MEASURING):
                self._tune(size)
        return step

    def _launch(self, step: ExecutableGraph | None, size: int, divided: bool, stream: int) -> None:
        """Queue a step. What may fail comes before the rows move on."""
        if step is None:
            with longer(COMPILING):
                self._step(size, divided)
        else:
            self._calls.launch(step.handle, stream)

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

    def _capture(self, size: int, divided: bool) -> ExecutableGraph:
        self._rows.hand_back()  # capturing runs steps: they must find nothing to do

        def once() -> None:  # kernels are compiled and tuned outside of the capture
            self._tune(size)
            self._step(size, divided)
            self._ids.skip()

        with longer(MEASURING):
            run_aside(once, self._query_start.device)
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph, pool=self._captures.pool, capture_error_mode=capture_mode(self._model)):
            self._step(size, divided)
        step = self._captured[size, divided] = ExecutableGraph(graph)
        return step

    def _tune(self, size: int) -> None:
        """Measure this size's products once, where its step has any that are tuned."""
        if self._fused is not None and size <= _FUSED_ROWS and size not in self._tuned:
            self._fused.tune(size)
        self._tuned.add(size)

    def _step(self, size: int, divided: bool) -> None:
        rows, sampling = first_rows(self._rows.decode, self._rows.sampling, size)
        share = self._logits(rows, size)
        if divided and self._divided is not None:
            ids, finite = self._divided.draw_rows(share, sampling, pdl=self._pdl)
        else:
            ids, finite = sample_rows(self._model.whole_logits(share), sampling, pdl=self._pdl)
        # Last: when a step fails for want of memory, its rows stand where they stood.
        advance(rows, ids, finite, self._ids.told, pdl=self._pdl)

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
