"""A step over a paged cache, with what it must find there."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat.kernels.layout import BLOCK_SIZE, AttentionLayout

NUM_BLOCKS = 32


@dataclass
class Step:
    """Sequences of (cached, new) tokens with their histories, float64 answers included."""

    parts: list[tuple[int, int]]
    layout: AttentionLayout
    cache: tuple[Tensor, Tensor]
    histories: list[Tensor]
    qkv: Tensor


def make_step(parts, heads, kv_heads, width, seed) -> Step:
    random_, torch_ = random.Random(seed), torch.Generator().manual_seed(seed)
    blocks = list(range(NUM_BLOCKS))
    random_.shuffle(blocks)
    tables = [[blocks.pop() for _ in range(-(-(cached + new) // BLOCK_SIZE))] for cached, new in parts]
    longest = max(map(len, tables))
    slots = [
        table[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE
        for (cached, new), table in zip(parts, tables, strict=True)
        for p in range(cached, cached + new)
    ]
    layout = AttentionLayout(
        slots=torch.tensor(slots),
        block_tables=torch.tensor([t + [0] * (longest - len(t)) for t in tables], dtype=torch.int32),
        query_start=torch.tensor([0, *(new for _, new in parts)]).cumsum(0).int(),
        context_lens=torch.tensor([sum(part) for part in parts], dtype=torch.int32),
        query_lens=[new for _, new in parts],
        contexts=[sum(part) for part in parts],
        tables=tables,
        max_context=max(map(sum, parts)),
    )
    shape = (NUM_BLOCKS, BLOCK_SIZE, kv_heads, width)
    cache = tuple(torch.full(shape, float("nan")).bfloat16() for _ in range(2))
    histories = [torch.randn(2, sum(part), kv_heads, width, generator=torch_).bfloat16() for part in parts]
    for (cached, _), table, history in zip(parts, tables, histories, strict=True):
        for tensor, past in zip(cache, history, strict=True):
            for position in range(cached):
                tensor[table[position // BLOCK_SIZE], position % BLOCK_SIZE] = past[position]
    new = [h[:, cached:].transpose(0, 1).flatten(1) for (cached, _), h in zip(parts, histories, strict=True)]
    q = torch.randn(len(slots), heads * width, generator=torch_).bfloat16()
    return Step(list(parts), layout, (cache[0], cache[1]), histories, torch.cat([q, torch.cat(new)], dim=1))
