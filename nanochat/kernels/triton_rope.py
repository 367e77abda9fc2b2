"""Rotary positions (Su et al., 2021), with the norm of queries and keys before them and the KV write after.

A head's first `ROTARY` elements turn by pairs: (i, i + ROTARY / 2), or (2i, 2i + 1) when interleaved.
`cos` and `sin` are float32 tables [positions, ROTARY / 2]. All arithmetic is float32, rounded once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rotated_heads(
    x_ptr, rows, row_valid, weight_ptr, cos_ptr, sin_ptr, position, eps,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Heads [R, BLOCK_D] in float32 from offsets `rows` [R]: RMS-normalised if NORM, then rotated to `position` [R]."""
    offs = tl.arange(0, BLOCK_D)
    in_head = offs < HEAD_DIM
    mask = row_valid[:, None] & in_head[None, :]
    x = tl.load(x_ptr + rows[:, None] + offs[None, :], mask=mask, other=0.0).to(tl.float32)
    if NORM:
        inverse = tl.rsqrt(tl.sum(x * x, 1) / HEAD_DIM + eps)[:, None]
        x = x * inverse * tl.load(weight_ptr + offs, mask=in_head, other=0.0).to(tl.float32)[None, :]
    half: tl.constexpr = ROTARY // 2
    if ROTARY == BLOCK_D:
        # Turn the pairs where they are: no element is loaded twice.
        table = position[:, None] * half + tl.arange(0, half)[None, :]
        cos = tl.load(cos_ptr + table, mask=row_valid[:, None], other=1.0)
        sin = tl.load(sin_ptr + table, mask=row_valid[:, None], other=0.0)
        if INTERLEAVED:
            first, second = tl.split(tl.reshape(x, (x.shape[0], half, 2)))
        else:
            first, second = tl.split(tl.permute(tl.reshape(x, (x.shape[0], 2, half)), (0, 2, 1)))
        turned = tl.join(first * cos - second * sin, second * cos + first * sin)
        if not INTERLEAVED:
            turned = tl.permute(turned, (0, 2, 1))
        x = tl.reshape(turned, (x.shape[0], BLOCK_D))
    else:
        if INTERLEAVED:
            partner = offs ^ 1
            is_second = (offs & 1) == 1
            angle = offs // 2
        else:
            partner = tl.where(offs < half, offs + half, offs - half)
            is_second = offs >= half
            angle = tl.where(is_second, offs - half, offs)
        turns = offs < ROTARY
        partner = tl.where(turns, partner, offs)
        y = tl.load(x_ptr + rows[:, None] + partner[None, :], mask=mask, other=0.0).to(tl.float32)
        if NORM:
            y = y * inverse * tl.load(weight_ptr + partner, mask=in_head, other=0.0).to(tl.float32)[None, :]
        table = position[:, None] * half + tl.where(turns, angle, 0)[None, :]
        table_mask = row_valid[:, None] & turns[None, :]
        cos = tl.load(cos_ptr + table, mask=table_mask, other=1.0)
        sin = tl.load(sin_ptr + table, mask=table_mask, other=0.0)
        x = x * cos + tl.where(is_second[None, :], y, -y) * sin
    return x


@triton.jit
def _rope_and_write(
    qkv_ptr, q_out_ptr, k_cache_ptr, v_cache_ptr, slots_ptr, positions_ptr, cos_ptr, sin_ptr,
    q_weight_ptr, k_weight_ptr, eps, qkv_stride, block_stride, slot_stride, head_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr, NORM: tl.constexpr,
    BLOCK_Q_HEADS: tl.constexpr, BLOCK_KV_HEADS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions_ptr + token)
    slot = tl.load(slots_ptr + token)
    offs = tl.arange(0, BLOCK_D)
    in_head = (offs < HEAD_DIM)[None, :]
    source = token * qkv_stride

    heads = tl.program_id(1) * BLOCK_Q_HEADS + tl.arange(0, BLOCK_Q_HEADS)
    valid = heads < HEADS
    q = rotated_heads(
        qkv_ptr, source + heads * HEAD_DIM, valid, q_weight_ptr, cos_ptr, sin_ptr,
        position + tl.zeros([BLOCK_Q_HEADS], tl.int64), eps, HEAD_DIM, BLOCK_D, ROTARY, INTERLEAVED, NORM,
    )  # fmt: skip
    to = q_out_ptr + (token * HEADS + heads[:, None]) * HEAD_DIM + offs[None, :]
    tl.store(to, q.to(q_out_ptr.dtype.element_ty), mask=valid[:, None] & in_head)

    heads = tl.program_id(1) * BLOCK_KV_HEADS + tl.arange(0, BLOCK_KV_HEADS)
    valid = (heads < KV_HEADS) & (slot >= 0)
    k = rotated_heads(
        qkv_ptr, source + (HEADS + heads) * HEAD_DIM, valid, k_weight_ptr, cos_ptr, sin_ptr,
        position + tl.zeros([BLOCK_KV_HEADS], tl.int64), eps, HEAD_DIM, BLOCK_D, ROTARY, INTERLEAVED, NORM,
    )  # fmt: skip
    mask = valid[:, None] & in_head
    v_source = source + (HEADS + KV_HEADS + heads[:, None]) * HEAD_DIM + offs[None, :]
    v = tl.load(qkv_ptr + v_source, mask=mask, other=0.0)
    to = (slot // 16) * block_stride + (slot % 16) * slot_stride + heads[:, None] * head_stride + offs[None, :]
    tl.store(k_cache_ptr + to, k.to(k_cache_ptr.dtype.element_ty), mask=mask)
    tl.store(v_cache_ptr + to, v.to(v_cache_ptr.dtype.element_ty), mask=mask)
