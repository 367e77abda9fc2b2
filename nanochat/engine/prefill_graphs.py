"""Short prefills of one sequence in captured graphs: a turn's first token does not wait for a thousand launches.

A chunk of up to 1,024 tokens takes the device a few milliseconds and Python ten to launch. Chunks are padded to the
next captured size; padding rows own no slot and belong to no sequence, so nothing reads what they compute. Without
a graph (`enforce_eager`, or no memory for it) the same padded step is launched anew each time, and gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nanochat.engine.captures import Captures, run_aside
from nanochat.engine.config import BLOCK_SIZE
from nanochat.engine.cuda_graphs import capture_mode
from nanochat.engine.device_copies import send
from nanochat.engine.scheduler import Chunk
from nanochat.engine.step import KVTensors
from nanochat.kernels.headway import COMPILING, MEASURING, longer
from nanochat.kernels.layout import AttentionLayout
from nanochat.kernels.stream_calls import ExecutableGraph, StreamCalls

if TYPE_CHECKING:
    from nanochat.engine.models.decoder import Decoder

SIZES = (16, 32, 64, 128, 256, 384, 512, 768, 1024)


@dataclass(frozen=True, slots=True)
class CapturedPrefill:
    """A graph and its inputs; without a graph, the inputs alone.

    Attributes:
        tokens: int64 [3, size]: ids, positions, slots.
        table: int32 [1, max_blocks].
        bounds: int32 [3]: 0, the chunk's length, the context's length with it.
    """

    tokens: Tensor
    table: Tensor
    bounds: Tensor
    graph: ExecutableGraph | None = None


class PrefillGraphs:
    """The graphs of one model, made as they are needed."""

    def __init__(
        self,
        model: Decoder,
        kv_cache: KVTensors,
        max_blocks: int,
        device: torch.device,
        captures: Captures,
        largest: int = SIZES[-1],
        *,
        eager: bool = False,
    ) -> None:
        """`largest`: tokens of a sequence in a step at most. `captures`: those of the decode steps too."""
        self._eager = eager
        self._largest = largest
        self._model = model
        self._kv_cache = kv_cache
        self._max_blocks = max_blocks
        self._device = device
        self._captured: dict[int, CapturedPrefill] = {}
        self._captures = captures
        # Of every graph, outside of the memory that all graphs share.
        self._results: tuple[Tensor, Tensor] | None = None
        self._calls = StreamCalls()

    def takes(self, chunks: list[Chunk]) -> bool:
        """Whether a step is one chunk that fits."""
        return len(chunks) == 1 and 1 < chunks[0].count <= SIZES[-1]

    def run(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """(last hidden state [1, H], this rank's part of its logits); good until the next run."""
        size = next(size for size in SIZES if size >= chunk.count)
        step = self._captured.get(size)
        if step is None and not self._eager:
            step = self._captures.attempt(f"a prompt of {size} tokens", lambda: self._capture(size))
        step = step or self._inputs(size)
        sequence, blocks = chunk.sequence, chunk.sequence.blocks
        positions = range(chunk.start, chunk.start + chunk.count)
        slots = [blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in positions]
        idle = size - chunk.count
        rows = [
            sequence.tokens[chunk.start : chunk.start + chunk.count] + [0] * idle,
            [*positions] + [0] * idle,
            slots + [-1] * idle,
        ]
        step.tokens.copy_(send(rows, torch.int64, self._device), non_blocking=True)
        step.table[0, : len(blocks)].copy_(send(blocks, torch.int32, self._device), non_blocking=True)
        bounds = [0, chunk.count, chunk.start + chunk.count]
        step.bounds.copy_(send(bounds, torch.int32, self._device), non_blocking=True)
        if step.graph is None or self._results is None:
            with longer(COMPILING):
                return self._step(step.tokens, step.table, step.bounds)
        self._calls.launch(step.graph.handle, torch.cuda.current_stream(self._device).cuda_stream)
        return self._results

    def whole(self, share: Tensor) -> Tensor:
        """All logits of a run, float32 [1, vocab]: every rank must ask."""
        return self._model.whole_logits(share)

    @property
    def uncaptured(self) -> list[int]:
        """The sizes that have no graph yet and that a step may need."""
        needed = 0 if self._eager else sum(size < self._largest for size in SIZES) + 1
        return [size for size in SIZES[:needed] if size not in self._captured]

    def prepare(self) -> None:
        """Capture the smallest of `uncaptured`."""
        size = self.uncaptured[0]
        self._captures.now(lambda: self._capture(size))

    def _inputs(self, size: int) -> CapturedPrefill:
        tokens = torch.zeros(3, size, dtype=torch.int64, device=self._device)
        tokens[2] = -1
        table = torch.zeros(1, self._max_blocks, dtype=torch.int32, device=self._device)
        bounds = torch.tensor([0, 1, 1], dtype=torch.int32, device=self._device)
        return CapturedPrefill(tokens, table, bounds)

    def _capture(self, size: int) -> CapturedPrefill:
        inputs = self._inputs(size)
        tokens, table, bounds = inputs.tokens, inputs.table, inputs.bounds

        def once() -> None:  # kernels are compiled outside of the capture
            made = self._step(tokens, table, bounds)
            if self._results is None:
                self._results = torch.empty_like(made[0]), torch.empty_like(made[1])

        with longer(MEASURING):
            run_aside(once, self._device)
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph, pool=self._captures.pool, capture_error_mode=capture_mode(self._model)):
            self._step(tokens, table, bounds, self._results)
        step = self._captured[size] = CapturedPrefill(tokens, table, bounds, ExecutableGraph(graph))
        return step

    def _step(
        self, tokens: Tensor, table: Tensor, bounds: Tensor, results: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(last hidden state, this rank's part of its logits): in `results`, or in new memory."""
        size, longest = tokens.shape[1], self._max_blocks * BLOCK_SIZE
        layout = AttentionLayout(
            slots=tokens[2],
            block_tables=table,
            query_start=bounds[:2],
            context_lens=bounds[2:],
            query_lens=[size],  # what the launch must be large enough for
            contexts=[longest],
            tables=[],
            max_context=longest,
            captured=True,
        )
        hidden = self._model.forward(tokens[0], tokens[1], layout, self._kv_cache)
        last = hidden.index_select(0, bounds[1:2].long() - 1)
        made = last, self._model.share_of_logits(last)
        for kept, new in zip(results or (), made, strict=results is not None):
            kept.copy_(new)
        return results or made
