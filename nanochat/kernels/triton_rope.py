"""Rotary positions (Su et al., 2021), with the norm of queries and keys before them and the KV write after.

A head's first `ROTARY` elements turn by pairs (i, i + ROTARY / 2).
`cos` and `sin` are float32 [tokens, ROTARY / 2], a row for each token of the step. All arithmetic is float32,
rounded once.
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

from nanochat.kernels.sizes import next_power_of_2


@dataclass(frozen=True, slots=True)
class Rope:
    """How queries and keys are normalised and turned before attention.

    Attributes:
        cos, sin: float32 [tokens, rotary / 2], contiguous: a row for each token of the step.
        rotary: how many of a head's first elements turn; 0 leaves them as they are.
        q_weight, k_weight: [head_dim], the per-head RMS norms' weights; `None` without them.
        eps: of those norms.
    """

    cos: Tensor
    sin: Tensor
    rotary: int
    q_weight: Tensor | None = None
    k_weight: Tensor | None = None
    eps: float = 1e-6


@triton.jit
def angles_of(
    cos_ptr,
    sin_ptr,
    tokens,
    row_valid,
    BLOCK_D: tl.constexpr,
    ROTARY: tl.constexpr,
):
    """Cosines and sines of `tokens` [R], float32: [R, ROTARY / 2] where all of a head turns, else one for each element."""
    half: tl.constexpr = ROTARY // 2
    cos = 1.0
    sin = 0.0
    if ROTARY > 0:
        if ROTARY == BLOCK_D:
            at = tokens[:, None] * half + tl.arange(0, half)[None, :]
            mask = row_valid[:, None]
        else:
            offs = tl.arange(0, BLOCK_D)
            angle = tl.where(offs >= half, offs - half, offs)
            at = tokens[:, None] * half + tl.where(offs < ROTARY, angle, 0)[None, :]
            mask = row_valid[:, None] & (offs < ROTARY)[None, :]
        cos = tl.load(cos_ptr + at, mask=mask, other=1.0)
        sin = tl.load(sin_ptr + at, mask=mask, other=0.0)
    return cos, sin


@triton.jit
def halves_of(
    x_ptr, rows, row_valid, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROTARY: tl.constexpr
):  # fmt: skip
    """What stands at offsets `rows` [R], as it is turned: the firsts and the seconds of all pairs where all of a head turns,
    [R, BLOCK_D / 2] each; else every element and its partner, [R, BLOCK_D] each.
    """
    offs = tl.arange(0, BLOCK_D)
    half: tl.constexpr = ROTARY // 2
    if ROTARY == BLOCK_D:
        # Two loads, so that both of a pair are with one thread.
        to = x_ptr + rows[:, None] + tl.arange(0, half)[None, :]
        first = tl.load(to, mask=row_valid[:, None], other=0.0)
        second = tl.load(to + half, mask=row_valid[:, None], other=0.0)
    else:
        mask = row_valid[:, None] & (offs < HEAD_DIM)[None, :]
        first = tl.load(x_ptr + rows[:, None] + offs[None, :], mask=mask, other=0.0)
        second = first
        if ROTARY > 0:
            partner = tl.where(offs < half, offs + half, offs - half)
            partner = tl.where(offs < ROTARY, partner, offs)
            second = tl.load(x_ptr + rows[:, None] + partner[None, :], mask=mask, other=0.0)
    return first, second


@triton.jit
def weights_of(
    weight_ptr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROTARY: tl.constexpr, NORM: tl.constexpr
):  # fmt: skip
    """A norm's weights in the form of `halves_of`, one row of them; ones without NORM."""
    first = 1.0
    second = 1.0
    if NORM:
        one = tl.arange(0, 1)
        first, second = halves_of(weight_ptr, one, one == 0, HEAD_DIM, BLOCK_D, ROTARY)
    return first, second


