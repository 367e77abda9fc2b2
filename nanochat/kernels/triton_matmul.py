"""Matrix products whose every row has the same bits, whatever rows are beside it.

A library picks another algorithm for another number of rows, and with it another order of adding up. Here the tile
and the order over K never change: the price is speed, and it is paid only in the deterministic mode.
"""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["tokens"])
def _matmul(
    x_ptr, w_ptr, bias_ptr, out_ptr, tokens, x_stride,
    N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    BIAS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(
            x_ptr + token[:, None] * x_stride + k[None, :],
            mask=(token < tokens)[:, None] & (k < K)[None, :],
            other=0.0,
        )
        w = tl.load(
            w_ptr + n[None, :].to(tl.int64) * K + k[:, None],
            mask=(n < N)[None, :] & (k < K)[:, None],
            other=0.0,
        )
        total = tl.dot(x, w, total, input_precision="ieee")
    if BIAS:
        total += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    to = out_ptr + token[:, None] * N + n[None, :]
    tl.store(to, total.to(out_ptr.dtype.element_ty), mask=(token < tokens)[:, None] & (n < N)[None, :])


def invariant_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, narrow: bool = False
) -> Tensor:
    """x [T, K] times weight [N, K] transposed, plus bias: [T, N] in x's dtype, sums in float32.

    `narrow` is for so few outputs that tiles must be small to be many, a router's say; the sums are then not rounded.
    """
    tokens, k = x.shape
    n = weight.shape[0]
    out = torch.empty(tokens, n, dtype=torch.float32 if narrow else x.dtype, device=x.device)
    if not tokens:
        return out
    wide = x.element_size() > 2
    if narrow:
        block_m, block_n, block_k, warps = 16, 16, 64 if wide else 128, 2
    else:
        block_m, block_n, block_k, warps = (32, 32, 32, 4) if wide else (64, 64, 64, 4)
    grid = (triton.cdiv(n, block_n), triton.cdiv(tokens, block_m))
    _matmul[grid](
        x, weight, weight if bias is None else bias, out, tokens, x.stride(0), N=n, K=k, BLOCK_M=block_m,
        BLOCK_N=block_n, BLOCK_K=block_k, BIAS=bias is not None, STAGES=3, num_warps=warps,
    )  # fmt: skip
    return out
