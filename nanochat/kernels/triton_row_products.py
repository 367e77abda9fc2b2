"""Rows times a matrix on the arithmetic units, piece by piece: tiles of weights, their products, and the end of a result.

A warp owns whole outputs, so that adding up needs no barrier. Sums are float32.
"""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl

from nanochat.kernels.triton_activation import activated


@triton.jit
def load_weights(w_ptr, rows, k, EVEN: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """A tile of a matrix [N, K]; rows and k are index tiles that broadcast to its shape."""
    if EVEN:
        return tl.load(w_ptr + rows * K + k, eviction_policy="evict_first")
    else:
        return tl.load(
            w_ptr + rows * K + k, mask=(rows < N) & (k < K), other=0.0, eviction_policy="evict_first"
        )


@triton.jit
def part_weights(
    w_ptr, n, k, part: tl.constexpr,
    EVEN: tl.constexpr, GATED: tl.constexpr, PARTS: tl.constexpr, WARPS: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Tile `part` of a program's weights [WARPS, BLOCK_K]; of a gated matrix, the second half are rows from N on."""
    own: tl.constexpr = PARTS // 2 if GATED else PARTS
    rows = (n + (part % own) * WARPS)[:, None].to(tl.int64)
    return load_weights(w_ptr + (N * K if part >= own else 0), rows, k, EVEN, N, K)


@triton.jit
def multiply(
    sums, squares, weights, scale, x_ptr, k, x_stride, num_rows,
    ROWS: tl.constexpr, K: tl.constexpr, PARTS: tl.constexpr, NORM: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One chunk's products added to `sums` (part by part, row by row), and x's squares to `squares`."""
    xs = ()
    new_squares = ()
    for row in tl.static_range(ROWS):
        if WHOLE:
            x = tl.load(x_ptr + k).to(tl.float32)
        else:
            x = tl.load(x_ptr + row * x_stride + k, mask=(k < K) & (row < num_rows), other=0.0).to(tl.float32)
        if NORM:
            new_squares = new_squares + (squares[row] + x * x,)
            x = x * scale.to(tl.float32)
        else:
            new_squares = new_squares + (squares[row],)
        xs = xs + (x,)
    new_sums = ()
    for part in tl.static_range(PARTS):
        w = weights[part].to(tl.float32)
        for row in tl.static_range(ROWS):
            new_sums = new_sums + (sums[part * ROWS + row] + w * xs[row],)
    return new_sums, new_squares


@triton.jit
def finish(
    y, gate, bias, gate_bias, residual, BIAS: tl.constexpr, GATE: tl.constexpr, RESIDUAL: tl.constexpr
):
    """Bias, gate and residual of results y (and gate), all float32."""
    if BIAS:
        y += bias
        if GATE != "":
            gate += gate_bias
    if GATE != "":
        y = activated(gate, GATE) * y
    if RESIDUAL:
        y += residual
    return y
