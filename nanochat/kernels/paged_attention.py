"""Attention over the paged cache in plain torch.

A sequence alone is one call, on a view of the cache where its blocks follow each other. Several that decode one
token each are one call together, gathered and padded, unless one is so long that the padding would cost more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.kernels.bundle import AttentionSpec
from nanochat.kernels.headway import in_its_time, made
from nanochat.kernels.layout import BLOCK_SIZE, AttentionLayout


@dataclass(slots=True)
class _Sequence:
    """Rows [row, row + count) of the step, over `context` cached positions that begin at slot `first`.

    Where the blocks are not in one run, `first` is -1 and `blocks` says which they are.
    """

    row: int
    count: int
    context: int
    first: int
    blocks: Tensor | None


class _Together:
    """The step's first `count` sequences, one query each, padded to the same number of blocks."""

    def __init__(self, sequences: list[_Sequence], tables: list[list[int]], device: torch.device) -> None:
        self.count = len(sequences)
        self._width = max(-(-sequence.context // BLOCK_SIZE) for sequence in sequences)
        padded = [(table + [0] * self._width)[: self._width] for table in tables]
        self._blocks = torch.tensor(padded, device=device).view(-1)
        self._positions = torch.arange(self._width * BLOCK_SIZE, device=device)
        self._contexts = torch.tensor([sequence.context for sequence in sequences], device=device)[:, None]
        hidden = (self._positions >= self._contexts).view(-1)
        self._hidden = hidden.nonzero().squeeze(1)  # rows of the gathered cache that lie past their context
        self._masks: dict[int, Tensor] = {}

    def mask(self, window: int) -> Tensor:
        """Which positions each query sees: bool [count, 1, 1, positions]."""
        if window not in self._masks:
            seen = self._positions < self._contexts
            if window:
                seen &= self._positions >= self._contexts - window
            self._masks[window] = seen[:, None, None]
        return self._masks[window]

    def gather(self, tensor: Tensor) -> Tensor:
        """[count, num_kv_heads, positions, head_dim] of one half of a layer's cache.

        Past a context there are zeros: what was never written may be NaN, and no weight of 0 undoes that.
        """
        rows = tensor.index_select(0, self._blocks).view(-1, *tensor.shape[2:])
        rows.index_fill_(0, self._hidden, 0.0)
        return rows.view(self.count, -1, *tensor.shape[2:]).transpose(1, 2)


def _together(sequences: list[_Sequence], tables: list[list[int]], device: torch.device) -> _Together | None:
    """The leading sequences that decode, if there are several of similar length."""
    count = next((i for i, sequence in enumerate(sequences) if sequence.count != 1), len(sequences))
    if count < 2:
        return None
    blocks = [-(-sequence.context // BLOCK_SIZE) for sequence in sequences[:count]]
    return (
        _Together(sequences[:count], tables[:count], device)
        if count * max(blocks) <= 2 * sum(blocks)
        else None
    )


class PagedPlan:
    """A step's sequences, looked at once for all layers."""

    def __init__(self, layout: AttentionLayout) -> None:
        device = layout.slots.device
        self.sequences: list[_Sequence] = []
        row = 0
        for count, context, table in zip(layout.query_lens, layout.contexts, layout.tables, strict=True):
            num_blocks = -(-context // BLOCK_SIZE)
            first = table[0]
            in_a_run = table[num_blocks - 1] - first == num_blocks - 1 and table[:num_blocks] == list(
                range(first, first + num_blocks)
            )
            blocks = None if in_a_run else torch.tensor(table[:num_blocks], device=device)
            self.sequences.append(
                _Sequence(row, count, context, first * BLOCK_SIZE if in_a_run else -1, blocks)
            )
            row += count
        self.together = _together(self.sequences, layout.tables, device)
        self.kept: Tensor | None = None  # rows that have a slot, where some do not
        self.slots = layout.slots
        if bool((layout.slots < 0).any()):
            self.kept = (layout.slots >= 0).nonzero().squeeze(1)
            self.slots = layout.slots[self.kept]
        self._masks: dict[tuple[int, int, int], Tensor] = {}

    def mask(self, sequence: _Sequence, start: int, window: int) -> Tensor:
        """Which of the positions [start, context) each row sees: bool [count, context - start]."""
        key = (sequence.row, start, window)
        if key not in self._masks:
            device = self.slots.device
            keys = torch.arange(start, sequence.context, device=device)
            queries = torch.arange(sequence.context - sequence.count, sequence.context, device=device)[
                :, None
            ]
            seen = keys <= queries
            self._masks[key] = seen & (keys > queries - window) if window else seen
        return self._masks[key]


def write_kv(k: Tensor, v: Tensor, cache: tuple[Tensor, Tensor], plan: PagedPlan) -> None:
    """Put keys and values [T, num_kv_heads, head_dim] into the step's slots."""
    if plan.kept is not None:
        k, v = k[plan.kept], v[plan.kept]
    for new, cached in ((k, cache[0]), (v, cache[1])):
        cached.view(-1, cached.shape[2], cached.shape[3]).index_copy_(0, plan.slots, new)


def attend(q: Tensor, spec: AttentionSpec, cache: tuple[Tensor, Tensor], plan: PagedPlan) -> Tensor:
    """Queries [T, num_heads, head_dim] over each sequence's cached positions -> [T, num_heads, head_dim]."""
    sequences = plan.sequences
    if len(sequences) == 1 and sequences[0].count == q.shape[0]:
        return _attend_one(q, spec, cache, plan, sequences[0])
    together = None if spec.soft_cap else plan.together
    if together is not None and together.count == q.shape[0]:
        return _attend_together(q, spec, cache, together)
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    if together is not None:
        out[: together.count] = _attend_together(q[: together.count], spec, cache, together)
        sequences = sequences[together.count :]
    for sequence in sequences:
        rows = slice(sequence.row, sequence.row + sequence.count)
        out[rows] = _attend_one(q[rows], spec, cache, plan, sequence)
        made()
    return out


def attend_row_by_row(
    q: Tensor, spec: AttentionSpec, cache: tuple[Tensor, Tensor], plan: PagedPlan
) -> Tensor:
    """As `attend`, each query by itself over just the positions that it sees: no other query changes its bits."""
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    for sequence in plan.sequences:
        for place in range(sequence.count):
            row, context = sequence.row + place, sequence.context - sequence.count + place + 1
            blocks = None if sequence.blocks is None else sequence.blocks[: -(-context // BLOCK_SIZE)]
            alone = _Sequence(row, 1, context, sequence.first, blocks)
            out[row] = _attend_one(q[row : row + 1].contiguous(), spec, cache, plan, alone)[0]
            made()
    return out


def _attend_together(
    q: Tensor, spec: AttentionSpec, cache: tuple[Tensor, Tensor], together: _Together
) -> Tensor:
    """One query for each sequence: q [count, num_heads, head_dim] -> the same shape."""
    k, v = (together.gather(tensor) for tensor in cache)
    grouped = q.view(together.count, spec.num_kv_heads, -1, spec.head_dim)
    out = F.scaled_dot_product_attention(grouped, k, v, together.mask(spec.window), scale=spec.scale)
    return out.reshape(q.shape)


def _attend_one(
    q: Tensor, spec: AttentionSpec, cache: tuple[Tensor, Tensor], plan: PagedPlan, sequence: _Sequence
) -> Tensor:
    """One sequence: q [count, num_heads, head_dim] -> the same shape."""
    count, heads, kv_heads, head_dim = sequence.count, spec.num_heads, spec.num_kv_heads, spec.head_dim
    start = max(sequence.context - count - spec.window + 1, 0) if spec.window else 0
    k, v = (_cached(tensor, sequence, start) for tensor in cache)
    products = 2 * count * (sequence.context - start) * heads * head_dim
    if spec.soft_cap:
        mask = None if count == 1 else plan.mask(sequence, start, spec.window)
        return in_its_time(products, lambda: _capped(q, k, v, spec, mask))
    if count == 1:
        # The heads of a group are rows of one product: keys and values are read once for all of them.
        out = F.scaled_dot_product_attention(
            q.view(1, kv_heads, heads // kv_heads, head_dim), k, v, scale=spec.scale
        )
        return out.view(1, heads, head_dim)
    q = q.transpose(0, 1)[None]
    grouped = heads != kv_heads
    mask = None  # the whole prompt, each token sees all before it
    if count != sequence.context or (spec.window and spec.window < count):
        mask = plan.mask(sequence, start, spec.window)
    out = in_its_time(
        products,
        lambda: F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=mask is None, scale=spec.scale, enable_gqa=grouped
        ),
    )
    return out[0].transpose(0, 1)


def _cached(tensor: Tensor, sequence: _Sequence, start: int) -> Tensor:
    """Positions [start, context) of a sequence: [1, num_kv_heads, context - start, head_dim]."""
    _, _, kv_heads, head_dim = tensor.shape
    if sequence.blocks is None:
        row = kv_heads * head_dim
        shape = (1, kv_heads, sequence.context - start, head_dim)
        return tensor.as_strided(
            shape, (0, head_dim, row, 1), tensor.storage_offset() + (sequence.first + start) * row
        )
    skipped = start // BLOCK_SIZE
    rows = tensor.index_select(0, sequence.blocks[skipped:]).view(-1, kv_heads, head_dim)
    return rows[start - skipped * BLOCK_SIZE : sequence.context - skipped * BLOCK_SIZE].transpose(0, 1)[None]


def _capped(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, mask: Tensor | None) -> Tensor:
    """With a soft cap on the scores, in float32."""
    count, heads, head_dim = q.shape
    kv_heads = spec.num_kv_heads
    rows = q.float().view(count, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3)
    scores = rows @ k[0].float().transpose(-1, -2)[:, None] * spec.scale
    scores = torch.tanh(scores / spec.soft_cap) * spec.soft_cap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    out = torch.softmax(scores, dim=-1) @ v[0].float()[:, None]
    return out.permute(2, 0, 1, 3).reshape(count, heads, head_dim).to(q.dtype)
