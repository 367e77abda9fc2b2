"""The gate of a feed-forward layer: activation(gate) * up."""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def activated(gate, KIND: tl.constexpr):
    """SiLU or GELU (its tanh form) of a float32 tile."""
    if KIND == "silu":
        return gate / (1.0 + tl.exp(-gate))
    else:
        # 0.5 * (1 + tanh(z)) is the logistic function of 2 z.
        z = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        return gate / (1.0 + tl.exp(-2.0 * z))


@triton.jit
def _gate_mul(x_ptr, out_ptr, x_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < WIDTH
    gate = tl.load(x_ptr + row * x_stride + offs, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + WIDTH + offs, mask=mask, other=0.0).to(tl.float32)
    tl.store(
        out_ptr + row * WIDTH + offs, (activated(gate, KIND) * up).to(out_ptr.dtype.element_ty), mask=mask
    )


def gate_mul(gate_up: Tensor, activation: str) -> Tensor:
    """[T, 2 * I] -> activation(first half) * second half, [T, I]; "silu" or "gelu_tanh"."""
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(tokens, width, dtype=gate_up.dtype, device=gate_up.device)
    if tokens:
        grid = (tokens, triton.cdiv(width, 1024))
        _gate_mul[grid](
            gate_up, out, gate_up.stride(0), WIDTH=width, BLOCK=1024, KIND=activation, num_warps=4
        )
    return out
