"""Capture and replay of decode: one CUDA graph holds a whole step, from the last ids to the next ones.

Graphs are captured when first needed, and on one GPU small ones also while nobody waits, for batch sizes 1, 2, 4, 8, 16
and so on up to the maximum; over several ranks once more for steps whose tokens are drawn from logits that stay divided.
All share one memory pool, with those of prompts (`prefill_graphs`): what one graph leaves in it is read before the next
replay. Where a request wants penalties, biases, `min_tokens` or log-probabilities, the graph ends with the logits, and what
is left of the step is launched behind it, without a wait: `sample_adjusted` and `advance`. Rows beyond the batch are empty:
they write nothing. Without a graph (`enforce_eager`, or no memory for it) the same step is launched anew each time: the same
kernels over the same rows, so the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from nanochat.engine.adjusted_sampler import rows_of_newcomers, sample_adjusted, sample_newcomers
from nanochat.engine.captures import Captures, run_aside
from nanochat.engine.device_state import DeviceRows, first_rows
from nanochat.engine.fused_step import fused_decoder
from nanochat.engine.graph_step import RING, GraphStep, HostIds
from nanochat.engine.sampler import Logprobs, Sampled
from nanochat.engine.scheduler import Chunk
from nanochat.engine.step import KVTensors
from nanochat.kernels.cuda import CudaKernels
from nanochat.kernels.graph_memory import borrowed
from nanochat.kernels.headway import COMPILING, MEASURING, longer
from nanochat.kernels.layout import AttentionLayout
from nanochat.kernels.stream_calls import ExecutableGraph, Staging, StreamCalls
from nanochat.kernels.triton_sampling import sample_rows
from nanochat.kernels.triton_step import DecodeRows, advance

if TYPE_CHECKING:
    from nanochat.engine.models.decoder import Decoder
    from nanochat.engine.parallel.divided_sampler import DividedSampler
    from nanochat.engine.sequence import Sequence

_STAGED = 64  # new blocks of a step that go to the device by the way that keeps the interpreter's lock
_FUSED_ROWS = 8  # the matrix-vector kernels go so far

# What a graph ends with: tokens that are drawn from whole logits, or from logits that stay divided over ranks; or the whole
# logits themselves, where a request bends them or wants to know of them, which is then done outside of the graph.
Form = Literal["whole", "divided", "logits"]


@dataclass(frozen=True, slots=True)
class CapturedStep:
    """A step's graph, and the logits that it leaves where it does not draw: float32 [rows, vocab], see `borrowed`."""

    graph: ExecutableGraph
    logits: Tensor | None


