"""Decode attention over paged keys: few queries a sequence, the context split over programs.

One kernel serves three uses. Plain: queries were rotated and their keys written before. Fused (`rope`): it takes
the projection's rows as they are, normalises and rotates queries and keys, and writes the new keys and values
itself. Tiled: any query length, `BLOCK_Q` queries a program, found by `owner_of_tile`; with a fixed split size
a row's bits then depend on nothing but its own sequence (the deterministic mode).

Launched with programmatic dependent launch, a fused program loads its first keys, the angles, its slot and the norms' weights
before it waits. That is safe after a kernel that lets its dependents start only once its own wait is over, where all
that was written two kernels earlier or before (`early=True` asserts that).
"""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanochat.kernels.decode_plan import DecodePlan
from nanochat.kernels.sizes import next_power_of_2, room_for
from nanochat.kernels.triton_attention import (
    add_part,
    attend_span,
    attend_tile,
    cached_rows,
    capped,
    combine_splits,
    combine_together,
    last_to_finish,
    owner_of_tile,
    split_bounds,
    store_split,
)
from nanochat.kernels.triton_rope import Rope, angles_of, halves_of, joined, store_halves, turned, weights_of


@triton.jit(do_not_specialize=["num_seqs", "table_stride", "window"])
def _decode(
    q_ptr, k_cache_ptr, v_cache_ptr, out_ptr, table_ptr, query_start_ptr, context_ptr,
    part_ptr, stat_ptr, counter_ptr, slots_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, eps,
    scale, soft_cap, window, num_seqs, table_stride, q_stride, block_stride, slot_stride, head_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr, TILE_HEADS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    M: tl.constexpr, STACK: tl.constexpr, BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr, SPLIT_SIZE: tl.constexpr, MIN_SPLIT: tl.constexpr, SEQS: tl.constexpr,
    WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr,
    FUSED: tl.constexpr, ROTARY: tl.constexpr, NORM: tl.constexpr,
    STAGES: tl.constexpr, PDL: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    tl.static_assert(BLOCK_Q == 1 or not FUSED)
    if PDL and not EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    head_tiles: tl.constexpr = (GROUP + TILE_HEADS - 1) // TILE_HEADS
    ROWS: tl.constexpr = TILE_HEADS * BLOCK_Q  # of M, a power of two; the rest is padding
    kv_head = tl.program_id(0) // head_tiles
    first_head = kv_head * GROUP + tl.program_id(0) % head_tiles * TILE_HEADS
    tile = tl.program_id(1)
    # Shares come last: programs that a short context leaves without work begin when all others have.
    share = tl.program_id(2)
    if SEQS > 0:
        seq, seq_tile = owner_of_tile(query_start_ptr, tile, num_seqs, BLOCK_Q, SEQS)
    else:
        seq = tile
        seq_tile = 0
    token = tl.load(query_start_ptr + seq).to(tl.int64)
    num_queries = (tl.load(query_start_ptr + seq + 1) - token).to(tl.int32)
    context = tl.load(context_ptr + seq)
    first_query = seq_tile * BLOCK_Q
    count = tl.minimum(num_queries - first_query, BLOCK_Q)  # queries of this tile; may be zero or less
    token += first_query
    first_position = context - num_queries + first_query

    rows = tl.arange(0, M)
    query = rows // TILE_HEADS
    head = first_head + rows % TILE_HEADS
    row_valid = (query < count) & (rows < ROWS) & (head < (kv_head + 1) * GROUP)
    row_position = first_position + query
    offs_d = tl.arange(0, BLOCK_D)
    out_mask = row_valid[:, None] & (offs_d < HEAD_DIM)[None, :]
    out = out_ptr + (token + query[:, None]) * (HEADS * HEAD_DIM) + head[:, None] * HEAD_DIM + offs_d[None, :]

    # Positions to walk: all up to the tile's last query, or, fused, those cached before this step.
    end = first_position if FUSED else first_position + count
    alive = (context > 0) & (count > 0)
    end = tl.where(alive, end, 0)
    start = tl.maximum(first_position - window + 1, 0) if WINDOW else 0
    begin, stop, used = split_bounds(
        tl.minimum(start, end), end, share, SPLITS, SPLIT_SIZE, MIN_SPLIT, BLOCK_N
    )
    if FUSED:
        used = tl.maximum(used, 1)
    table = table_ptr + seq.to(tl.int64) * table_stride
    k_base = k_cache_ptr + kv_head * head_stride
    v_base = v_cache_ptr + kv_head * head_stride

    working = alive & (share < used)
    early_k = tl.zeros([BLOCK_D, BLOCK_N], k_cache_ptr.dtype.element_ty)
    early_v = tl.zeros([BLOCK_N, BLOCK_D], v_cache_ptr.dtype.element_ty)
    if EARLY:
        position = begin + tl.arange(0, BLOCK_N)
        inside = (position < stop) & working
        cached = cached_rows(table, position, inside, block_stride, slot_stride)
        in_head = offs_d < HEAD_DIM
        early_k = tl.load(
            k_base + cached[None, :] + offs_d[:, None], mask=in_head[:, None] & inside[None, :], other=0.0
        )
        early_v = tl.load(
            v_base + cached[:, None] + offs_d[None, :], mask=inside[:, None] & in_head[None, :], other=0.0
        )
    if FUSED:
        # Few rows, so that each thread has few elements: this program's queries; and the new key beside each of them.
        stacked = tl.arange(0, STACK)
        stacked_head = first_head + stacked
        is_query = (stacked < ROWS) & (stacked_head < (kv_head + 1) * GROUP) & (count > 0)
        there = (stacked >= 0) & (count > 0)
        slot = tl.load(slots_ptr + token, mask=count > 0, other=-1)
        cos, sin = angles_of(cos_ptr, sin_ptr, token + stacked * 0, there, BLOCK_D, ROTARY)
        q_weights = weights_of(q_weight_ptr, HEAD_DIM, BLOCK_D, ROTARY, NORM)
        k_weights = weights_of(k_weight_ptr, HEAD_DIM, BLOCK_D, ROTARY, NORM)
    if EARLY and PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()

    if working:
        total = tl.zeros([M, BLOCK_D], tl.float32)
        top = tl.full([M], float("-inf"), tl.float32)
        mass = tl.zeros([M], tl.float32)
        if FUSED:
            source = q_ptr + token * q_stride
            new_v = tl.load(
                source + (HEADS + KV_HEADS + kv_head) * HEAD_DIM + offs_d, mask=offs_d < HEAD_DIM, other=0.0
            )
            q_first, q_second = halves_of(
                source, stacked_head * HEAD_DIM, is_query, HEAD_DIM, BLOCK_D, ROTARY
            )
            k_rows = (HEADS + kv_head) * HEAD_DIM + stacked * 0
            k_first, k_second = halves_of(source, k_rows, there, HEAD_DIM, BLOCK_D, ROTARY)
            q_first, q_second = turned(
                q_first, q_second, q_weights[0], q_weights[1], cos, sin, eps, HEAD_DIM, BLOCK_D, ROTARY, NORM
            )
            k_first, k_second = turned(
                k_first, k_second, k_weights[0], k_weights[1], cos, sin, eps, HEAD_DIM, BLOCK_D, ROTARY, NORM
            )
            # The last program takes key and value in and writes them.
            last = share == used - 1
            kept_at = (slot // 16) * block_stride + (slot % 16) * slot_stride + kv_head * head_stride
            written = last & (slot >= 0)
            store_halves(
                k_cache_ptr + kept_at, k_first, k_second, stacked, written, HEAD_DIM, BLOCK_D, ROTARY
            )
            new_v = new_v.to(v_cache_ptr.dtype.element_ty)
            tl.store(v_cache_ptr + kept_at + offs_d, new_v, mask=written & (offs_d < HEAD_DIM))
            few_q = joined(q_first, q_second, BLOCK_D, ROTARY).to(k_cache_ptr.dtype.element_ty)
            new_k = joined(k_first, k_second, BLOCK_D, ROTARY).to(k_cache_ptr.dtype.element_ty)
            score = tl.sum(few_q.to(tl.float32) * new_k.to(tl.float32), 1) * scale
            if SOFT_CAP:
                score = capped(score, soft_cap)
            # Each row several times: matrix units want 16, and only the first are looked at.
            q = tl.reshape(tl.broadcast_to(few_q[None, :, :], (M // STACK, STACK, BLOCK_D)), (M, BLOCK_D))
            score = tl.reshape(tl.broadcast_to(score[None, :], (M // STACK, STACK)), (M,))
            taken = last & row_valid
            top = tl.where(taken, score * 1.4426950408889634, float("-inf"))
            mass = tl.where(taken, 1.0, 0.0)
            total += mass[:, None] * new_v.to(tl.float32)[None, :]
        else:
            q_rows = (token + query) * q_stride + head * HEAD_DIM
            q = tl.load(q_ptr + q_rows[:, None] + offs_d[None, :], mask=out_mask, other=0.0)
        if EARLY:
            position = begin + tl.arange(0, BLOCK_N)
            visible = (position < stop)[None, :] & row_valid[:, None]
            if WINDOW:
                visible = visible & (position[None, :] > row_position[:, None] - window)
            total, top, mass = attend_tile(
                q,
                early_k,
                early_v,
                total,
                top,
                mass,
                visible,
                scale,
                soft_cap,
                SOFT_CAP=SOFT_CAP,
                MASKED=True,
            )
            begin += BLOCK_N
        if SPLITS == 1 and SPLIT_SIZE > 0:
            # One program walks all splits, and adds them up just as the last of many programs would.
            for _ in range(used):
                part, part_top, part_mass = attend_span(
                    q, tl.zeros([M, BLOCK_D], tl.float32), tl.full([M], float("-inf"), tl.float32),
                    tl.zeros([M], tl.float32), begin, stop, stop, row_position, row_valid,
                    k_base, v_base, table, block_stride, slot_stride, scale, soft_cap, window,
                    HEAD_DIM, BLOCK_D, BLOCK_N, WINDOW, SOFT_CAP, True, STAGES,
                )  # fmt: skip
                total, top, mass = add_part(total, top, mass, part, part_top, part_mass)
                begin = stop
                stop = tl.minimum(stop + SPLIT_SIZE, end)
        elif begin < stop:  # a loop of no rounds would still fill its first buffers
            total, top, mass = attend_span(
                q, total, top, mass, begin, stop, stop, row_position, row_valid,
                k_base, v_base, table, block_stride, slot_stride, scale, soft_cap, window,
                HEAD_DIM, BLOCK_D, BLOCK_N, WINDOW, SOFT_CAP, True, STAGES,
            )  # fmt: skip
        if SPLITS == 1:
            result = total / tl.where(mass == 0.0, 1.0, mass)[:, None]
            tl.store(out, result.to(out_ptr.dtype.element_ty), mask=out_mask)
        elif used == 1:
            result = total / tl.where(mass == 0.0, 1.0, mass)[:, None]
            tl.store(out, result.to(out_ptr.dtype.element_ty), mask=out_mask)
        else:
            owner = tile.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
            part = part_ptr + owner * (SPLITS * ROWS * HEAD_DIM)
            stat = stat_ptr + owner * (SPLITS * 2 * ROWS)
            store_split(part, stat, share, total, top, mass, row_valid, M, ROWS, HEAD_DIM, BLOCK_D)
            if last_to_finish(counter_ptr + owner, used):
                if SPLIT_SIZE > 0:
                    result = combine_splits(part, stat, used, row_valid, M, ROWS, HEAD_DIM, BLOCK_D)
                    tl.store(out, result.to(out_ptr.dtype.element_ty), mask=out_mask)
                else:
                    result = combine_together(part, stat, used, SPLITS, ROWS, BLOCK_ROWS, HEAD_DIM, BLOCK_D)
                    row = tl.arange(0, BLOCK_ROWS)
                    head_row = first_head + row % TILE_HEADS
                    mask = (row < count * TILE_HEADS) & (head_row < (kv_head + 1) * GROUP)
                    to = (
                        out_ptr
                        + (token + row // TILE_HEADS)[:, None] * (HEADS * HEAD_DIM)
                        + head_row[:, None] * HEAD_DIM
                    )
                    mask_2d = mask[:, None] & (offs_d < HEAD_DIM)[None, :]
                    tl.store(to + offs_d[None, :], result.to(out_ptr.dtype.element_ty), mask=mask_2d)
    elif share == 0:
        # A padded sequence: zeros, so that its rows stay finite through the layers.
        tl.store(out, tl.zeros([M, BLOCK_D], out_ptr.dtype.element_ty), mask=out_mask)


def decode_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, out: Tensor, *,
    block_tables: Tensor, query_start: Tensor, context_lens: Tensor, counters: Tensor, plan: DecodePlan,
    num_heads: int, scale: float, window: int | None = None, soft_cap: float | None = None,
    tiled: bool = False, rope: Rope | None = None, slots: Tensor | None = None, pdl: bool = False, early: bool = False,
) -> None:  # fmt: skip
    """Attention of up to `plan.block_q` queries a sequence (any number if `tiled`) over their cached context.

    Args:
        q: [num_tokens, num_heads * head_dim] rows, or with `rope` the projection's rows
            [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]; the row stride is free.
        k_cache, v_cache: [num_blocks, 16, num_kv_heads, head_dim].
        out: [num_tokens, num_heads * head_dim], contiguous. Rows of a sequence with context 0 become zero.
        block_tables, query_start, context_lens, slots: as in `AttentionLayout`.
        counters: int32 zeros, at least one per tile and KV head (and head tile); zeros again afterwards.
        window: a key is seen by queries less than this many positions after it.
        rope: rotate here, and write keys and values to `slots`; one query a sequence.
        early: read cached keys and what else is there before the wait of a dependent launch (see the file's head).
    """
    head_dim, kv_heads = k_cache.shape[3], k_cache.shape[2]
    group = num_heads // kv_heads
    num_seqs = context_lens.shape[0]
    tiles = q.shape[0] // plan.block_q + num_seqs if tiled else num_seqs
    rows = plan.tile_heads * plan.block_q
    splits = plan.splits if plan.split_size else next_power_of_2(plan.splits)
    grid = (kv_heads * -(-group // plan.tile_heads), tiles, splits)
    owners = grid[0] * tiles
    if splits > 1:
        part = torch.empty(owners * splits * rows * (head_dim + 2), dtype=torch.float32, device=q.device)
    else:
        part = counters
    fused = rope is not None
    stack = max(4, next_power_of_2(rows))  # a warp or less for each row: norms need no barrier
    norm = rope is not None and rope.q_weight is not None
    _decode[grid](
        q, k_cache, v_cache, out, block_tables, query_start, context_lens,
        part, part[owners * splits * rows * head_dim :] if splits > 1 else part, counters,
        slots if slots is not None else query_start,
        rope.q_weight if rope is not None and norm else q, rope.k_weight if rope is not None and norm else q,
        rope.cos if rope is not None else q, rope.sin if rope is not None else q, rope.eps if rope is not None else 0.0,
        scale, soft_cap or 0.0, window or 0, num_seqs, block_tables.stride(0), q.stride(0),
        k_cache.stride(0), k_cache.stride(1), k_cache.stride(2),
        HEADS=num_heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, BLOCK_D=next_power_of_2(head_dim),
        GROUP=group, TILE_HEADS=plan.tile_heads, BLOCK_Q=plan.block_q, BLOCK_ROWS=next_power_of_2(rows),
        M=max(16, next_power_of_2(rows)), STACK=stack,
        BLOCK_N=plan.block_n, SPLITS=splits, SPLIT_SIZE=plan.split_size, MIN_SPLIT=plan.min_split,
        SEQS=room_for(num_seqs) if tiled else 0, WINDOW=window is not None, SOFT_CAP=soft_cap is not None,
        FUSED=fused, ROTARY=rope.rotary if rope is not None else 0, NORM=norm,
        STAGES=plan.stages, PDL=pdl, EARLY=early, num_warps=plan.warps, **({"launch_pdl": True} if pdl else {}),
    )  # fmt: skip
