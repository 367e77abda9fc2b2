"""Softmax attention over paged keys, as the pieces that the decode and the prefill kernel share.

A program holds a tile of query rows [M, D] and walks over cached positions, `BLOCK_N` at a time, with the
online softmax (Milakov and Gimelshein, 2018; FlashAttention-2). Row r of a tile is query `r // GROUP` and
head `r % GROUP` of one KV head's group. When the positions are split over programs, each writes its
unnormalised part to a workspace, and the last to finish adds the parts up in order.

Scores are kept in base 2: exp2 is one instruction, and log2(e) is folded into the scale.
"""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl

BLOCK_SIZE = tl.constexpr(16)


@triton.jit
def capped(scores, soft_cap):
    """`soft_cap * tanh(scores / soft_cap)`."""
    return soft_cap * (1.0 - 2.0 / (tl.exp(scores * (2.0 / soft_cap)) + 1.0))


@triton.jit
def cached_rows(table_ptr, position, valid, block_stride, slot_stride):
    """Offsets of cached positions in a KV tensor; 0 where not `valid`."""
    block = tl.load(table_ptr + position // BLOCK_SIZE, mask=valid, other=0).to(tl.int64)
    return block * block_stride + (position % BLOCK_SIZE) * slot_stride


@triton.jit
def attend_tile(
    q, k, v, total, top, mass, visible, scale, soft_cap,
    SOFT_CAP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Take one tile of keys k [D, N] and values v [N, D] into the running (total [M, D], top [M], mass [M])."""
    scores = tl.dot(q, k, input_precision="ieee")
    if SOFT_CAP:
        scores = capped(scores * scale, soft_cap) * 1.4426950408889634
    else:
        scores = scores * (scale * 1.4426950408889634)
    if MASKED:
        scores = tl.where(visible, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    # A row that has seen no key yet has top -inf; -inf - -inf would be NaN.
    base = tl.where(new_top == float("-inf"), 0.0, new_top) if MASKED else new_top
    weights = tl.exp2(scores - base[:, None])
    keep = tl.exp2(top - base)
    mass = mass * keep + tl.sum(weights, 1)
    total = total * keep[:, None]
    total = tl.dot(weights.to(v.dtype), v, total, input_precision="ieee")
    return total, new_top, mass


@triton.jit
def attend_span(
    q, total, top, mass, first, last, end, row_position, row_valid,
    k_ptr, v_ptr, table_ptr, block_stride, slot_stride, scale, soft_cap, window,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr, MASKED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Walk the positions [first, last) in tiles; with MASKED, hide what lies at or past `end`, after a row, or before its window.

    Without MASKED every position of every tile must be visible to every valid row.
    """
    offs_d = tl.arange(0, BLOCK_D)
    in_head = offs_d < HEAD_DIM
    offs_n = tl.arange(0, BLOCK_N)
    # The next tile's rows are looked up one tile ahead, so that the loads of keys depend on no load in flight.
    ahead = cached_rows(table_ptr, first + offs_n, first + offs_n < end, block_stride, slot_stride)
    for start in tl.range(first, last, BLOCK_N, num_stages=STAGES):
        rows = ahead
        position = start + offs_n
        after = position + BLOCK_N
        ahead = cached_rows(table_ptr, after, after < end, block_stride, slot_stride)
        if MASKED:
            inside = position < end
            visible = inside[None, :] & row_valid[:, None] & (position[None, :] <= row_position[:, None])
            if WINDOW:
                visible = visible & (position[None, :] > row_position[:, None] - window)
            k_mask = in_head[:, None] & inside[None, :]
            v_mask = inside[:, None] & in_head[None, :]
        else:
            visible = row_valid[:, None]
            k_mask = in_head[:, None]
            v_mask = in_head[None, :]
        # Masked loads bring zeros: what lies in an unused slot may be NaN, and 0 * NaN is NaN.
        if HEAD_DIM == BLOCK_D and not MASKED:
            k = tl.load(k_ptr + rows[None, :] + offs_d[:, None])
            v = tl.load(v_ptr + rows[:, None] + offs_d[None, :])
        else:
            k = tl.load(k_ptr + rows[None, :] + offs_d[:, None], mask=k_mask, other=0.0)
            v = tl.load(v_ptr + rows[:, None] + offs_d[None, :], mask=v_mask, other=0.0)
        total, top, mass = attend_tile(
            q, k, v, total, top, mass, visible, scale, soft_cap, SOFT_CAP=SOFT_CAP, MASKED=MASKED
        )
    return total, top, mass


@triton.jit
def split_bounds(
    first, end, share,
    SPLITS: tl.constexpr, SPLIT_SIZE: tl.constexpr, MIN_SPLIT: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The positions [begin, stop) of split `share` of [first, end), and how many splits are in use.

    A fixed SPLIT_SIZE cuts at multiples of it, whatever the batch; else the span is shared out evenly, in as few pieces as
    MIN_SPLIT positions each would make. Every cut is at a multiple of BLOCK_N.
    """
    if SPLIT_SIZE > 0:
        size = SPLIT_SIZE
        origin = first // SPLIT_SIZE * SPLIT_SIZE
    else:
        origin = first // BLOCK_N * BLOCK_N
        pieces = SPLITS
        if MIN_SPLIT > BLOCK_N:
            pieces = tl.maximum(tl.minimum(tl.cdiv(end - origin, MIN_SPLIT), SPLITS), 1)
        size = tl.maximum(tl.cdiv(tl.cdiv(end - origin, pieces), BLOCK_N) * BLOCK_N, BLOCK_N)
    used = tl.cdiv(end - origin, size)
    begin = origin + share * size
    return begin, tl.minimum(begin + size, end), used


@triton.jit
def add_part(total, top, mass, part, part_top, part_mass):
    """Add one split's part to the sum of those before it. Written with fma, so that no context rounds it otherwise."""
    new_top = tl.maximum(top, part_top)
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    keep = tl.exp2(top - base)
    take = tl.exp2(part_top - base)
    total = tl.fma(part, tl.broadcast_to(take[:, None], part.shape), total * keep[:, None])
    return total, new_top, tl.fma(part_mass, take, mass * keep)


@triton.jit
def combine_splits(
    part_ptr, stat_ptr, used, row_valid,
    M: tl.constexpr, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Add up the parts of `used` splits, in order: the normalised rows [M, D] in float32.

    part: float32 [used, ROWS, HEAD_DIM]; stat: float32 [used, 2, ROWS] (the top score, the mass).
    """
    rows = tl.arange(0, M)
    offs_d = tl.arange(0, BLOCK_D)
    mask = row_valid[:, None] & (offs_d < HEAD_DIM)[None, :]
    total = tl.zeros([M, BLOCK_D], tl.float32)
    top = tl.full([M], float("-inf"), tl.float32)
    mass = tl.zeros([M], tl.float32)
    for split in tl.range(0, used, loop_unroll_factor=4):
        # .cg reads from L2: another multiprocessor wrote this.
        stat = stat_ptr + split * (2 * ROWS) + rows
        part_top = tl.load(stat, mask=row_valid, other=float("-inf"), cache_modifier=".cg")
        part_mass = tl.load(stat + ROWS, mask=row_valid, other=0.0, cache_modifier=".cg")
        part = tl.load(
            part_ptr + split * (ROWS * HEAD_DIM) + rows[:, None] * HEAD_DIM + offs_d[None, :],
            mask=mask, other=0.0, cache_modifier=".cg",
        )  # fmt: skip
        total, top, mass = add_part(total, top, mass, part, part_top, part_mass)
    return total / tl.where(mass == 0.0, 1.0, mass)[:, None]


@triton.jit
def _some_parts(
    part_ptr, stat_ptr, first, used,
    CHUNK: tl.constexpr, ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """CHUNK splits' rows [CHUNK, BLOCK_ROWS, D] from `first` on, and their top scores [CHUNK, BLOCK_ROWS]."""
    rows = tl.arange(0, BLOCK_ROWS)
    offs_d = tl.arange(0, BLOCK_D)
    own = first + tl.arange(0, CHUNK)
    mask = (own < used)[:, None] & (rows < ROWS)[None, :]
    part = tl.load(
        part_ptr + own[:, None, None] * (ROWS * HEAD_DIM) + rows[None, :, None] * HEAD_DIM + offs_d[None, None, :],
        mask=mask[:, :, None] & (offs_d < HEAD_DIM)[None, None, :], other=0.0, cache_modifier=".cg",
    )  # fmt: skip
    to = stat_ptr + own[:, None] * (2 * ROWS) + rows[None, :]
    return part, tl.load(to, mask=mask, other=float("-inf"), cache_modifier=".cg")


@triton.jit
def combine_together(
    part_ptr, stat_ptr, used,
    SPLITS: tl.constexpr, ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The same rows [BLOCK_ROWS, D], many splits at a time: few rows wait for few loads."""
    MOST: tl.constexpr = 8192 // (BLOCK_ROWS * BLOCK_D)
    CHUNK: tl.constexpr = SPLITS if SPLITS < MOST else (MOST if MOST > 1 else 1)
    rows = tl.arange(0, BLOCK_ROWS)
    # The first chunk's parts are asked for with the statistics: one way to L2 and back, not two.
    part, part_tops = _some_parts(part_ptr, stat_ptr, 0, used, CHUNK, ROWS, BLOCK_ROWS, HEAD_DIM, BLOCK_D)
    split = tl.arange(0, SPLITS)
    stat = stat_ptr + split[:, None] * (2 * ROWS) + rows[None, :]
    mask = (split < used)[:, None] & (rows < ROWS)[None, :]
    tops = tl.load(stat, mask=mask, other=float("-inf"), cache_modifier=".cg")
    masses = tl.load(stat + ROWS, mask=mask, other=0.0, cache_modifier=".cg")
    top = tl.max(tops, 0)
    base = tl.where(top == float("-inf"), 0.0, top)
    mass = tl.sum(masses * tl.exp2(tops - base[None, :]), 0)
    total = tl.sum(part * tl.exp2(part_tops - base[None, :])[:, :, None], 0)
    for first in range(CHUNK, used, CHUNK):
        part, part_tops = _some_parts(
            part_ptr, stat_ptr, first, used, CHUNK, ROWS, BLOCK_ROWS, HEAD_DIM, BLOCK_D
        )
        total += tl.sum(part * tl.exp2(part_tops - base[None, :])[:, :, None], 0)
    return total / tl.where(mass == 0.0, 1.0, mass)[:, None]


@triton.jit
def store_split(
    part_ptr, stat_ptr, share, total, top, mass, row_valid,
    M: tl.constexpr, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write one split's unnormalised rows and their statistics to the workspace."""
    rows = tl.arange(0, M)
    offs_d = tl.arange(0, BLOCK_D)
    mask = row_valid[:, None] & (offs_d < HEAD_DIM)[None, :]
    stat = stat_ptr + share * (2 * ROWS) + rows
    tl.store(stat, top, mask=row_valid)
    tl.store(stat + ROWS, mass, mask=row_valid)
    tl.store(
        part_ptr + share * (ROWS * HEAD_DIM) + rows[:, None] * HEAD_DIM + offs_d[None, :], total, mask=mask
    )


@triton.jit
def last_to_finish(counter_ptr, used):
    """Whether this program is the last of `used` to come here; it resets the counter for the next launch."""
    tl.debug_barrier()  # every thread's stores come before the release below
    arrived = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
    last = arrived == used - 1
    if last:
        tl.store(counter_ptr, 0)
    tl.debug_barrier()
    return last


@triton.jit
def owner_of_tile(query_start_ptr, tile, num_seqs, BLOCK_Q: tl.constexpr, SEQS: tl.constexpr):
    """The sequence that owns `tile`, and the tile's number within it (past its end for a tile that nobody owns).

    Sequence s owns the tiles from `query_start[s] // BLOCK_Q + s` on: at least as many as it has queries for,
    so the grid follows from the number of tokens and of sequences alone, whatever their lengths.
    """
    index = tl.arange(0, SEQS)
    starts = tl.load(query_start_ptr + index, mask=index < num_seqs, other=0)
    first_tile = starts // BLOCK_Q + index
    seq = tl.sum(((index < num_seqs) & (first_tile <= tile)).to(tl.int32), 0) - 1
    # The first sequences may belong to another launch: then the first tiles lie before any of ours.
    nobody = seq < 0
    seq = tl.maximum(seq, 0)
    own = tile - (tl.load(query_start_ptr + seq) // BLOCK_Q + seq)
    return seq, tl.where(nobody, 1 << 24, own)
