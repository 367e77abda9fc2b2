"""A few rows times a matrix on the matrix units; see `triton_gemv`, which launches this where it is faster."""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl

from nanochat.kernels.triton_row_products import finish, load_weights


@triton.jit
def _request_to_l2(w_ptr, first_row, num_rows, K: tl.constexpr, BYTES: tl.constexpr, PIECES: tl.constexpr):
    """Ask for `num_rows` whole rows of [N, K] to be brought into L2, a piece a thread (sm_90 and later)."""
    piece: tl.constexpr = 512
    at = w_ptr.to(tl.int64) + first_row * (K * BYTES) + tl.arange(0, PIECES).to(tl.int64) * piece
    left = num_rows * (K * BYTES) - tl.arange(0, PIECES) * piece
    size = tl.minimum(tl.maximum(left, 0), piece)
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.gt.s32 p, $2, 0; @p cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, $2; }",
        "=r,l,r", [at, size.to(tl.int32)], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows"])
def gemv_dot(
    x_ptr, w_ptr, norm_ptr, bias_ptr, residual_ptr, out_ptr, eps, num_rows, x_stride, residual_stride,
    ROWS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    NORM: tl.constexpr, BIAS: tl.constexpr, GATE: tl.constexpr, RESIDUAL: tl.constexpr,
    STAGES: tl.constexpr, PREFETCH: tl.constexpr, PIECES: tl.constexpr, PDL: tl.constexpr, LATE: tl.constexpr,
):  # fmt: skip
    """Rows on the matrix units: a tile of weights times x transposed, ROWS (a power of two, 8 or more) columns."""
    if PDL and not LATE:
        tl.extra.cuda.gdc_launch_dependents()
    EVEN: tl.constexpr = N % BLOCK_N == 0 and K % BLOCK_K == 0
    first = tl.program_id(0) * BLOCK_N
    n = first + tl.arange(0, BLOCK_N)
    valid = n < N
    rows = n[:, None].to(tl.int64)
    if PDL:
        if PREFETCH:
            count = tl.minimum(BLOCK_N, N - first)
            _request_to_l2(
                w_ptr, first.to(tl.int64), count, K, w_ptr.dtype.element_ty.primitive_bitwidth // 8, PIECES
            )
            if GATE != "":
                bits: tl.constexpr = w_ptr.dtype.element_ty.primitive_bitwidth
                _request_to_l2(w_ptr, first.to(tl.int64) + N, count, K, bits // 8, PIECES)
        tl.extra.cuda.gdc_wait()
        if LATE:
            tl.extra.cuda.gdc_launch_dependents()
    column = tl.arange(0, ROWS)
    total = tl.zeros([BLOCK_N, ROWS], tl.float32)
    gate_total = tl.zeros([BLOCK_N, ROWS], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    for chunk in tl.range(0, (K + BLOCK_K - 1) // BLOCK_K, num_stages=STAGES):
        k = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
        x = tl.load(
            x_ptr + column[None, :] * x_stride + k[:, None],
            mask=(k < K)[:, None] & (column < num_rows)[None, :],
            other=0.0,
        )
        if NORM:
            wide = x.to(tl.float32)
            squares += tl.sum(wide * wide, 0)
            x = (wide * tl.load(norm_ptr + k, mask=k < K, other=0.0).to(tl.float32)[:, None]).to(
                w_ptr.dtype.element_ty
            )
        w = load_weights(w_ptr, rows, k[None, :], EVEN, N, K)
        if GATE != "":
            gate_total = tl.dot(w, x, gate_total, input_precision="ieee")
            w = load_weights(w_ptr + N * K, rows, k[None, :], EVEN, N, K)
        total = tl.dot(w, x, total, input_precision="ieee")
    if NORM:
        inverse = tl.rsqrt(squares / K + eps)[None, :]
        total *= inverse
        gate_total *= inverse
    mask = valid[:, None] & (column < num_rows)[None, :]
    at = n[:, None]
    bias = total
    gate_bias = total
    residual = total
    if BIAS:
        bias = tl.load(bias_ptr + at + (N if GATE != "" else 0), mask=valid[:, None], other=0.0).to(
            tl.float32
        )
        if GATE != "":
            gate_bias = tl.load(bias_ptr + at, mask=valid[:, None], other=0.0).to(tl.float32)
    if RESIDUAL:
        residual = tl.load(residual_ptr + column[None, :] * residual_stride + at, mask=mask, other=0.0).to(
            tl.float32
        )
    y = finish(total, gate_total, bias, gate_bias, residual, BIAS, GATE, RESIDUAL)
    tl.store(out_ptr + column[None, :] * N + at, y.to(out_ptr.dtype.element_ty), mask=mask)
