"""Products in float32 of matrices in 16 bits, for a processor that does not multiply 16 bits itself.

There the libraries under torch convert a number wherever they use it, and read a prompt at a quarter of float32's speed.
Here a part of the matrix is converted once for all rows, and is still in the cache when they use it.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.kernels.headway import in_its_time, made

FEW = 8  # with fewer rows, converting the matrix costs more than it saves
_PART = 2**20  # numbers of a matrix that are converted at a time: 4 MiB


def emulated() -> frozenset[torch.dtype]:
    """The 16-bit dtypes whose products are no instructions of this processor.

    Asked of the processor, not measured: a seed gives the same reply after a restart, whatever else the machine did.
    """
    own = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    there = torch.backends.mkldnn.is_available()
    return frozenset(dtype for dtype, supported in own.items() if not there or not supported())


class Widened:
    """`F.linear` on a CPU; of the dtypes given in float32, rounded once at its end."""

    def __init__(self, dtypes: Collection[torch.dtype]) -> None:
        self.dtypes = dtypes
        self._room = torch.empty(0)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [T, in], weight [out, in] -> [T, out]."""
        if x.dtype not in self.dtypes or x.shape[0] < FEW:
            return in_its_time(x.shape[0] * weight.numel(), lambda: F.linear(x, weight, bias))
        wide = x.float()
        out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype)
        lines = max(1, _PART // weight.shape[1])
        for first in range(0, weight.shape[0], lines):
            part = slice(first, first + lines)
            added = None if bias is None else bias[part].float()
            out[:, part] = F.linear(wide, self._converted(weight[part]), added)
            made()
        return out

    def _converted(self, part: Tensor) -> Tensor:
        """A part of a matrix in float32, until the next one is written over it."""
        if self._room.numel() < part.numel():
            self._room = torch.empty(part.numel())
        return self._room[: part.numel()].view(part.shape).copy_(part)
