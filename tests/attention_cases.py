"""Batches of paged attention with their answers, for the interpreter and the GPU alike.

Whatever a kernel has no business reading is poisoned: unused blocks and slots hold NaN. So do outputs, where a test asks for
`poisoned_memory`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat.kernels.layout import AttentionLayout

BLOCK_SIZE = 16


@dataclass
class Batch:
    """A ragged batch over a paged cache. `slots` are where the last `query_len` tokens of each sequence live."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    block_tables: Tensor
    query_start: Tensor
    context_lens: Tensor
    slots: Tensor
    positions: Tensor
    query_lens: list[int]
    contexts: list[int]
    num_heads: int

    @property
    def scale(self) -> float:
        return self.k_cache.shape[3] ** -0.5

    @property
    def layout(self) -> AttentionLayout:
        """How it is told to kernels."""
        return AttentionLayout(
            slots=self.slots, block_tables=self.block_tables, query_start=self.query_start,
            context_lens=self.context_lens, query_lens=self.query_lens, contexts=self.contexts, tables=[],
            max_context=max(self.contexts),
        )  # fmt: skip

    def keys(self, seq: int, cache: Tensor) -> Tensor:
        """[context, kv_heads, head_dim] in float32, gathered through the block table."""
        position = torch.arange(self.contexts[seq], device=cache.device)
        blocks = self.block_tables[seq, position // BLOCK_SIZE].long()
        return cache[blocks, position % BLOCK_SIZE].float()

    def expected(
        self, *, window: int | None = None, soft_cap: float | None = None, q: Tensor | None = None
    ) -> Tensor:
        """Dense attention in float32 (float64 sums), row by row of the batch; zeros for a padded sequence."""
        q = self.q if q is None else q
        head_dim, kv_heads = self.k_cache.shape[3], self.k_cache.shape[2]
        result = torch.zeros(q.shape[0], self.num_heads, head_dim, dtype=torch.float32, device=q.device)
        for seq, (count, context) in enumerate(zip(self.query_lens, self.contexts, strict=True)):
            if not count or not context:
                continue
            start = int(self.query_start[seq])
            k, v = self.keys(seq, self.k_cache), self.keys(seq, self.v_cache)
            rows = q[start : start + count].float().view(count, kv_heads, -1, head_dim)
            scores = torch.einsum("qhgd,khd->hgqk", rows.double(), k.double()) * self.scale
            if soft_cap is not None:
                scores = soft_cap * torch.tanh(scores / soft_cap)
            row = torch.arange(context - count, context, device=q.device)[:, None]
            column = torch.arange(context, device=q.device)[None]
            hidden = column > row
            if window is not None:
                hidden = hidden | (column <= row - window)
            weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
            mixed = torch.einsum("hgqk,khd->qhgd", weights, v.double())
            result[start : start + count] = mixed.reshape(count, self.num_heads, head_dim).float()
        return result.view(q.shape[0], -1)


def make_batch(
    query_lens: list[int], contexts: list[int], *, heads: int, kv_heads: int, head_dim: int,
    dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0, new_keys: bool = True,
) -> Batch:  # fmt: skip
    """A batch with random queries and cached keys; with `new_keys` false, the last tokens' slots are NaN too."""
    generator = torch.Generator().manual_seed(seed)
    needed = [-(-context // BLOCK_SIZE) for context in contexts]
    order = (torch.randperm(sum(needed) + 3, generator=generator) + 1).tolist()
    width = max(*needed, 1) + 1
    tables = torch.full((len(contexts), width), 0, dtype=torch.int32)
    cache = torch.full((sum(needed) + 4, BLOCK_SIZE, kv_heads, head_dim), float("nan"))
    k_cache, v_cache = cache.clone(), cache.clone()
    slots: list[int] = []
    positions: list[int] = []
    for seq, (count, context) in enumerate(zip(query_lens, contexts, strict=True)):
        blocks = [order.pop() for _ in range(needed[seq])]
        tables[seq, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        own = [blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in range(context)]
        filled = own if new_keys else own[: context - count]
        for filling in (k_cache, v_cache):
            filling.view(-1, kv_heads, head_dim)[filled] = torch.randn(
                len(filled), kv_heads, head_dim, generator=generator
            )
        slots += own[context - count :] if context else [-1] * count
        positions += range(context - count, context) if context else [0] * count
    tokens = sum(query_lens)
    starts = torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32)
    return Batch(
        q=torch.randn(tokens, heads * head_dim, generator=generator).to(dtype).to(device),
        k_cache=k_cache.to(dtype).to(device), v_cache=v_cache.to(dtype).to(device), block_tables=tables.to(device),
        query_start=starts.to(device), context_lens=torch.tensor(contexts, dtype=torch.int32).to(device),
        slots=torch.tensor(slots, dtype=torch.int64).to(device),
        positions=torch.tensor(positions, dtype=torch.int64).to(device),
        query_lens=query_lens, contexts=contexts, num_heads=heads,
    )  # fmt: skip


def relative_error(out: Tensor, expected: Tensor) -> float:
    """`|out - expected| / |expected|` in float64; NaN if anything is NaN."""
    return float((out.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30))


def rotated(x: Tensor, cos: Tensor, sin: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """Heads [T, heads, head_dim] in float32: normed with `weight`, then turned by cos and sin [T, rotary / 2]."""
    x = x.float()
    if weight is not None:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight.float()
    half = cos.shape[1]
    cos, sin = cos[:, None].float(), sin[:, None].float()
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    first, second = turned[..., :half], turned[..., half:]
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    return torch.cat((turned, rest), -1)


def angles(tokens: int, rotary: int, device: str = "cpu", seed: int = 1) -> tuple[Tensor, Tensor]:
    """Cosines and sines of random angles, float32 [tokens, rotary / 2] each."""
    angle = torch.randn(tokens, rotary // 2, generator=torch.Generator().manual_seed(seed)) * 10
    return angle.cos().to(device), angle.sin().to(device)


def project(batch: Batch, seed: int = 2) -> Tensor:
    """Random rows of a query-key-value projection for a batch: [T, (heads + 2 * kv_heads) * head_dim]."""
    kv_heads, head_dim = batch.k_cache.shape[2:]
    width = (batch.num_heads + 2 * kv_heads) * head_dim
    rows = torch.randn(batch.q.shape[0], width, generator=torch.Generator().manual_seed(seed))
    return rows.to(batch.q.dtype).to(batch.q.device)


def expect_written(
    batch: Batch, before: tuple[Tensor, Tensor], k: Tensor, v: Tensor, tolerance: float
) -> None:
    """Assert that the new tokens' slots hold k and v [T, kv_heads, head_dim], and that nothing else changed."""
    kept = batch.slots >= 0
    for cache, old, new in ((batch.k_cache, before[0], k), (batch.v_cache, before[1], v)):
        flat, flat_old = cache.flatten(0, 1), old.flatten(0, 1)
        assert relative_error(flat[batch.slots[kept]], new[kept]) <= tolerance
        untouched = torch.ones(flat.shape[0], dtype=torch.bool, device=flat.device)
        untouched[batch.slots[kept]] = False
        assert torch.equal(flat[untouched].nan_to_num(7.0), flat_old[untouched].nan_to_num(7.0))
