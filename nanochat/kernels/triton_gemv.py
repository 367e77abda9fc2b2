"""Matrix-vector products for one to eight rows: bound by reading the weights once.

One kernel does a projection with what surrounds it: RMSNorm before (the weights are applied to `norm * x`, and the
inverse rms, summed on the side, scales the result), bias, gate activation or residual after. Weights do not depend
on the kernel before, so under programmatic dependent launch the first `prefetch` chunks are requested before the
wait: into registers, or, in the matrix-unit form, into L2.

Accumulation is float32 throughout, in an order that only the configuration decides: equal inputs, equal bits.
"""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanochat.kernels.gemv_config import GemvConfig, GemvShape, default_config
from nanochat.kernels.triton_activation import gate_mul
from nanochat.kernels.triton_gemv_dot import gemv_dot
from nanochat.kernels.triton_inbox import following
from nanochat.kernels.triton_norm import rms_norm
from nanochat.kernels.triton_outlet import Outlet, send_results
from nanochat.kernels.triton_row_products import finish, multiply, part_weights

MAX_ROWS = 8


@triton.jit(do_not_specialize=["num_rows"])
def _gemv(
    x_ptr, w_ptr, norm_ptr, bias_ptr, residual_ptr, out_ptr, eps, num_rows, x_stride, residual_stride,
    inboxes, rounds_ptr, room, capacity, ROWS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    WARPS: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr, GATE: tl.constexpr, RESIDUAL: tl.constexpr,
    PREFETCH: tl.constexpr, PDL: tl.constexpr, LATE: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr,
    COMPILED: tl.constexpr,
):  # fmt: skip
    """Rows on the arithmetic units: each thread multiplies its weights with every row of x.

    Tiles are [WARPS, BLOCK_K], BLOCK_N / WARPS of them: a warp owns whole outputs, so that adding up needs no
    barrier, and each thread loads just the part of x that its weights meet.
    """
    if PDL and not LATE:
        tl.extra.cuda.gdc_launch_dependents()
    chunks: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    EVEN: tl.constexpr = N % BLOCK_N == 0 and K % BLOCK_K == 0
    GATED: tl.constexpr = GATE != ""
    early: tl.constexpr = PREFETCH if PREFETCH < chunks else chunks
    PARTS: tl.constexpr = BLOCK_N // WARPS * (2 if GATED else 1)  # gated: the gate's tiles first, then up's
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, WARPS)
    offs_k = tl.arange(0, BLOCK_K)[None, :] + tl.arange(0, WARPS)[:, None] * 0
    ahead = ()
    scales = ()
    for chunk in tl.static_range(early):
        k = chunk * BLOCK_K + offs_k
        for part in tl.static_range(PARTS):
            ahead = ahead + (part_weights(w_ptr, n, k, part, EVEN, GATED, PARTS, WARPS, N, K),)
        if NORM:
            scales = scales + (tl.load(norm_ptr + k, mask=k < K, other=0.0),)
    biases = ()
    gate_biases = ()
    for part in tl.static_range(BLOCK_N // WARPS):
        at = n + part * WARPS
        if BIAS:
            biases = biases + (
                tl.load(bias_ptr + at + (N if GATED else 0), mask=at < N, other=0.0).to(tl.float32),
            )
        if BIAS and GATED:
            gate_biases = gate_biases + (tl.load(bias_ptr + at, mask=at < N, other=0.0).to(tl.float32),)
    if PDL:
        tl.extra.cuda.gdc_wait()
        if LATE:
            tl.extra.cuda.gdc_launch_dependents()
    round_ = 0
    if RANKS > 0:
        tl.static_assert(ROWS == 1)
        round_ = following(tl.load(rounds_ptr))
    residuals = ()
    for part in tl.static_range(BLOCK_N // WARPS):
        for row in tl.static_range(ROWS):
            if RESIDUAL:
                at = n + part * WARPS
                residual = tl.load(
                    residual_ptr + row * residual_stride + at, mask=(at < N) & (row < num_rows), other=0.0
                )
                residuals = residuals + (residual.to(tl.float32),)
    sums = ()
    squares = ()
    for _ in tl.static_range(PARTS * ROWS):
        sums = sums + (tl.zeros([WARPS, BLOCK_K], tl.float32),)
    for _ in tl.static_range(ROWS):
        squares = squares + (tl.zeros([WARPS, BLOCK_K], tl.float32),)
    for chunk in tl.static_range(early):
        scale = scales[chunk] if NORM else 1.0
        weights = ahead[chunk * PARTS : (chunk + 1) * PARTS]
        sums, squares = multiply(
            sums, squares, weights, scale, x_ptr, chunk * BLOCK_K + offs_k, x_stride, num_rows,
            ROWS, K, PARTS, NORM, ROWS == 1 and EVEN,
        )  # fmt: skip
    for chunk in tl.range(early, chunks, loop_unroll_factor=4):
        k = chunk * BLOCK_K + offs_k
        scale = tl.load(norm_ptr + k, mask=k < K, other=0.0) if NORM else 1.0
        weights = ()
        for part in tl.static_range(PARTS):
            weights = weights + (part_weights(w_ptr, n, k, part, EVEN, GATED, PARTS, WARPS, N, K),)
        sums, squares = multiply(
            sums,
            squares,
            weights,
            scale,
            x_ptr,
            k,
            x_stride,
            num_rows,
            ROWS,
            K,
            PARTS,
            NORM,
            ROWS == 1 and EVEN,
        )
    for part in tl.static_range(BLOCK_N // WARPS):
        for row in tl.static_range(ROWS):
            gate = tl.sum(sums[part * ROWS + row], 1)
            y = tl.sum(sums[(part + BLOCK_N // WARPS) * ROWS + row], 1) if GATED else gate
            if NORM:
                inverse = tl.rsqrt(tl.sum(squares[row], 1) / K + eps)
                y *= inverse
                gate *= inverse
            y = finish(
                y, gate, biases[part] if BIAS else y, gate_biases[part] if BIAS and GATED else y,
                residuals[part * ROWS + row] if RESIDUAL else y, BIAS, GATE, RESIDUAL,
            )  # fmt: skip
            at = n + part * WARPS
            mask = (at < N) & (row < num_rows)
            if RANKS > 0:
                send_results(y, at, round_, mask, inboxes, room, capacity, RANK, RANKS, COMPILED)
            else:
                tl.store(out_ptr + row * N + at, y.to(out_ptr.dtype.element_ty), mask=mask)


def gemv(
    x: Tensor, weight: Tensor, *, out: Tensor | None = None, config: GemvConfig | None = None,
    norm: Tensor | None = None, eps: float = 0.0, bias: Tensor | None = None, residual: Tensor | None = None,
    activation: str = "", out_dtype: torch.dtype | None = None, pdl: bool = False, late: bool = False, to: Outlet | None = None,
) -> Tensor:  # fmt: skip
    """`residual + f(rms_norm(x, norm) @ weight.T + bias)` for up to eight rows.

    Args:
        x: [rows, K]; the row stride is free.
        weight: [N, K] contiguous; with `activation` [2 * N, K], the gate's rows first.
        out: [rows, N] contiguous; may be `residual`.
        norm: [K]; `None` leaves x as it is.
        residual: [rows, N].
        activation: "", or "silu" or "gelu_tanh" for activation(gate) * up.
        pdl: a programmatic dependent launch (sm_90 and later).
        late: let the next kernel start only after this one's wait, so that it may read before its own wait
            whatever was written two kernels earlier or before.
        to: send the result of one row there instead, float32; then `out` is not written.
    """
    rows, k = x.shape
    n = weight.shape[0] // 2 if activation else weight.shape[0]
    if out is None:
        out = torch.empty(rows, n, dtype=out_dtype or x.dtype, device=x.device)
    config = config or default_config(GemvShape.of(rows, n, k, bool(activation), norm is not None))
    if config.library:
        assert to is None
        return _by_library(x, weight, out, norm, eps, bias, residual, activation)
    kernel, grid, arguments, constants = _launch(
        x, weight, out, config, norm, eps, bias, residual, activation, pdl, late, to
    )
    kernel[grid](*arguments, **constants)
    return out


def compile_gemv(shape: GemvShape, config: GemvConfig, *, dtype: torch.dtype, pdl: bool) -> object:
    """The kernel of a product as it is measured: a promise of it inside Triton's `AsyncCompileMode`; None of a library's."""
    if config.library:
        return None
    x = torch.empty(shape.rows, shape.k, dtype=dtype, device="meta")
    weight = torch.empty(shape.n * (2 if shape.gated else 1), shape.k, dtype=dtype, device="meta")
    kernel, grid, arguments, constants = _launch(
        x, weight, x.new_empty(shape.rows, shape.n), config, x[0] if shape.norm else None, 1e-6, None, None,
        "silu" if shape.gated else "", pdl, False, None,
    )  # fmt: skip
    return kernel.run(*arguments, grid=grid, warmup=True, **constants)


def _launch(
    x: Tensor, weight: Tensor, out: Tensor, config: GemvConfig, norm: Tensor | None, eps: float, bias: Tensor | None,
    residual: Tensor | None, activation: str, pdl: bool, late: bool, to: Outlet | None,
) -> tuple[Any, tuple[int], tuple[Any, ...], dict[str, Any]]:  # fmt: skip
    """(kernel, grid, arguments, constants) of a product that is our own."""
    (rows, k), n = x.shape, out.shape[1]
    arguments = (
        x, weight, weight if norm is None else norm, weight if bias is None else bias,
        out if residual is None else residual, out, eps, rows, x.stride(0), n if residual is None else residual.stride(0),
    )  # fmt: skip
    constants: dict[str, Any] = {
        "NORM": norm is not None, "BIAS": bias is not None, "GATE": activation, "RESIDUAL": residual is not None,
        "N": n, "K": k, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "PDL": pdl, "LATE": late,
        "num_warps": config.warps, **({"launch_pdl": True} if pdl else {}),
    }  # fmt: skip
    grid = (triton.cdiv(n, config.block_n),)
    if config.dot:
        assert to is None
        pieces = triton.next_power_of_2(triton.cdiv(config.block_n * k * weight.element_size(), 512))
        own = {"ROWS": 8, "STAGES": config.stages, "PREFETCH": config.prefetch > 0, "PIECES": pieces}
        return gemv_dot, grid, arguments, constants | own
    sent = (0, out, 0, 0) if to is None else (to.inboxes, to.rounds, to.rows, to.words)
    own = {
        "ROWS": triton.next_power_of_2(rows), "WARPS": config.warps, "PREFETCH": config.prefetch,
        "RANK": 0 if to is None else to.rank, "RANKS": 0 if to is None else to.ranks,
        "COMPILED": to is not None and to.compiled,
    }  # fmt: skip
    return _gemv, grid, (*arguments, *sent), constants | own


def _by_library(
    x: Tensor, weight: Tensor, out: Tensor, norm: Tensor | None, eps: float, bias: Tensor | None,
    residual: Tensor | None, activation: str,
) -> Tensor:  # fmt: skip
    """The same in separate launches around cuBLAS."""
    if norm is not None:
        x = rms_norm(x, norm, eps)
    y = torch.nn.functional.linear(x, weight, bias)
    if activation:
        y = gate_mul(y, activation)
    return out.copy_(y if residual is None else y + residual)
