"""Weights in oneDNN's blocked layout: at a few rows, a CPU multiplies by them up to twice as fast.

Where the build or the processor has no such kernels, weights stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

_mkldnn = torch.ops.mkldnn


def can_pack(weight: Tensor) -> bool:
    """Whether a weight [out, in] gains from packing here: bfloat16 or float16 that the processor multiplies itself."""
    if weight.device.type != "cpu" or weight.dim() != 2 or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(_mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float16 and bool(_mkldnn._is_mkldnn_fp16_supported())


class PackedLinear:
    """A matrix [out, in] that is only good for multiplying by.

    The library can also add a residual or apply an activation within the product, but choosing such a product
    costs 4 us more a call, and the separate operation costs 1.
    """

    __slots__ = ("_bias", "_weight")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = _mkldnn._reorder_linear_weight(
            weight, 1
        )  # for one row: at many it is as fast as any other
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, in] -> [T, out]."""
        return _mkldnn._linear_pointwise.default(x, self._weight, self._bias, "none", [], "")
