"""What decode steps read and write on the device without asking the host: one row for each sequence of the batch.

The batch owns rows 0 to n - 1; rows beyond it have context 0 and do nothing. A step takes its ids, positions and
slots from here and leaves the next ones here, so the host can queue many steps before it reads the first. The host
keeps a mirror of what it told the device and uploads only what changed: a newcomer's row, a table's new blocks, a
batch that closed up because somebody left.

Memory may run out in any of it, and the step is then tried again with fewer: what a change needs is made before anything
is written, so that it happens as a whole or not at all.

A table must reach one block further than the position being computed, since a step finds the next position's slot
(`Scheduler` allocates so, see `lookahead`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanochat.engine.config import BLOCK_SIZE
from nanochat.engine.device_copies import send
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.scheduler import Chunk
from nanochat.engine.sequence import Sequence
from nanochat.kernels.stream_calls import Staging
from nanochat.kernels.triton_sampling import SamplingRows
from nanochat.kernels.triton_step import DecodeRows

MAX_STOPS = 8  # ids that end a row on the device; further ones are only seen by the host
_STAGED_ROWS = 2


class DeviceRows:
    """The tensors, and the host's mirror of them."""

    def __init__(self, num_rows: int, max_blocks: int, last_ids: Tensor, staging: Staging) -> None:
        self._staging = staging
        device = last_ids.device
        self._last_ids = last_ids
        counter = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.decode = DecodeRows(
            ids=torch.zeros(num_rows, dtype=torch.int64, device=device),
            positions=torch.zeros(num_rows, dtype=torch.int64, device=device),
            context_lens=torch.zeros(num_rows, dtype=torch.int32, device=device),
            slots=torch.full((num_rows,), -1, dtype=torch.int64, device=device),
            block_tables=torch.zeros(num_rows, max_blocks, dtype=torch.int32, device=device),
            counter=counter,
            stop_ids=torch.full((num_rows, MAX_STOPS), -1, dtype=torch.int32, device=device),
        )
        self.sampling = SamplingRows(
            temperature=torch.zeros(num_rows, dtype=torch.float32, device=device),
            top_k=torch.zeros(num_rows, dtype=torch.int32, device=device),
            top_p=torch.ones(num_rows, dtype=torch.float32, device=device),
            min_p=torch.zeros(num_rows, dtype=torch.float32, device=device),
            seed=torch.zeros(num_rows, dtype=torch.int64, device=device),
            counter=counter,
        )
        self._owners: list[Sequence] = []
        self._positions: dict[Sequence, int] = {}  # the position that the device computes next
        self._tables: dict[Sequence, list[int]] = {}

    def upload(self, chunks: list[Chunk]) -> list[Chunk]:
        """Make rows 0 to n - 1 those of `chunks`, ready for the step that decodes them; returns them in row order."""
        chunk_of = {chunk.sequence: chunk for chunk in chunks}
        kept = [
            row
            for row, sequence in enumerate(self._owners)
            if sequence in chunk_of and self._positions[sequence] == chunk_of[sequence].start
        ]
        stayed = {self._owners[row] for row in kept}
        fresh = [chunk for chunk in chunks if chunk.sequence not in stayed]
        if len(kept) < len(self._owners):
            self._close_up(kept)
        if fresh:
            self._settle(fresh)
        self._extend_tables()
        ordered = [chunk_of[sequence] for sequence in self._owners]
        self._positions = {chunk.sequence: chunk.start + 1 for chunk in ordered}
        return ordered

    def step_back(self, chunks: list[Chunk]) -> None:
        """The step for which `upload` returned `chunks` did not run: the device stands where it stood."""
        self._positions = {chunk.sequence: chunk.start for chunk in chunks}

    def hand_back(self) -> None:
        """Put the rows' ids where steps outside of graphs look for them, and forget the batch."""
        if self._owners:
            device = self._last_ids.device
            known = [(row, sequence.seat) for row, sequence in enumerate(self._owners) if sequence.seat >= 0]
            if known:
                rows, seats = send(known, torch.int64, device).T
                self._last_ids.index_copy_(0, seats, self.decode.ids[rows])
            self.decode.context_lens.zero_()
            self.decode.slots.fill_(-1)
        self._owners, self._positions, self._tables = [], {}, {}

    def _close_up(self, kept: list[int]) -> None:
        """Move the rows `kept` to the front and empty the others; what moves never visits the host."""
        before = len(self._owners)
        if kept != list(range(len(kept))):
            at = send(kept, torch.int64, self._last_ids.device)
            tensors = (*_tensors(self.decode), *_tensors(self.sampling)[:-1])
            for tensor, moved in zip(tensors, [tensor[at] for tensor in tensors], strict=True):
                tensor[: len(kept)] = moved
        self.decode.context_lens[len(kept) : before] = 0
        self.decode.slots[len(kept) : before] = -1
        self._owners = [self._owners[row] for row in kept]
        self._tables = {sequence: self._tables[sequence] for sequence in self._owners}

    def _settle(self, chunks: list[Chunk]) -> None:
        """Write the rows of newcomers behind the others."""
        device, first = self._last_ids.device, len(self._owners)
        whole: list[tuple[int, ...]] = []
        real: list[tuple[float, ...]] = []
        for chunk in chunks:
            sequence, params, start = chunk.sequence, chunk.sequence.params, chunk.start
            slot = sequence.blocks[start // BLOCK_SIZE] * BLOCK_SIZE + start % BLOCK_SIZE
            stops = [*sequence.eos_ids, *params.stop_token_ids][:MAX_STOPS]
            known = sequence.tokens[start] if start < len(sequence.tokens) else -1
            head = (
                known,
                sequence.seat,
                start,
                slot,
                sequence.counter,
                signed(sequence.seed),
                params.top_k or 0,
            )
            whole.append((*head, *stops, *[-1] * (MAX_STOPS - len(stops))))
            real.append(shares(params))
        numbers = send(whole, torch.int64, device)
        known, seats, positions, slots, counters, seeds, top_k = numbers[:, :7].unbind(1)
        temperature, top_p, min_p = send(real, torch.float32, device).unbind(1)
        to, draw = self.decode, self.sampling
        news = [
            (to.ids, torch.where(known >= 0, known, self._last_ids[seats])),
            (to.positions, positions), (to.context_lens, (positions + 1).int()), (to.slots, slots),
            (to.counter, counters), (to.stop_ids, numbers[:, 7:].int()),
            (draw.seed, seeds), (draw.top_k, top_k.int()),
            (draw.temperature, temperature), (draw.top_p, top_p), (draw.min_p, min_p),
        ]  # fmt: skip
        for tensor, values in news:
            tensor[first : first + len(chunks)] = values
        for chunk in chunks:
            self._owners.append(chunk.sequence)
            self._positions[chunk.sequence], self._tables[chunk.sequence] = chunk.start, []

    def _extend_tables(self) -> None:
        changed: list[tuple[int, int]] = []  # (row, the first of its blocks that the device does not know)
        seen: list[Sequence] = []
        for row, sequence in enumerate(self._owners):
            known, blocks = self._tables[sequence], sequence.blocks
            if len(known) == len(blocks) and not sequence.table_changed:
                continue
            same = len(known)
            if sequence.table_changed or blocks[:same] != known:
                same = next((i for i, (a, b) in enumerate(zip(known, blocks, strict=False)) if a != b), same)
            seen.append(sequence)
            if same < len(blocks):
                changed.append((row, same))
        few = len(changed) <= _STAGED_ROWS  # of many rows one copy and one kernel cost the device less
        if few and sum(len(self._owners[row].blocks) - same for row, same in changed) <= self._staging.most:
            self._stage(changed)
        else:
            self._send_tables(changed)
        for sequence in seen:
            sequence.table_changed = False
            self._tables[sequence] = list(sequence.blocks)

    def _stage(self, changed: list[tuple[int, int]]) -> None:
        """A few new blocks, as nearly every step has them."""
        table = self.decode.block_tables
        start, width = table.data_ptr(), table.shape[1]
        stream = torch.cuda.current_stream(table.device).cuda_stream if changed else 0
        for row, first in changed:
            self._staging.send(self._owners[row].blocks[first:], start + 4 * (row * width + first), stream)

    def _send_tables(self, changed: list[tuple[int, int]]) -> None:
        width = self.decode.block_tables.shape[1]
        news = [
            (row * width + i, self._owners[row].blocks[i])
            for row, first in changed
            for i in range(first, len(self._owners[row].blocks))
        ]
        at, blocks = send(news, torch.int64, self._last_ids.device).T
        self.decode.block_tables.view(-1).index_copy_(0, at, blocks.int())


def first_rows(rows: DecodeRows, sampling: SamplingRows, count: int) -> tuple[DecodeRows, SamplingRows]:
    """Views of the first `count` rows."""
    return (
        DecodeRows(*(tensor[:count] for tensor in _tensors(rows))),
        SamplingRows(*(tensor[:count] for tensor in _tensors(sampling))),
    )


def shares(params: SamplingParams) -> tuple[float, float, float]:
    """Temperature, top-p and min-p as `SamplingRows` has them."""
    return params.temperature or 0.0, 1.0 if params.top_p is None else params.top_p, params.min_p or 0.0


def signed(seed: int) -> int:
    """A 64-bit word as torch's int64 holds it."""
    return seed - 2**64 if seed >= 2**63 else seed


def _tensors(rows: DecodeRows | SamplingRows) -> list[Tensor]:
    return [getattr(rows, name) for name in rows.__slots__]
