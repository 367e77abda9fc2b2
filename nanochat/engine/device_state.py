"""What decode steps read and write on the device without asking the host: a row for each seat.

A seat is a running sequence's row. One more row, the last, is the padding's: its table is never written
to and its slot is -1. The host keeps a mirror of what it told the device, so that a step uploads only what
changed: a new occupant's parameters, the blocks that were added to a table since.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanochat.engine.config import BLOCK_SIZE
from nanochat.engine.scheduler import Chunk
from nanochat.engine.sequence import Sequence
from nanochat.kernels.layout import AttentionLayout
from nanochat.kernels.triton_sampling import SamplingRows


class DeviceState:
    """Tensors of `seats + 1` rows on the device, and the host's mirror of them."""

    def __init__(self, seats: int, max_blocks: int, last_ids: Tensor) -> None:
        device, rows = last_ids.device, seats + 1
        self.padding = seats
        self.last_ids = last_ids
        self.positions = torch.zeros(rows, dtype=torch.int64, device=device)
        self.tables = torch.zeros(rows, max_blocks, dtype=torch.int32, device=device)
        self.parameters = SamplingRows(
            temperature=torch.zeros(rows, dtype=torch.float32, device=device),
            top_k=torch.zeros(rows, dtype=torch.int32, device=device),
            top_p=torch.ones(rows, dtype=torch.float32, device=device),
            min_p=torch.zeros(rows, dtype=torch.float32, device=device),
            seed=torch.zeros(rows, dtype=torch.int64, device=device),
            counter=torch.zeros(rows, dtype=torch.int64, device=device),
        )
        self._occupants: list[Sequence | None] = [None] * rows
        self._position_of = [0] * rows
        self._table_of: list[list[int]] = [[] for _ in range(rows)]

    def upload(self, chunks: list[Chunk]) -> None:
        """Bring the device up to date for a step that decodes `chunks`; what it knows already is not sent."""
        moved: list[Chunk] = []
        blocks: list[tuple[int, int]] = []
        width = self.tables.shape[1]
        for chunk in chunks:
            sequence, seat = chunk.sequence, chunk.sequence.seat
            if self._occupants[seat] is not sequence:
                self._table_of[seat] = []
            if self._occupants[seat] is not sequence or self._position_of[seat] != chunk.start:
                moved.append(chunk)
            known = self._table_of[seat]
            if len(known) != len(sequence.blocks) or sequence.table_changed:
                sequence.table_changed = False
                for i, block in enumerate(sequence.blocks):
                    if i >= len(known) or known[i] != block:
                        blocks.append((seat * width + i, block))
                self._table_of[seat] = list(sequence.blocks)
            self._occupants[seat] = sequence
            self._position_of[seat] = chunk.start + 1
        if blocks:
            at, values = self._send(blocks, torch.int64).T
            self.tables.view(-1).index_copy_(0, at, values.to(torch.int32))
        if moved:
            self._upload_rows(moved)

    def _upload_rows(self, chunks: list[Chunk]) -> None:
        params = [chunk.sequence.params for chunk in chunks]
        whole = [
            (c.sequence.seat, c.start, c.sequence.counter, _signed(c.sequence.seed), p.top_k or 0)
            for c, p in zip(chunks, params, strict=True)
        ]
        seats, positions, counters, seeds, top_k = self._send(whole, torch.int64).T
        real = [(p.temperature or 0.0, 1.0 if p.top_p is None else p.top_p, p.min_p or 0.0) for p in params]
        temperature, top_p, min_p = self._send(real, torch.float32).T
        to = self.parameters
        for tensor, values in (
            (self.positions, positions), (to.counter, counters), (to.seed, seeds), (to.top_k, top_k.to(torch.int32)),
            (to.temperature, temperature), (to.top_p, top_p), (to.min_p, min_p),
        ):  # fmt: skip
            tensor.index_copy_(0, seats, values)
        known = [
            (c.sequence.seat, c.sequence.tokens[c.start]) for c in chunks if c.start < len(c.sequence.tokens)
        ]  # the others' last tokens were sampled on the device, and only it knows them yet
        if known:
            at, ids = self._send(known, torch.int64).T
            self.last_ids.index_copy_(0, at, ids)

    def _send(self, values: list[tuple[int, ...]] | list[tuple[float, ...]], dtype: torch.dtype) -> Tensor:
        return send(values, dtype, self.positions.device)

    def layout(self, seats: Tensor, max_context: int) -> tuple[Tensor, Tensor, AttentionLayout]:
        """(ids, positions, layout) of a step that decodes one token for each of `seats`, read on the device.

        Args:
            seats: int64 [batch].
            max_context: no sequence of the step is longer than this.
        """
        positions, real = self.positions[seats], seats != self.padding
        tables = self.tables[seats, : -(-max_context // BLOCK_SIZE)]
        block = tables.gather(1, (positions // BLOCK_SIZE)[:, None])[:, 0].long()
        slots = torch.where(real, block * BLOCK_SIZE + positions % BLOCK_SIZE, -1)
        layout = AttentionLayout(
            slots=slots,
            block_tables=tables,
            query_start=torch.arange(seats.shape[0] + 1, dtype=torch.int32, device=seats.device),
            context_lens=torch.where(real, positions + 1, 0).to(torch.int32),
            query_lens=[],
            contexts=[],
            tables=[],
            max_query_len=1,
            max_context=max_context,
        )
        return self.last_ids[seats], positions, layout

    def sampling(self, seats: Tensor) -> SamplingRows:
        """The sampling parameters of `seats`, as they are now."""
        rows = self.parameters
        return SamplingRows(
            rows.temperature[seats], rows.top_k[seats], rows.top_p[seats], rows.min_p[seats],
            rows.seed[seats], rows.counter[seats],
        )  # fmt: skip

    def advance(self, seats: Tensor, ids: Tensor) -> None:
        """Take in the sampled ids: the next step finds them, its positions and its counters here."""
        self.last_ids.index_copy_(0, seats, ids)
        real = (seats != self.padding).long()
        self.positions.index_add_(0, seats, real)
        self.parameters.counter.index_add_(0, seats, real)


def send(values: object, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Host values to the device without waiting for it."""
    staged = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return staged.to(device, non_blocking=True)


def _signed(seed: int) -> int:
    return seed - 2**64 if seed >= 2**63 else seed
