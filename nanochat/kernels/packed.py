"""Weights in oneDNN's blocked layout: at a few rows, a CPU multiplies by them up to twice as fast.

Where the build or the processor has no such kernels, weights stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanochat.kernels.headway import in_its_time, longer, moving
from nanochat.kernels.widened import emulated

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
