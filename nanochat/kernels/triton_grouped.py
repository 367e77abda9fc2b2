"""A mixture of experts for many rows: pairs sorted by expert, a product for each group, and each token's places added up.

A pair is a token and one of its places, [0, per_token). Sorting, products and sums ask nothing of the host, so a graph can
capture them. Nothing is added by atomics: a token's places come in the order of the router's liking, the same each time.
With `steady` the tiles never change either, so that a row's bits do not depend on the rows beside it (`triton_matmul`).
"""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from nanochat.kernels.sizes import next_power_of_2
from nanochat.kernels.triton_activation import activated, gate_mul

_LIBRARY_GROUPS = 1024  # torch's grouped product takes fewer


@triton.jit(do_not_specialize=["pairs"])
def _sort(chosen_ptr, ends_ptr, order_ptr, place_ptr, pairs, BLOCK: tl.constexpr):
    """A program an expert: where its group ends, which pairs are in it, and where each of those went."""
    expert = tl.program_id(0)
    before = 0
    own = 0
    for start in tl.range(0, pairs, BLOCK):
        pair = start + tl.arange(0, BLOCK)
        chosen = tl.load(chosen_ptr + pair, mask=pair < pairs, other=2147483647)
        before += tl.sum((chosen < expert).to(tl.int32), 0)
        own += tl.sum((chosen == expert).to(tl.int32), 0)
    tl.store(ends_ptr + expert, before + own)
    if own > 0:
        for start in tl.range(0, pairs, BLOCK):
            pair = start + tl.arange(0, BLOCK)
            mine = tl.load(chosen_ptr + pair, mask=pair < pairs, other=-1) == expert
            place = before + tl.cumsum(mine.to(tl.int32), 0) - 1
            tl.store(order_ptr + place, pair, mask=mine)
            tl.store(place_ptr + pair, place, mask=mine)
            before += tl.sum(mine.to(tl.int32), 0)


