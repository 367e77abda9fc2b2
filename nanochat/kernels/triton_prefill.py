"""Prefill attention over paged keys: many queries a sequence, over a cached prefix and the chunk itself.

A program takes `BLOCK_Q` queries of one sequence with all heads of one KV head's group. It walks over the keys
that every row sees without a mask, then over the diagonal and the window's edge with one. The grid follows from
the number of tokens and of sequences alone, so a launch can be captured. When few programs meet a long context
(a short question to a long chat), the keys are split as in decode.
"""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanochat.kernels.sizes import next_power_of_2, room_for
from nanochat.kernels.triton_attention import (
    attend_span,
    combine_splits,
    last_to_finish,
    owner_of_tile,
    split_bounds,
    store_split,
)

# Where these begin follows from how many sequences decode in front: no reason to compile another kernel in mid-reply.
_ANYWHERE = ["table_ptr", "query_start_ptr", "context_ptr"]


@triton.jit(
    do_not_specialize=["num_seqs", "table_stride", "window"], do_not_specialize_on_alignment=_ANYWHERE
)  # fmt: skip
def _prefill(
    q_ptr, k_cache_ptr, v_cache_ptr, out_ptr, table_ptr, query_start_ptr, context_ptr, part_ptr, stat_ptr, counter_ptr,
    scale, soft_cap, window, num_seqs, table_stride, q_stride, block_stride, slot_stride, head_stride,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, TILE_HEADS: tl.constexpr,
    BLOCK_Q: tl.constexpr, M: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, SEQS: tl.constexpr,
    WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    head_tiles: tl.constexpr = (GROUP + TILE_HEADS - 1) // TILE_HEADS
    ROWS: tl.constexpr = TILE_HEADS * BLOCK_Q
    kv_head = tl.program_id(0) // head_tiles
    first_head = kv_head * GROUP + tl.program_id(0) % head_tiles * TILE_HEADS
    share = tl.program_id(1)
    # The last tiles see the most keys: they start first, and the short ones fill the end.
    tile = tl.num_programs(2) - 1 - tl.program_id(2)
    seq, seq_tile = owner_of_tile(query_start_ptr, tile, num_seqs, BLOCK_Q, SEQS)
    token = tl.load(query_start_ptr + seq).to(tl.int64)
    num_queries = (tl.load(query_start_ptr + seq + 1) - token).to(tl.int32)
    context = tl.load(context_ptr + seq)
    first_query = seq_tile * BLOCK_Q
    count = tl.minimum(num_queries - first_query, BLOCK_Q)
    if count > 0:
        token += first_query
        first_position = context - num_queries + first_query
        rows = tl.arange(0, M)
        query = rows // TILE_HEADS
        head = first_head + rows % TILE_HEADS
        row_valid = (query < count) & (rows < ROWS) & (head < (kv_head + 1) * GROUP)
        row_position = first_position + query
        offs_d = tl.arange(0, BLOCK_D)
        mask = row_valid[:, None] & (offs_d < HEAD_DIM)[None, :]
        out = (
            out_ptr
            + (token + query[:, None]) * (HEADS * HEAD_DIM)
            + head[:, None] * HEAD_DIM
            + offs_d[None, :]
        )

        end = tl.where(context > 0, first_position + count, 0)
        start = tl.minimum(tl.maximum(first_position - window + 1, 0), end) if WINDOW else 0
        begin, stop, used = split_bounds(start, end, share, SPLITS, 0, 4 * BLOCK_N, BLOCK_N)
        used = tl.maximum(used, 1)
        if share < used:
            # Every row sees [clear_from, clear_to): up to the first query, from the last query's window on.
            clear_to = tl.minimum(first_position + 1, stop) // BLOCK_N * BLOCK_N
            clear_from = begin
            if WINDOW:
                edge = tl.maximum(first_position + count - window, begin)
                clear_from = tl.minimum(tl.cdiv(edge, BLOCK_N) * BLOCK_N, stop)
            clear_to = tl.maximum(clear_to, clear_from)
            q = tl.load(
                q_ptr + (token + query[:, None]) * q_stride + head[:, None] * HEAD_DIM + offs_d[None, :],
                mask=mask, other=0.0,
            )  # fmt: skip
            table = table_ptr + seq.to(tl.int64) * table_stride
            k_base = k_cache_ptr + kv_head * head_stride
            v_base = v_cache_ptr + kv_head * head_stride
            total = tl.zeros([M, BLOCK_D], tl.float32)
            top = tl.full([M], float("-inf"), tl.float32)
            mass = tl.zeros([M], tl.float32)
            if WINDOW:
                total, top, mass = attend_span(
                    q, total, top, mass, begin, clear_from, stop, row_position, row_valid,
                    k_base, v_base, table, block_stride, slot_stride, scale, soft_cap, window,
                    HEAD_DIM, BLOCK_D, BLOCK_N, WINDOW, SOFT_CAP, True, STAGES,
                )  # fmt: skip
            total, top, mass = attend_span(
                q, total, top, mass, clear_from, clear_to, stop, row_position, row_valid,
                k_base, v_base, table, block_stride, slot_stride, scale, soft_cap, window,
                HEAD_DIM, BLOCK_D, BLOCK_N, WINDOW, SOFT_CAP, False, STAGES,
            )  # fmt: skip
            total, top, mass = attend_span(
                q, total, top, mass, clear_to, stop, stop, row_position, row_valid,
                k_base, v_base, table, block_stride, slot_stride, scale, soft_cap, window,
                HEAD_DIM, BLOCK_D, BLOCK_N, WINDOW, SOFT_CAP, True, STAGES,
            )  # fmt: skip
            if SPLITS == 1:
                result = total / tl.where(mass == 0.0, 1.0, mass)[:, None]
                tl.store(out, result.to(out_ptr.dtype.element_ty), mask=mask)
            else:
                owner = tile.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
                part = part_ptr + owner * (SPLITS * ROWS * HEAD_DIM)
                stat = stat_ptr + owner * (SPLITS * 2 * ROWS)
                store_split(part, stat, share, total, top, mass, row_valid, M, ROWS, HEAD_DIM, BLOCK_D)
                if last_to_finish(counter_ptr + owner, used):
                    result = combine_splits(part, stat, used, row_valid, M, ROWS, HEAD_DIM, BLOCK_D)
                    tl.store(out, result.to(out_ptr.dtype.element_ty), mask=mask)


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """The constants of a prefill launch."""

    block_q: int
    tile_heads: int
    block_n: int
    splits: int
    warps: int
    stages: int


def prefill_plan(
    *, tokens: int, seqs: int, heads: int, kv_heads: int, head_dim: int, element: int,
    max_context: int, multiprocessors: int, shared_memory: int,
) -> PrefillPlan:  # fmt: skip
    """Constants for `tokens` queries of `seqs` sequences.

    Args:
        element: the cache's bytes an element.
        shared_memory: bytes of shared memory that a program may have.
    """
    group = heads // kv_heads
    width = next_power_of_2(head_dim) * element
    if element > 2:
        m, block_n, warps, stages = (32, 32, 4, 2) if width <= 512 else (16, 16, 4, 1)
    elif width > 256:
        m, block_n, warps, stages = 64, 32, 4, 2 if shared_memory >= 100_000 else 1
    else:
        m, block_n, warps, stages = 128, 128 if shared_memory >= 166_000 or width <= 128 else 64, 8, 2
    if element == 2 and tokens * group <= 2 * m * seqs:
        m, warps = 64, 4
    tile_heads = min(group, m)
    block_q = m // tile_heads
    programs = (-(-tokens // block_q) + seqs // 2) * kv_heads * -(-group // tile_heads)
    splits = 1
    if programs * 2 <= multiprocessors and max_context >= 8 * block_n:
        most = min(16, multiprocessors // programs, max_context // (4 * block_n))
        splits = 1 << (
            most.bit_length() - 1
        )  # a power of two: each other number would be another kernel to compile
    return PrefillPlan(block_q, tile_heads, block_n, splits, warps, stages)


def prefill_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, out: Tensor, *,
    block_tables: Tensor, query_start: Tensor, context_lens: Tensor, counters: Tensor, plan: PrefillPlan,
    num_heads: int, scale: float, window: int | None = None, soft_cap: float | None = None,
) -> None:  # fmt: skip
    """Causal attention of each sequence's new tokens over its whole cached context (their own keys included).

    Shapes, `window` and `counters` as in `decode_attention`; `out` rows without a context become zero.
    """
    head_dim, kv_heads = k_cache.shape[3], k_cache.shape[2]
    group = num_heads // kv_heads
    num_seqs = context_lens.shape[0]
    tiles = q.shape[0] // plan.block_q + num_seqs
    rows = plan.tile_heads * plan.block_q
    grid = (kv_heads * -(-group // plan.tile_heads), plan.splits, tiles)
    parts = grid[0] * tiles * plan.splits * rows
    split = plan.splits > 1
    part = torch.empty(parts * (head_dim + 2), dtype=torch.float32, device=q.device) if split else counters
    _prefill[grid](
        q, k_cache, v_cache, out, block_tables, query_start, context_lens,
        part, part[parts * head_dim :] if split else part, counters,
        scale, soft_cap or 0.0, window or 0, num_seqs, block_tables.stride(0), q.stride(0),
        k_cache.stride(0), k_cache.stride(1), k_cache.stride(2),
        HEADS=num_heads, HEAD_DIM=head_dim, BLOCK_D=next_power_of_2(head_dim), GROUP=group, TILE_HEADS=plan.tile_heads,
        BLOCK_Q=plan.block_q, M=max(16, next_power_of_2(rows)), BLOCK_N=plan.block_n, SPLITS=plan.splits,
        SEQS=room_for(num_seqs), WINDOW=window is not None, SOFT_CAP=soft_cap is not None,
        STAGES=plan.stages, num_warps=plan.warps,
    )  # fmt: skip
