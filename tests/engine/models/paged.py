"""Driving a model by hand: a paged cache, and the layouts of steps over it."""

from __future__ import annotations

import torch

from nanochat.kernels.layout import BLOCK_SIZE, AttentionLayout


def lay_out(chunks, tables, device="cpu"):
    """(layout, positions) of a step. chunks: (start, count) of each sequence; tables: its block ids."""
    positions = torch.cat([torch.arange(start, start + count) for start, count in chunks])
    slots = [
        table[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE
        for (start, count), table in zip(chunks, tables, strict=True)
        for p in range(start, start + count)
    ]
    counts = [count for _, count in chunks]
    contexts = [start + count for start, count in chunks]
    width = max(len(table) for table in tables)
    layout = AttentionLayout(
        slots=torch.tensor(slots, device=device),
        block_tables=torch.tensor(
            [table + [0] * (width - len(table)) for table in tables], dtype=torch.int32, device=device
        ),
        query_start=torch.tensor([0, *counts], device=device).cumsum(0).int(),
        context_lens=torch.tensor(contexts, dtype=torch.int32, device=device),
        query_lens=counts,
        contexts=contexts,
        tables=tables,
        max_context=max(contexts),
    )
    return layout, positions.to(device)


class Paged:
    """A model with a cache of its own, full of NaN where nothing was written."""

    def __init__(self, model, num_blocks=24, dtype=torch.float32, device="cpu"):
        config = model.config
        shape = (num_blocks, BLOCK_SIZE, config.num_kv_heads, config.head_dim)
        self.model, self.device = model, device
        self.cache = [
            tuple(torch.full(shape, float("nan"), dtype=dtype, device=device) for _ in range(2))
            for _ in range(config.num_layers)
        ]

    def step(self, tokens, start, table):
        """Log-probabilities [count, vocab] after each of `tokens`, which are at `start` and on of one sequence."""
        return self.batch([(tokens, start, table)])[0]

    def batch(self, parts):
        layout, positions = lay_out(
            [(start, len(tokens)) for tokens, start, _ in parts], [table for *_, table in parts], self.device
        )
        ids = torch.tensor([token for tokens, *_ in parts for token in tokens], device=self.device)
        hidden = self.model.forward(ids, positions, layout, self.cache)
        logits = self.model.logits(hidden)
        return torch.log_softmax(logits, -1).split([len(tokens) for tokens, *_ in parts])
