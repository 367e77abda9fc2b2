"""ModelRunner: a step's chunks -> tensors -> the model -> sampled ids."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

from nanochat.engine.config import BLOCK_SIZE, EngineConfig
from nanochat.engine.device_copies import send_array, to_device
from nanochat.engine.sampler import Sampled, sample
from nanochat.engine.scheduler import Chunk
from nanochat.engine.steady_sampler import sample_steadily
from nanochat.engine.step import EagerStep, KVTensors, PendingStep, StepInParts
from nanochat.kernels.headway import COMPILING, longer
from nanochat.kernels.layout import AttentionLayout

if TYPE_CHECKING:
    from nanochat.engine.cuda_graphs import DecodeGraphs
    from nanochat.engine.models import Model
    from nanochat.engine.models.decoder import Decoder
    from nanochat.engine.parallel.divided_sampler import DividedSampler
    from nanochat.engine.prefill_graphs import PrefillGraphs
    from nanochat.engine.sequence import Sequence


class ModelRunner:
    """Owns the model and the KV tensors, and turns chunks into tokens."""

    def __init__(
        self,
        model: Model,
        kv_cache: KVTensors,
        config: EngineConfig,
        device: torch.device,
        max_model_len: int,
        samples: bool = True,
        divided: DividedSampler | None = None,
    ) -> None:
        """A model and its memory.

        Args:
            samples: False on a rank that computes for another one, which alone has the logits.
            divided: what draws tokens from logits that stay divided, where that can be done.
        """
        self.model = model
        self._divided = divided
        self.samples = samples
        self.kv_cache = kv_cache
        self.config = config
        self.device = device
        # The token that each seat sampled last: where the next step finds it before the host has read it.
        self._last_ids = torch.zeros(config.max_num_seqs, dtype=torch.int64, device=device)
        self._graphs: DecodeGraphs | None = None
        self._prefills: PrefillGraphs | None = None
        if device.type == "cuda" and _capturable(model):
            from nanochat.engine.captures import Captures
            from nanochat.engine.cuda_graphs import DecodeGraphs
            from nanochat.engine.prefill_graphs import PrefillGraphs

            max_blocks = -(-max_model_len // BLOCK_SIZE)
            eager = config.enforce_eager
            captures = Captures(alone=model.reduce is None)
            self._graphs = DecodeGraphs(
                model, kv_cache, self._last_ids, config.max_num_seqs, max_blocks, captures, eager=eager, divided=divided,
            )  # fmt: skip
            largest = min(config.max_num_batched_tokens, max_model_len)
            self._prefills = PrefillGraphs(
                model, kv_cache, max_blocks, device, captures, largest, eager=eager
            )

    def describe(self, dtype: torch.dtype) -> str:
        """What computes the model, in a few words: for reports."""
        kernels = getattr(self.model, "kernels", None)
        words = kernels.describe(dtype) if kernels is not None else "torch"
        if self._graphs is not None:
            captured = "no CUDA graphs" if self.config.enforce_eager else "CUDA graphs"
            words += f", {captured} ({self._graphs.describe()})"
        return words

    @property
    def weight_itemsize(self) -> float | None:
        """Bytes of a weight as a decode step reads it, where that is not what the dtype says."""
        return getattr(getattr(self.model, "kernels", None), "weight_itemsize", None)

    @property
    def unprepared(self) -> bool:
        """Whether `prepare` has something to do."""
        return self._next_capture() is not None

    @torch.inference_mode()
    def prepare(self) -> None:
        """Capture one of the graphs that a chat will ask for."""
        capture = self._next_capture()
        if capture is not None:
            capture()

    def _next_capture(self) -> Callable[[], None] | None:
        """A reply's own graphs come first, then the prompts'; then replies' that end with logits, since some models name
        penalties among their defaults. Where memory ends there, nothing that every chat asks for is missing."""
        graphs, prefills = self._graphs, self._prefills
        if graphs is None or prefills is None:
            return None
        if graphs.uncaptured("whole"):
            return partial(graphs.prepare, "whole")
        if prefills.uncaptured:
            return prefills.prepare
        return partial(graphs.prepare, "logits") if graphs.uncaptured("logits") else None

    @torch.inference_mode()
    def dispatch(self, chunks: list[Chunk]) -> PendingStep:
        """Run one step over `chunks`. Their sequences' blocks must cover every position."""
        if self._graphs is not None and self._prefills is not None:
            decodes, others = _parted(chunks)
            if not others:
                return self._graphs.dispatch(decodes)
            if decodes and self._prefills.takes(others):
                # Two replays, where one batch is a thousand launches. The prompt first: when memory runs out in it, no
                # reply has moved on that would have to go back. A capture looks for the rows as they are before it.
                self._graphs.make_ready(decodes)
                prefill = self._prefill(self._prefills, others)
                return StepInParts([self._graphs.dispatch(decodes), prefill])
            self._graphs.hand_back()  # also where nobody decodes: who was preempted must not find its row again
            if self._prefills.takes(others):
                return self._prefill(self._prefills, others)
        with longer(COMPILING if self.device.type == "cuda" else 0.0):
            return self._run(chunks)

    def _prefill(self, prefills: PrefillGraphs, chunks: list[Chunk]) -> EagerStep:
        hidden, share = prefills.run(chunks[0])
        healthy = torch.isfinite(hidden.float().sum(dim=-1))
        if not chunks[0].samples:
            return self._finish(chunks, healthy, None)
        if self._divided is not None and self._divided.takes([chunks[0].sequence]):
            return self._keep(chunks, healthy, self._draw_divided(share, [chunks[0].sequence]))
        return self._finish(chunks, healthy, prefills.whole(share))

    def _run(self, chunks: list[Chunk]) -> EagerStep:
        """One step over any chunks, operation by operation."""
        layout, positions = lay_out(chunks, self.device)
        hidden = self.model.forward(self._token_ids(chunks), positions, layout, self.kv_cache)
        last = hidden[(layout.query_start[1:] - 1).long()]
        healthy = torch.isfinite(last.float().sum(dim=-1))
        rows = [row for row, chunk in enumerate(chunks) if chunk.samples]
        if not rows:
            return self._finish(chunks, healthy, None)
        if len(rows) < len(chunks):
            last = last[to_device(torch.tensor(rows), self.device)]
        sequences = [chunk.sequence for chunk in chunks if chunk.samples]
        if self._divided is not None and self._divided.takes(sequences):
            return self._keep(chunks, healthy, self._draw_divided(self._divided.share_of(last), sequences))
        return self._finish(chunks, healthy, self.model.logits(last))

    def _draw_divided(self, share: Tensor, sequences: list[Sequence]) -> Sampled | None:
        """From logits of which this rank has a part; None on a rank that does not get to know the tokens."""
        if self._graphs is not None:
            return self._graphs.draw_divided(share, sequences)
        assert self._divided is not None
        return self._divided.draw(share, sequences)

    def _finish(self, chunks: list[Chunk], healthy: Tensor, logits: Tensor | None) -> EagerStep:
        """Sample the chunks that do; `logits` has a row for each of them."""
        if logits is None or not self.samples:
            return self._keep(chunks, healthy, None)
        sequences = [chunk.sequence for chunk in chunks if chunk.samples]
        if self._graphs is not None:
            return self._keep(chunks, healthy, self._graphs.draw(logits, sequences))
        draw = sample_steadily if self.config.deterministic else sample
        return self._keep(chunks, healthy, draw(logits, sequences))

    def _keep(self, chunks: list[Chunk], healthy: Tensor, sampled: Sampled | None) -> EagerStep:
        """Leave what was sampled where the next step finds it."""
        if sampled is None:
            return EagerStep(chunks, healthy, None)
        sequences = [chunk.sequence for chunk in chunks if chunk.samples]
        seats = to_device(torch.tensor([sequence.seat for sequence in sequences]), self.device)
        step = EagerStep(chunks, healthy, sampled)
        self._last_ids.index_copy_(
            0, seats, sampled.ids
        )  # last: a step that fails is done again from what was there
        return step

    def _token_ids(self, chunks: list[Chunk]) -> Tensor:
        ids = array("q")
        unread: list[tuple[int, int]] = []  # (row, seat) of tokens that only the device knows yet
        for chunk in chunks:
            if chunk.start >= len(chunk.sequence.tokens):
                unread.append((len(ids), chunk.sequence.seat))
                ids.append(0)
            else:
                ids.extend(chunk.sequence.tokens[chunk.start : chunk.start + chunk.count])
        tokens = send_array(ids, self.device)
        if unread:
            rows, seats = to_device(torch.tensor(unread), self.device).T
            tokens.index_copy_(0, rows, self._last_ids[seats])
        return tokens

    def close(self) -> None:
        """Drop the tensors."""
        self.kv_cache = []
        self._graphs = self._prefills = self._divided = None
        del self.model


