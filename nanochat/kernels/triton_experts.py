"""A mixture of experts for a few rows: the router's choice, and matrix-vector products with the experts chosen.

Which experts were chosen stands in the device's memory and is read there: nothing asks the host, so a graph can
capture it. A pair is a token and one of its places, [0, per_token): each is computed by itself, whatever other tokens
chose, and a token's places are added up in the order of the router's liking: equal rows, equal bits.
"""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanochat.kernels.sizes import next_power_of_2
from nanochat.kernels.triton_activation import activated
from nanochat.kernels.triton_row_products import load_weights, multiply, part_weights

_WARPS = 4  # a warp owns whole outputs, as in `triton_gemv`
_BLOCK_K = 256  # one warp's widest loads


@triton.jit
def _choose_experts(
    logits_ptr, weights_ptr, chosen_ptr,
    EXPERTS: tl.constexpr, PER_TOKEN: tl.constexpr, NORMALIZED: tl.constexpr, BLOCK: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """A row's softmax, and its largest shares; of equal ones the lower number, of what is no number any."""
    row = tl.program_id(0).to(tl.int64)
    expert, place = tl.arange(0, BLOCK), tl.arange(0, PLACES)
    there = expert < EXPERTS
    logits = tl.load(logits_ptr + row * EXPERTS + expert, mask=there, other=float("-inf")).to(tl.float32)
    shares = tl.exp(logits - tl.max(logits, 0))
    shares = shares / tl.sum(shares, 0)
    left = tl.where(there, tl.where(shares == shares, shares, 0.0), -1.0)
    weights = tl.zeros([PLACES], tl.float32)
    chosen = tl.zeros([PLACES], tl.int32)
    total = 0.0
    for i in tl.range(0, PER_TOKEN):
        best = tl.argmax(left, 0)
        share = tl.sum(tl.where(expert == best, shares, 0.0), 0)
        total += share
        weights = tl.where(place == i, share, weights)
        chosen = tl.where(place == i, best, chosen)
        left = tl.where(expert == best, -1.0, left)
    if NORMALIZED:
        weights = weights / total
    tl.store(weights_ptr + row * PER_TOKEN + place, weights, mask=place < PER_TOKEN)
    tl.store(chosen_ptr + row * PER_TOKEN + place, chosen, mask=place < PER_TOKEN)


@triton.jit
def _gate_up(
    x_ptr, w_ptr, chosen_ptr, out_ptr, x_stride,
    PER_TOKEN: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    WARPS: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """BLOCK_N of a pair's inner values. Pairs are the fast axis: who shares an expert reads it from L2."""
    pair = tl.program_id(0)
    expert = tl.load(chosen_ptr + pair).to(tl.int64)
    x_ptr += (pair // PER_TOKEN).to(tl.int64) * x_stride
    w_ptr += expert * (2 * N * K)
    EVEN: tl.constexpr = N % BLOCK_N == 0 and K % BLOCK_K == 0
    OWN: tl.constexpr = BLOCK_N // WARPS
    PARTS: tl.constexpr = OWN * 2  # the gate's tiles first, then up's
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, WARPS)
    offs_k = tl.arange(0, BLOCK_K)[None, :] + tl.arange(0, WARPS)[:, None] * 0
    squares = (tl.zeros([WARPS, BLOCK_K], tl.float32),)  # of norms: there is none here
    sums = ()
    for _ in tl.static_range(PARTS):
        sums = sums + (tl.zeros([WARPS, BLOCK_K], tl.float32),)
    for chunk in tl.range(0, (K + BLOCK_K - 1) // BLOCK_K, loop_unroll_factor=4):
        k = chunk * BLOCK_K + offs_k
        weights = ()
        for part in tl.static_range(PARTS):
            weights = weights + (part_weights(w_ptr, n, k, part, EVEN, True, PARTS, WARPS, N, K),)
        sums, squares = multiply(
            sums, squares, weights, 1.0, x_ptr, k, 0, 1, 1, K, PARTS, False, EVEN
        )  # fmt: skip
    for part in tl.static_range(OWN):
        at = n + part * WARPS
        y = activated(tl.sum(sums[part], 1), GATE) * tl.sum(sums[part + OWN], 1)
        tl.store(out_ptr + pair.to(tl.int64) * N + at, y.to(out_ptr.dtype.element_ty), mask=at < N)


@triton.jit
def _down(
    hidden_ptr, w_ptr, weights_ptr, chosen_ptr, out_ptr,
    PER_TOKEN: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    WARPS: tl.constexpr,
):  # fmt: skip
    """BLOCK_N of a token's outputs: its places one after the other, in float32, rounded once."""
    token = tl.program_id(0)
    EVEN: tl.constexpr = N % BLOCK_N == 0 and K % BLOCK_K == 0
    PARTS: tl.constexpr = BLOCK_N // WARPS
    chunks: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, WARPS)
    offs_k = tl.arange(0, BLOCK_K)[None, :] + tl.arange(0, WARPS)[:, None] * 0
    sums = ()
    for _ in tl.static_range(PARTS):
        sums = sums + (tl.zeros([WARPS, BLOCK_K], tl.float32),)
    for step in tl.range(0, PER_TOKEN * chunks, loop_unroll_factor=8):  # few programs: many loads each
        pair = token * PER_TOKEN + step // chunks
        k = (step % chunks) * BLOCK_K + offs_k
        own = w_ptr + tl.load(chosen_ptr + pair).to(tl.int64) * (N * K)
        weight = tl.load(weights_ptr + pair)
        tiles = ()
        for part in tl.static_range(PARTS):
            rows = (n + part * WARPS)[:, None].to(tl.int64)
            tiles = tiles + (load_weights(own, rows, k, EVEN, N, K),)
        hidden = tl.load(hidden_ptr + pair.to(tl.int64) * K + k, mask=k < K, other=0.0)
        hidden = hidden.to(tl.float32) * weight
        added = ()
        for part in tl.static_range(PARTS):
            added = added + (sums[part] + tiles[part].to(tl.float32) * hidden,)
        sums = added
    for part in tl.static_range(PARTS):
        at = n + part * WARPS
        y = tl.sum(sums[part], 1)
        tl.store(out_ptr + token.to(tl.int64) * N + at, y.to(out_ptr.dtype.element_ty), mask=at < N)


def choose(logits: Tensor, per_token: int, normalized: bool) -> tuple[Tensor, Tensor]:
    """The router's choice for each row of logits [T, E]: (weights, float32; experts, int32), [T, per_token] each.

    The likeliest expert comes first. Weights are softmax's shares, with `normalized` divided by the sum of those chosen.
    """
    tokens, experts = logits.shape
    weights = torch.empty(tokens, per_token, dtype=torch.float32, device=logits.device)
    chosen = torch.empty(tokens, per_token, dtype=torch.int32, device=logits.device)
    block = next_power_of_2(experts)
    _choose_experts[(tokens,)](
        logits, weights, chosen, EXPERTS=experts, PER_TOKEN=per_token, NORMALIZED=normalized, BLOCK=block,
        PLACES=next_power_of_2(per_token), num_warps=1 if block <= 512 else 4,
    )  # fmt: skip
    return weights, chosen


def few_rows(
    x: Tensor, weights: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor, activation: str
) -> Tensor:
    """Each row through its experts, [T, H]; every pair reads its expert's matrices anew, so for few rows only.

    Args:
        x: [T, H]; the row stride is free.
        weights, chosen: see `choose`.
        gate_up: [E, 2 * I, H], the gate's rows first.
        down: [E, H, I].
        activation: "silu" or "gelu_tanh".
    """
    tokens, width = x.shape
    per_token, inner = chosen.shape[1], down.shape[2]
    hidden = torch.empty(tokens * per_token, inner, dtype=x.dtype, device=x.device)
    out = torch.empty(tokens, width, dtype=x.dtype, device=x.device)
    _gate_up[(tokens * per_token, triton.cdiv(inner, _WARPS))](
        x, gate_up, chosen, hidden, x.stride(0), PER_TOKEN=per_token, N=inner, K=width, BLOCK_N=_WARPS,
        BLOCK_K=min(_BLOCK_K, next_power_of_2(width)), WARPS=_WARPS, GATE=activation, num_warps=_WARPS,
    )  # fmt: skip
    _down[(tokens, triton.cdiv(width, _WARPS))](
        hidden, down, weights, chosen, out, PER_TOKEN=per_token, N=width, K=inner, BLOCK_N=_WARPS,
        BLOCK_K=min(_BLOCK_K, next_power_of_2(inner)), WARPS=_WARPS, num_warps=_WARPS,
    )  # fmt: skip
    return out