@triton.jit
def _grouped(
    x_ptr, w_ptr, ends_ptr, order_ptr, out_ptr, x_stride,
    EXPERTS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GATE: tl.constexpr, PER_TOKEN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A tile of one group's product. Groups are tiled one after the other: the last programs may find none.

    With PER_TOKEN, x has a row for each token; without, one for each pair, sorted. With GATE, w has N rows of the gate and
    N of the up projection.
    """
    tile = tl.program_id(1)
    e = tl.arange(0, BLOCK_E)
    there = e < EXPERTS
    ends = tl.load(ends_ptr + e, mask=there, other=0)
    begins = tl.load(ends_ptr + e - 1, mask=there & (e > 0), other=0)
    tiles = (ends - begins + BLOCK_M - 1) // BLOCK_M
    tile_ends = tl.cumsum(tiles, 0)
    expert = tl.sum((there & (tile_ends <= tile)).to(tl.int32), 0)
    if expert < EXPERTS:
        first = begins + (tile - (tile_ends - tiles)) * BLOCK_M
        row = tl.sum(tl.where(e == expert, first, 0), 0) + tl.arange(0, BLOCK_M)
        there_m = row < tl.sum(tl.where(e == expert, ends, 0), 0)
        source = row
        if PER_TOKEN > 0:
            source = tl.load(order_ptr + row, mask=there_m, other=0) // PER_TOKEN
        n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        GATED: tl.constexpr = GATE != ""
        x_rows = x_ptr + source[:, None].to(tl.int64) * x_stride
        w_rows = w_ptr + expert.to(tl.int64) * (N * K * (2 if GATED else 1)) + n[None, :].to(tl.int64) * K
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
            k = start + tl.arange(0, BLOCK_K)
            x = tl.load(x_rows + k[None, :], mask=there_m[:, None] & (k < K)[None, :], other=0.0)
            mask = (n < N)[None, :] & (k < K)[:, None]
            if GATED:
                w = tl.load(w_rows + k[:, None], mask=mask, other=0.0)
                gate = tl.dot(x, w, gate, input_precision="ieee")
            w = tl.load(w_rows + ((N * K if GATED else 0) + k[:, None]), mask=mask, other=0.0)
            total = tl.dot(x, w, total, input_precision="ieee")
        if GATED:
            total = activated(gate, GATE) * total
        to = out_ptr + row[:, None].to(tl.int64) * N + n[None, :]
        tl.store(to, total.to(out_ptr.dtype.element_ty), mask=there_m[:, None] & (n < N)[None, :])


@triton.jit
def _sum_places(
    products_ptr, weights_ptr, place_ptr, out_ptr, WIDTH: tl.constexpr, PER_TOKEN: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A token's products times their weights, one place after the other, in float32."""
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for i in tl.range(0, PER_TOKEN):
        row = tl.load(place_ptr + token * PER_TOKEN + i).to(tl.int64)
        weight = tl.load(weights_ptr + token * PER_TOKEN + i)
        product = tl.load(products_ptr + row * WIDTH + n, mask=n < WIDTH, other=0.0)
        total += product.to(tl.float32) * weight
    tl.store(out_ptr + token * WIDTH + n, total.to(out_ptr.dtype.element_ty), mask=n < WIDTH)


@dataclass(frozen=True, slots=True)
class Groups:
    """The pairs of a step, sorted by expert; pairs of one expert keep their order. All int32.

    Attributes:
        ends: [E], where each expert's group ends.
        order: [pairs], the pair that stands in each place.
        place: [pairs], where each pair stands.
    """

    ends: Tensor
    order: Tensor
    place: Tensor


def sort_pairs(chosen: Tensor, experts: int) -> Groups:
    """The groups of a choice [T, per_token]."""
    pairs = chosen.numel()
    ends = torch.empty(experts, dtype=torch.int32, device=chosen.device)
    order, place = torch.empty(2, pairs, dtype=torch.int32, device=chosen.device)
    _sort[(experts,)](
        chosen, ends, order, place, pairs, BLOCK=256 if pairs <= 256 else 2048, num_warps=4
    )  # fmt: skip
    return Groups(ends, order, place)


def grouped_product(
    x: Tensor,
    weight: Tensor,
    groups: Groups,
    *,
    per_token: int = 0,
    activation: str = "",
    steady: bool = False,
) -> Tensor:
    """Each pair's row times the matrix of its expert, sorted: [pairs, N] in x's dtype, sums in float32.

    Args:
        x: [T, K] with `per_token`, a pair's row being its token's; else [pairs, K], sorted.
        weight: [E, N, K]; with `activation` [E, 2 * N, K], the gate's rows first.
        activation: "", or "silu" or "gelu_tanh" for activation(gate) * up.
        steady: the same tiles whatever the number of rows.
    """
    (experts, n, k), pairs = weight.shape, groups.order.shape[0]
    n = n // 2 if activation else n
    out = torch.empty(pairs, n, dtype=x.dtype, device=x.device)
    many = not steady and pairs > 32 * experts
    block_m = 64 if many and x.element_size() == 2 else 32
    block = 64 if x.element_size() == 2 else 32
    most = min(pairs, experts) + pairs // block_m  # a part of a tile for each group, and the whole ones
    _grouped[(triton.cdiv(n, block), most)](
        x, weight, groups.ends, groups.order, out, x.stride(0), EXPERTS=experts, N=n, K=k,
        BLOCK_E=next_power_of_2(experts), BLOCK_M=block_m, BLOCK_N=block, BLOCK_K=block, GATE=activation,
        PER_TOKEN=per_token, STAGES=3, num_warps=4,
    )  # fmt: skip
    return out


def sum_places(products: Tensor, weights: Tensor, groups: Groups) -> Tensor:
    """Sorted products [pairs, H] and float32 weights [T, per_token] -> [T, H]."""
    (tokens, per_token), width = weights.shape, products.shape[1]
    out = torch.empty(tokens, width, dtype=products.dtype, device=products.device)
    _sum_places[(tokens, triton.cdiv(width, 1024))](
        products, weights, groups.place, out, WIDTH=width, PER_TOKEN=per_token, BLOCK=1024, num_warps=4
    )
    return out


def many_rows(
    x: Tensor,
    weights: Tensor,
    chosen: Tensor,
    gate_up: Tensor,
    down: Tensor,
    activation: str,
    *,
    library: bool = False,
    steady: bool = False,
) -> Tensor:
    """As `few_rows`, for any number of rows. `library`: by torch's grouped products (see `library_takes`)."""
    groups = sort_pairs(chosen, gate_up.shape[0])
    per_token = chosen.shape[1]
    if library:
        sorted_x = x.index_select(0, groups.order // per_token)
        hidden = gate_mul(F.grouped_mm(sorted_x, gate_up.transpose(1, 2), offs=groups.ends), activation)
        products = F.grouped_mm(hidden, down.transpose(1, 2), offs=groups.ends)
    else:
        hidden = grouped_product(
            x, gate_up, groups, per_token=per_token, activation=activation, steady=steady
        )
        products = grouped_product(hidden, down, groups, steady=steady)
    return sum_places(products, weights, groups)


def library_takes(x: Tensor, gate_up: Tensor, major: int) -> bool:
    """Whether torch's grouped products take these experts without asking the host, on a chip of capability `major`.

    They do for bfloat16 on sm_90 and sm_100 and the chips of their families, in kernels of CUTLASS that read where groups end on
    the device. Anything else falls to a loop over `offs.cpu()`, which waits for the device and which no capture may: read in
    torch's `_grouped_mm_cuda` (GroupedBlas.cpp), the kernels (GroupMM.cu) and the loop (GroupedMMUtils.h, also as it comes
    with torch 2.13). The kernels want rows of whole 16 bytes.
    """
    experts, inner, width = gate_up.shape[0], gate_up.shape[1] // 2, gate_up.shape[2]
    whole = inner % 8 == 0 and width % 8 == 0
    return x.dtype == torch.bfloat16 and major in (9, 10) and whole and experts < _LIBRARY_GROUPS
