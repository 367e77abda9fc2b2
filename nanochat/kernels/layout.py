"""How a batch lies in memory: what every attention kernel, in whatever language, is told."""

from __future__ import annotations

from dataclasses import dataclass

import torch

BLOCK_SIZE = 16


@dataclass(slots=True)
class AttentionLayout:
    """One step's sequences. Tokens are packed: sequence s owns rows [query_start[s], query_start[s + 1]).

    The KV cache of a layer is a pair of tensors [num_blocks, BLOCK_SIZE, num_kv_heads, head_dim]; slot
    `b * BLOCK_SIZE + i` is position i of block b. The new tokens' keys and values are written before
    attention reads, so `context_lens` counts them; query row r of sequence s sits at position
    `context_lens[s] - query_len[s] + r` and sees keys at positions up to its own.

    Device tensors:
        slots: int64 [num_tokens]: where each new token's K and V go; -1 (padding) writes nothing.
        block_tables: int32 [num_seqs, max_blocks]: block ids in order; what lies past the context is never read.
        query_start: int32 [num_seqs + 1].
        context_lens: int32 [num_seqs].
    Host mirrors (Python ints; empty inside a captured graph, where shapes are the bounds):
        query_lens, contexts: per sequence.
        tables: block ids per sequence, as lists.
        captured: the step may be replayed for other sequences: what the mirrors say, if anything, are its bounds.
    """

    slots: torch.Tensor
    block_tables: torch.Tensor
    query_start: torch.Tensor
    context_lens: torch.Tensor
    query_lens: list[int]
    contexts: list[int]
    tables: list[list[int]]
    max_context: int
    captured: bool = False
