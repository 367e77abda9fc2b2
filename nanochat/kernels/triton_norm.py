"""RMSNorm (Zhang and Sennrich, 2019), alone or with the residual added before it."""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanochat.kernels.sizes import next_power_of_2


@triton.jit
def _rms_norm(
    x_ptr, delta_ptr, weight_ptr, sum_ptr, out_ptr, eps, x_stride, delta_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    mask = offs < WIDTH
    weight = tl.load(weight_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + row * x_stride + offs, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(delta_ptr + row * delta_stride + offs, mask=mask, other=0.0).to(tl.float32)
        kept = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * WIDTH + offs, kept, mask=mask)
        x = kept.to(tl.float32)  # the norm is of the residual as it is stored
    inverse = tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)
    tl.store(out_ptr + row * WIDTH + offs, (x * inverse * weight).to(out_ptr.dtype.element_ty), mask=mask)


def _launch(
    x: Tensor, delta: Tensor | None, weight: Tensor, total: Tensor | None, out: Tensor, eps: float
) -> None:
    width = x.shape[-1]
    block = next_power_of_2(width)
    _rms_norm[(x.shape[0],)](
        x, x if delta is None else delta, weight, out if total is None else total, out, eps,
        x.stride(0), x.stride(0) if delta is None else delta.stride(0),
        WIDTH=width, BLOCK=block, ADD=delta is not None, num_warps=min(8, max(1, block // 512)),
    )  # fmt: skip


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / rms(x) * weight` over the last axis, in float32, rounded once to x's dtype."""
    rows = x.reshape(-1, x.shape[-1])
    out = torch.empty(rows.shape, dtype=x.dtype, device=x.device)
    if rows.shape[0]:
        _launch(rows, None, weight, None, out, eps)
    return out.view(x.shape)


def add_rms_norm(delta: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(the norm of x + delta, x + delta), both [T, H] in new memory."""
    out, total = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
    )
    if x.shape[0]:
        _launch(x, delta, weight, total, out, eps)
    return out, total