class DecodeGraphs:
    """The graphs of one model, made as they are needed."""

    def __init__(
        self,
        model: Decoder,
        kv_cache: KVTensors,
        last_ids: Tensor,
        max_seqs: int,
        max_blocks: int,
        captures: Captures,
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
        staging = Staging(self._calls, RING, _STAGED)
        self._rows = DeviceRows(self._sizes[-1], max_blocks, last_ids, staging)
        self._query_start = torch.arange(self._sizes[-1] + 1, dtype=torch.int32, device=last_ids.device)
        self._fused = fused_decoder(model)
        self._pdl = isinstance(model.kernels, CudaKernels) and model.kernels.pdl
        self._steady = isinstance(model.kernels, CudaKernels) and model.kernels.deterministic
        self._captured: dict[tuple[int, Form], CapturedStep] = {}
        self._captures = captures
        self._ids = HostIds(self._sizes[-1], last_ids.device, self._calls)

    def describe(self) -> str:
        """Which form of a decode step is captured, in a few words."""
        if self._fused is None:
            return "plain steps"
        dependent = ", launched dependently" if self._fused.dependent else ""
        return f"fused steps up to {_FUSED_ROWS} rows{dependent}"

    def dispatch(self, chunks: list[Chunk]) -> GraphStep:
        """Queue one decode step for `chunks` behind whatever the device still does."""
        size, form = self._size(chunks), self._form(chunks)
        stream = torch.cuda.current_stream().cuda_stream
        step = self._ready(size, form)
        ordered = self._rows.upload(chunks)
        try:
            logprobs = self._launch(step, size, form, ordered, stream)
        except RuntimeError:
            self._rows.step_back(ordered)
            raise
        return GraphStep(ordered, self._ids, self._ids.note(stream), logprobs)

    def make_ready(self, chunks: list[Chunk]) -> None:
        """Capture what the step of these needs, if it has no graph yet."""
        self._ready(self._size(chunks), self._form(chunks))

    def _size(self, chunks: list[Chunk]) -> int:
        return next(size for size in self._sizes if size >= len(chunks))

    def _form(self, chunks: list[Chunk]) -> Form:
        """What the step of these ends with; every rank says the same."""
        sequences = [chunk.sequence for chunk in chunks]
        if not all(sequence.plain for sequence in sequences):
            return "logits"
        return "divided" if self._divided is not None and self._divided.takes(sequences) else "whole"

    def _ready(self, size: int, form: Form) -> CapturedStep | None:
        """A size's graph; `None` where there is none, and then its step can be launched uncaptured."""
        step = self._captured.get((size, form))
        if step is None and not self._eager:
            step = self._captures.attempt(f"{size} rows, {form}", lambda: self._capture(size, form))
        if step is None:
            with longer(MEASURING):
                self._tune(size)
        return step

    def _launch(
        self, step: CapturedStep | None, size: int, form: Form, chunks: list[Chunk], stream: int
    ) -> Logprobs | None:
        """Queue a step. What may fail comes before the rows move on."""
        if step is None:
            with longer(COMPILING):
                logits = self._step(size, form)
        else:
            self._calls.launch(step.graph.handle, stream)
            logits = step.logits
        if logits is None:
            return None
        with longer(COMPILING):
            return self._draw(logits, size, [chunk.sequence for chunk in chunks])

    def _draw(self, logits: Tensor, size: int, sequences: list[Sequence]) -> Logprobs | None:
        """The end of a step that ended with its logits; and what is told of them, on its way to the host."""
        rows, sampling = first_rows(self._rows.decode, self._rows.sampling, size)
        sampled = sample_adjusted(logits, sampling, sequences, steady=self._steady, pdl=self._pdl)
        logprobs = None if sampled.logprobs is None else sampled.logprobs.on_host()
        advance(rows, sampled.ids, sampled.finite, self._ids.told, pdl=self._pdl)
        return logprobs

    def draw(self, logits: Tensor, sequences: list[Sequence]) -> Sampled:
        """A token for each row of a step outside of graphs, by the kernels of those inside, which wait for nothing.

        A prompt's first token is launched before the tokens of the replies beside it: they would wait too.
        """
        with longer(COMPILING):
            return sample_newcomers(logits, sequences, steady=self._steady, pdl=self._pdl)

    def draw_divided(self, share: Tensor, sequences: list[Sequence]) -> Sampled:
        """As `draw`, from logits that stay divided over ranks: this one's part of them."""
        assert self._divided is not None
        with longer(COMPILING):
            rows = rows_of_newcomers(sequences, share.device)
            return Sampled(*self._divided.draw_rows(share, rows, pdl=self._pdl))

    def hand_back(self) -> None:
        """Before a step outside of graphs: what this knows of the running sequences becomes everybody's."""
        self._rows.hand_back()

    def uncaptured(self, form: Form) -> list[int]:
        """The sizes of a few chats side by side that have no such graph yet, and need no measurements of seconds for it."""
        few = [] if self._eager else [size for size in self._sizes if size <= _FUSED_ROWS]
        fused = self._fused
        return [
            size
            for size in few
            if (size, form) not in self._captured and (fused is None or fused.is_tuned(size))
        ]

    def prepare(self, form: Form) -> None:
        """Capture the smallest of `uncaptured`."""
        size = self.uncaptured(form)[0]
        self._captures.now(lambda: self._capture(size, form))

    def _capture(self, size: int, form: Form) -> CapturedStep:
        self._rows.hand_back()  # capturing runs steps: they must find nothing to do

        def once() -> None:  # kernels are compiled and tuned outside of the capture
            self._tune(size)
            if self._step(size, form) is None:
                self._ids.skip()

        with longer(MEASURING):
            run_aside(once, self._query_start.device)
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph, pool=self._captures.pool, capture_error_mode=capture_mode(self._model)):
            logits = self._step(size, form)
        step = CapturedStep(ExecutableGraph(graph), None if logits is None else borrowed(logits))
        self._captured[size, form] = step
        return step

    def _tune(self, size: int) -> None:
        """Measure this size's products once, where its step has any that are tuned."""
        if self._fused is not None and size <= _FUSED_ROWS and size not in self._tuned:
            self._fused.tune(size)
        self._tuned.add(size)

    def _step(self, size: int, form: Form) -> Tensor | None:
        """What is captured; returns the logits where it ends with them."""
        rows, sampling = first_rows(self._rows.decode, self._rows.sampling, size)
        share = self._logits(rows, size)
        if form == "logits":
            return self._model.whole_logits(share)
        if form == "divided" and self._divided is not None:
            ids, finite = self._divided.draw_rows(share, sampling, pdl=self._pdl)
        else:
            ids, finite = sample_rows(self._model.whole_logits(share), sampling, pdl=self._pdl)
        # Last: when a step fails for want of memory, its rows stand where they stood.
        advance(rows, ids, finite, self._ids.told, pdl=self._pdl)
        return None

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
