"""Weights in oneDNN's blocked layout: at a few rows, a CPU multiplies by them up to twice as fast.

Where the build or the processor has no such kernels, weights stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanochat.kernels.headway import in_its_time, longer, made, moving
from nanochat.kernels.widened import Widened, emulated

_mkldnn = torch.ops.mkldnn


def can_pack(weight: Tensor) -> bool:
    """Whether a weight [out, in] gains from packing here: bfloat16 or float16 that the processor multiplies itself."""
    if weight.device.type != "cpu" or weight.dim() != 2 or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype in (torch.bfloat16, torch.float16) and weight.dtype not in emulated()


class PackedLinear:
    """A matrix [out, in] that is only good for multiplying by.

    The library can also add a residual or apply an activation within the product, but choosing such a product
    costs 4 us more a call, and the separate operation costs 1.
    """

    __slots__ = ("_bias", "_numbers", "_weight")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        with longer(moving(2 * weight.nbytes)):
            # For one row: at many it is as fast as any other.
            self._weight = _mkldnn._reorder_linear_weight(weight, 1)
        self._numbers = weight.numel()
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, in] -> [T, out]."""
        return in_its_time(
            x.shape[0] * self._numbers,
            lambda: _mkldnn._linear_pointwise.default(x, self._weight, self._bias, "none", [], ""),
        )


class Int8Linear:
    """A matrix [out, in] in 8 bits with a scale for each row: half the bytes to read for each token.

    Decoding one sequence on a CPU is waiting for weights, so half the bytes is up to twice the speed. A weight is off
    by at most 1/254 of its row's largest; activations and sums are not quantized.
    """

    __slots__ = ("_bias", "_multiply", "_scale", "_weight")

    _FEW = 32  # rows up to which the product reads the 8 bits themselves

    def __init__(self, weight: Tensor, bias: Tensor | None, multiply: Widened) -> None:
        with longer(moving(2 * weight.nbytes)):
            largest = torch.maximum(weight.amax(dim=1), weight.amin(dim=1).neg_()).float()
        self._scale = (largest / 127).clamp_(min=torch.finfo(torch.float32).tiny).to(weight.dtype)
        self._weight = torch.empty(weight.shape, dtype=torch.int8)
        for rows in torch.arange(weight.shape[0]).split(
            4096
        ):  # in parts: float32 needs twice the room of the weight
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            levels = weight[part].float().div_(self._scale[part, None].float()).round_().clamp_(-127, 127)
            self._weight[part].copy_(levels)
            made()
        self._bias = bias
        self._multiply = multiply

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, in] -> [T, out]."""
        if x.shape[0] <= self._FEW:
            product = torch.ops.aten._weight_int8pack_mm(x.contiguous(), self._weight, self._scale)
        else:
            product = self._multiply(x, self._weight).mul_(self._scale)
        return product if self._bias is None else product.add_(self._bias)