@triton.jit
def turned(
    first, second, first_weight, second_weight, cos, sin, eps,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROTARY: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """`halves_of` heads, RMS-normalised if NORM, then rotated, in float32 and in the same form."""
    first, second = first.to(tl.float32), second.to(tl.float32)
    WHOLE: tl.constexpr = ROTARY == BLOCK_D
    if NORM:
        squares = first * first
        if WHOLE:
            squares += second * second
        inverse = tl.rsqrt(tl.sum(squares, 1) / HEAD_DIM + eps)[:, None]
        first = first * inverse * first_weight.to(tl.float32)
        second = second * inverse * second_weight.to(tl.float32)
    if WHOLE:
        turned_first = first * cos - second * sin
        second = second * cos + first * sin
        first = turned_first
    elif ROTARY > 0:
        offs = tl.arange(0, BLOCK_D)
        is_second = offs >= ROTARY // 2
        first = first * cos + tl.where(is_second[None, :], second, -second) * sin
    return first, second


@triton.jit
def store_halves(
    to, first, second, row, mask, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROTARY: tl.constexpr
):  # fmt: skip
    """Row 0 of heads that are in the form of `halves_of`, to a pointer."""
    mine = (row == 0)[:, None] & mask
    if ROTARY == BLOCK_D:
        half: tl.constexpr = ROTARY // 2
        at = to + tl.arange(0, half)[None, :] + row[:, None] * 0
        tl.store(at, first.to(to.dtype.element_ty), mask=mine)
        tl.store(at + half, second.to(to.dtype.element_ty), mask=mine)
    else:
        offs = tl.arange(0, BLOCK_D)[None, :]
        tl.store(to + offs + row[:, None] * 0, first.to(to.dtype.element_ty), mask=mine & (offs < HEAD_DIM))


@triton.jit
def joined(first, second, BLOCK_D: tl.constexpr, ROTARY: tl.constexpr):
    """The heads [R, BLOCK_D] that `turned` gives in halves."""
    if ROTARY == BLOCK_D:
        both = tl.join(first, second)
        return tl.reshape(tl.permute(both, (0, 2, 1)), (first.shape[0], BLOCK_D))
    else:
        return first


@triton.jit
def rotated_heads(
    x_ptr, rows, row_valid, weight_ptr, cos_ptr, sin_ptr, tokens, eps,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROTARY: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Heads [R, BLOCK_D] in float32 from offsets `rows` [R]: RMS-normalised if NORM, then rotated by the angles of `tokens` [R]."""
    first, second = halves_of(x_ptr, rows, row_valid, HEAD_DIM, BLOCK_D, ROTARY)
    first_weight, second_weight = weights_of(weight_ptr, HEAD_DIM, BLOCK_D, ROTARY, NORM)
    cos, sin = angles_of(cos_ptr, sin_ptr, tokens, row_valid, BLOCK_D, ROTARY)
    first, second = turned(
        first, second, first_weight, second_weight, cos, sin, eps, HEAD_DIM, BLOCK_D, ROTARY, NORM
    )
    return joined(first, second, BLOCK_D, ROTARY)


@triton.jit
def _rope_and_write(
    qkv_ptr, q_out_ptr, k_cache_ptr, v_cache_ptr, slots_ptr, cos_ptr, sin_ptr,
    q_weight_ptr, k_weight_ptr, eps, qkv_stride, block_stride, slot_stride, head_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    ROTARY: tl.constexpr, NORM: tl.constexpr,
    BLOCK_Q_HEADS: tl.constexpr, BLOCK_KV_HEADS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    offs = tl.arange(0, BLOCK_D)
    in_head = (offs < HEAD_DIM)[None, :]
    source = token * qkv_stride

    heads = tl.program_id(1) * BLOCK_Q_HEADS + tl.arange(0, BLOCK_Q_HEADS)
    valid = heads < HEADS
    q = rotated_heads(
        qkv_ptr, source + heads * HEAD_DIM, valid, q_weight_ptr, cos_ptr, sin_ptr,
        token + tl.zeros([BLOCK_Q_HEADS], tl.int64), eps, HEAD_DIM, BLOCK_D, ROTARY, NORM,
    )  # fmt: skip
    to = q_out_ptr + (token * HEADS + heads[:, None]) * HEAD_DIM + offs[None, :]
    tl.store(to, q.to(q_out_ptr.dtype.element_ty), mask=valid[:, None] & in_head)

    heads = tl.program_id(1) * BLOCK_KV_HEADS + tl.arange(0, BLOCK_KV_HEADS)
    valid = (heads < KV_HEADS) & (slot >= 0)
    k = rotated_heads(
        qkv_ptr, source + (HEADS + heads) * HEAD_DIM, valid, k_weight_ptr, cos_ptr, sin_ptr,
        token + tl.zeros([BLOCK_KV_HEADS], tl.int64), eps, HEAD_DIM, BLOCK_D, ROTARY, NORM,
    )  # fmt: skip
    mask = valid[:, None] & in_head
    v_source = source + (HEADS + KV_HEADS + heads[:, None]) * HEAD_DIM + offs[None, :]
    v = tl.load(qkv_ptr + v_source, mask=mask, other=0.0)
    to = (
        (slot // 16) * block_stride + (slot % 16) * slot_stride + heads[:, None] * head_stride + offs[None, :]
    )
    tl.store(k_cache_ptr + to, k.to(k_cache_ptr.dtype.element_ty), mask=mask)
    tl.store(v_cache_ptr + to, v.to(v_cache_ptr.dtype.element_ty), mask=mask)


def rope_and_write(
    qkv: Tensor, num_heads: int, rope: Rope, k_cache: Tensor, v_cache: Tensor, slots: Tensor
) -> Tensor:
    """Norm and rotate a projection's rows, write keys and values to their slots, return the queries.

    Args:
        qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim], bias already added; the row stride is free.
        k_cache, v_cache: [num_blocks, 16, num_kv_heads, head_dim].
        slots: int64 [num_tokens]; nothing is written for a negative one.

    Returns:
        [num_tokens, num_heads * head_dim].
    """
    tokens, (kv_heads, head_dim) = qkv.shape[0], k_cache.shape[2:]
    q = torch.empty(tokens, num_heads * head_dim, dtype=qkv.dtype, device=qkv.device)
    if not tokens:
        return q
    norm = rope.q_weight is not None
    block_d = next_power_of_2(head_dim)
    parts = max(1, num_heads * block_d // 4096)
    _rope_and_write[(tokens, parts)](
        qkv, q, k_cache, v_cache, slots, rope.cos, rope.sin, rope.q_weight if norm else qkv,
        rope.k_weight if norm else qkv, rope.eps, qkv.stride(0), k_cache.stride(0), k_cache.stride(1), k_cache.stride(2),
        HEADS=num_heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, BLOCK_D=block_d,
        ROTARY=rope.rotary, NORM=norm,
        BLOCK_Q_HEADS=next_power_of_2(-(-num_heads // parts)), BLOCK_KV_HEADS=next_power_of_2(-(-kv_heads // parts)),
        num_warps=4,
    )  # fmt: skip
    return q


@triton.jit
def _write(
    k_ptr, v_ptr, k_cache_ptr, v_cache_ptr, slots_ptr, k_stride, v_stride, block_stride, slot_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    offs = tl.arange(0, BLOCK)
    mask = (offs < WIDTH) & (slot >= 0)
    to = (slot // 16) * block_stride + (slot % 16) * slot_stride + offs
    tl.store(k_cache_ptr + to, tl.load(k_ptr + token * k_stride + offs, mask=mask), mask=mask)
    tl.store(v_cache_ptr + to, tl.load(v_ptr + token * v_stride + offs, mask=mask), mask=mask)


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Put keys and values [num_tokens, num_kv_heads, head_dim] into their slots; a negative slot takes nothing."""
    tokens, kv_heads, head_dim = k.shape
    k, v = k.reshape(tokens, -1), v.reshape(tokens, -1)
    width = kv_heads * head_dim
    if tokens:
        _write[(tokens,)](
            k, v, k_cache, v_cache, slots, k.stride(0), v.stride(0), k_cache.stride(0), k_cache.stride(1),
            WIDTH=width, BLOCK=next_power_of_2(width), num_warps=4,
        )  # fmt: skip
