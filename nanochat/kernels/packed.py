"""Weights in oneDNN's blocked layout: at a few rows, a CPU multiplies by them up to three times as fast.

Packed weights also let the library add the residual, or apply the activation, while a result is still in
registers. Every call falls back to plain torch where the build or the processor has no such kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

_mkldnn = torch.ops.mkldnn
_ACTIVATIONS = {"silu": ("swish", None), "gelu_tanh": ("gelu", "tanh")}


def can_pack(weight: Tensor) -> bool:
    """Whether a weight [out, in] gains from packing here: bfloat16 or float16 that the processor multiplies itself."""
    if weight.device.type != "cpu" or weight.dim() != 2 or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(_mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float16 and bool(_mkldnn._is_mkldnn_fp16_supported())


class PackedLinear:
    """A matrix [out, in] that is only good for multiplying by."""

    __slots__ = ("_bias", "_weight")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = _mkldnn._reorder_linear_weight(weight, 1)
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, in] -> [T, out]."""
        return _mkldnn._linear_pointwise.default(x, self._weight, self._bias, "none", [], "")

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + linear(x), in new memory."""
        return _mkldnn._linear_pointwise.binary(x, residual, self._weight, self._bias, "add")


class PackedGate:
    """A gate and an up projection: activation(gate(x)) * up(x), each product finished inside its matrix multiplication."""

    __slots__ = ("_gate", "_gate_bias", "_up", "_up_bias")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        half = weight.shape[0] // 2
        self._gate = _mkldnn._reorder_linear_weight(weight[:half], 1)
        self._up = _mkldnn._reorder_linear_weight(weight[half:], 1)
        self._gate_bias = None if bias is None else bias[:half].clone()
        self._up_bias = None if bias is None else bias[half:].clone()

    def __call__(self, x: Tensor, activation: str) -> Tensor:
        """x [T, in] -> [T, out / 2]."""
        name, algorithm = _ACTIVATIONS[activation]
        gate = _mkldnn._linear_pointwise.default(x, self._gate, self._gate_bias, name, [], algorithm or "")
        return _mkldnn._linear_pointwise.binary(x, gate, self._up, self._up_bias, "mul")