def _capturable(model: Model) -> TypeGuard[Decoder]:
    """Whether a step of the model asks nothing of the host: a native decoder on Triton's kernels, dense or of experts."""
    from nanochat.engine.models.decoder import Decoder
    from nanochat.kernels.cuda import CudaKernels

    return isinstance(model, Decoder) and isinstance(model.kernels, CudaKernels)


def _parted(chunks: list[Chunk]) -> tuple[list[Chunk], list[Chunk]]:
    """Those that are one decoded token, and the others."""
    decodes: list[Chunk] = []
    others: list[Chunk] = []
    for chunk in chunks:
        one = chunk.count == 1 and chunk.samples and chunk.start >= len(chunk.sequence.prompt)
        (decodes if one else others).append(chunk)
    return decodes, others


def lay_out(chunks: list[Chunk], device: torch.device) -> tuple[AttentionLayout, Tensor]:
    """The attention layout of a step, and the position of each token (int64 [num_tokens])."""
    contexts = [chunk.start + chunk.count for chunk in chunks]
    tables = [
        chunk.sequence.blocks[: -(-context // BLOCK_SIZE)]
        for chunk, context in zip(chunks, contexts, strict=True)
    ]
    # Not in torch: for so few numbers its threads take longer to wake up than to count.
    positions, slots, starts = array("q"), array("q"), array("i", [0])
    for chunk, context, table in zip(chunks, contexts, tables, strict=True):
        starts.append(starts[-1] + chunk.count)
        positions.extend(range(chunk.start, context))
        for i in range(chunk.start // BLOCK_SIZE, len(table)):
            first, last = max(chunk.start - i * BLOCK_SIZE, 0), min(context - i * BLOCK_SIZE, BLOCK_SIZE)
            slots.extend(range(table[i] * BLOCK_SIZE + first, table[i] * BLOCK_SIZE + last))
    width = max(len(table) for table in tables)
    padded = array("i")
    for table in tables:
        padded.extend(table)
        padded.extend(repeat(0, width - len(table)))
    layout = AttentionLayout(
        slots=send_array(slots, device),
        block_tables=send_array(padded, device).view(-1, width),
        query_start=send_array(starts, device),
        context_lens=send_array(array("i", contexts), device),
        query_lens=[chunk.count for chunk in chunks],
        contexts=contexts,
        tables=tables,
        max_context=max(contexts),
    )
    return layout, send_array(positions, device)
