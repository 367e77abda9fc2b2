"""The decoder's operations on an x86-64 CPU: machine code of our own at few rows, plain torch at many.

Decoding on a CPU waits for two things: the weights to arrive from memory, and the calls. An operation of torch costs
some 3 us and a waking thread more, of which a layer needs twenty; here it is five calls, each of which keeps all
threads busy. From 17 rows on arithmetic is what costs, and the libraries under torch do that best: in float32 where the
processor does not multiply 16 bits.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from ctypes import addressof, c_int32, c_int64
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nanochat.kernels import cpu_attention, cpu_matmul
from nanochat.kernels.bundle import AttentionSpec, Reduce
from nanochat.kernels.cpu_matmul import ADDED, GELU, MOST_ROWS, PLAIN, SILU
from nanochat.kernels.layout import AttentionLayout
from nanochat.kernels.native import NativeCode, Team
from nanochat.kernels.paged_attention import PagedPlan
from nanochat.kernels.reference import ReferenceKernels, Rotation
from nanochat.kernels.widened import Widened

_Products = c_int64 * cpu_matmul.SIZE
_Attention = c_int64 * cpu_attention.SIZE
_TICKET_BYTES = 32 * 1024  # of weights: a microsecond's reading
_MOST_TICKETS = 64


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight [out, in] as it was read, with what a call needs to know of it."""

    weight: Tensor
    bias: Tensor | None
    address: int
    bias_address: int
    multiply: Widened

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, in] -> [T, out], by torch."""
        return self.multiply(x, self.weight, self.bias)


class CpuPlan:
    """A step's sequences, as machine code and plain torch want them."""

    def __init__(self, layout: AttentionLayout) -> None:
        self._layout = layout
        self.rows = layout.slots.shape[0]
        self.slots = layout.slots
        self.tables = layout.block_tables
        self.few = 0 < self.rows <= MOST_ROWS and sum(layout.query_lens) == self.rows
        if self.few:
            lengths = list(zip(layout.query_lens, layout.contexts, strict=True))
            owners = [s for s, (count, _) in enumerate(lengths) for _ in range(count)]
            contexts = [context - count + r + 1 for count, context in lengths for r in range(count)]
            self.owners, self.contexts = (c_int32 * self.rows)(*owners), (c_int32 * self.rows)(*contexts)

    @cached_property
    def paged(self) -> PagedPlan:
        """For plain torch."""
        return PagedPlan(self._layout)


class CpuKernels(ReferenceKernels):
    """See `Kernels`. What machine code does not know is left to plain torch.

    Args:
        threads: as many as torch uses, if not given.
        widened: see `ReferenceKernels`.
    """

    def __init__(
        self,
        device: torch.device,
        code: NativeCode,
        *,
        threads: int | None = None,
        int8_weights: bool = False,
        widened: Collection[torch.dtype] | None = None,
    ) -> None:
        super().__init__(device, int8_weights=int8_weights, widened=widened)
        self._code = code
        self._team = Team(code, threads or torch.get_num_threads())

    def describe(self, dtype: torch.dtype) -> str:
        """See `Kernels`."""
        if dtype != torch.bfloat16 or self.int8_weights:
            return super().describe(dtype)
        dots = "bfloat16 products" if self._code.dots else "float32 products of bfloat16"
        above = "torch in float32" if dtype in self.multiply.dtypes else "torch with oneDNN"
        return f"machine code by LLVM up to {MOST_ROWS} rows ({dots}), {above} above, bfloat16 matrices"

    def pack(self, weight: Tensor, bias: Tensor | None = None) -> Any:
        """See `Kernels`."""
        fits = weight.dtype == torch.bfloat16 and weight.shape[0] % 16 == 0 and weight.shape[1] % 32 == 0
        if self.int8_weights or not fits or not weight.is_contiguous():
            return super().pack(weight, bias)
        bias_address = 0 if bias is None else bias.data_ptr()
        return Matrix(weight, bias, weight.data_ptr(), bias_address, self.multiply)

    def plan(self, layout: AttentionLayout) -> Any:
        """See `Kernels`."""
        return CpuPlan(layout)

    def linear(self, x: Tensor, weight: Any) -> Tensor:
        """See `Kernels`."""
        if not isinstance(weight, Matrix) or not _takes(x):
            return super().linear(x, weight)
        out = torch.empty((x.shape[0], weight.weight.shape[0]), dtype=x.dtype)
        self._multiply(x, weight, out, PLAIN, weight.weight.shape[0])
        return out

    def gated(self, x: Tensor, weight: Any, activation: str) -> Tensor:
        """See `Kernels`."""
        if not isinstance(weight, Matrix) or not _takes(x) or weight.weight.shape[0] % 32:
            return super().gated(x, weight, activation)
        width = weight.weight.shape[0] // 2
        out = torch.empty((x.shape[0], width), dtype=x.dtype)
        self._multiply(x, weight, out, SILU if activation == "silu" else GELU, width)
        return out

    def project_add_norm(
        self, y: Tensor, weight: Any, x: Tensor, norm: Tensor, eps: float, reduce: Reduce | None
    ) -> tuple[Tensor, Tensor]:
        """See `Kernels`."""
        if (
            reduce is not None
            or not isinstance(weight, Matrix)
            or not _takes(y)
            or not _takes(x)
            or not _norms(norm)
        ):
            return super().project_add_norm(y, weight, x, norm, eps, reduce)
        normed = torch.empty_like(x)
        self._multiply(y, weight, x, ADDED, weight.weight.shape[0], norm, eps, normed)
        return normed, x

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Kernels`."""
        if x.dim() != 2 or not _takes(x) or not _norms(weight):
            return super().rms_norm(x, weight, eps)
        out = torch.empty(x.shape, dtype=x.dtype)
        args = _Products()
        args[cpu_matmul.X], args[cpu_matmul.X_ROW] = x.data_ptr(), x.stride(0)
        args[cpu_matmul.ROWS], args[cpu_matmul.IN] = x.shape
        args[cpu_matmul.NORM], args[cpu_matmul.EPS] = weight.data_ptr(), _bits(eps)
        args[cpu_matmul.NORMED] = out.data_ptr()
        self._code.normalize(self._team.address, args)
        return out

    def _multiply(
        self,
        x: Tensor,
        matrix: Matrix,
        out: Tensor,
        mode: int,
        columns: int,
        norm: Tensor | None = None,
        eps: float = 0.0,
        normed: Tensor | None = None,
    ) -> None:
        units, width = columns // 16, x.shape[1]
        each = max(1, _TICKET_BYTES // (32 * width), units // _MOST_TICKETS)
        args = _Products(
            x.data_ptr(),
            x.stride(0),
            x.shape[0],
            width,
            matrix.address,
            matrix.bias_address,
            out.data_ptr(),
            out.stride(0),
            mode,
            columns,
            units,
            each,
            0 if norm is None else norm.data_ptr(),
            _bits(eps),
            0 if normed is None else normed.data_ptr(),
        )
        self._code.multiply(self._team.address, args)

    def attention(
        self,
        qkv: Tensor,
        spec: AttentionSpec,
        rotation: Rotation | None,
        cache: tuple[Tensor, Tensor],
        plan: Any,
    ) -> Tensor:
        """See `Kernels`."""
        if not plan.few or not _takes(qkv) or not qkv.is_contiguous() or not _attends(spec, rotation):
            return super().attention(qkv, spec, rotation, cache, plan.paged)
        out = torch.empty((plan.rows, spec.num_heads * spec.head_dim), dtype=qkv.dtype)
        q_norm, k_norm = spec.q_norm, spec.k_norm
        args = _Attention(
            qkv.data_ptr(),
            plan.rows,
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            0 if rotation is None else rotation.rotated // 2,
            0 if rotation is None else rotation.cos.data_ptr(),
            0 if rotation is None else rotation.sin.data_ptr(),
            cache[0].data_ptr(),
            cache[1].data_ptr(),
            plan.slots.data_ptr(),
            plan.tables.data_ptr(),
            plan.tables.stride(0),
            addressof(plan.owners),
            addressof(plan.contexts),
            spec.window,
            _bits(spec.scale),
            out.data_ptr(),
            int(q_norm is not None),
            0 if q_norm is None else q_norm.data_ptr(),
            0 if k_norm is None else k_norm.data_ptr(),
            _bits(spec.norm_eps),
        )
        self._code.attend(self._team.address, args)
        return out

    def write_kv(self, k: Tensor, v: Tensor, cache: tuple[Tensor, Tensor], plan: Any) -> None:
        """See `Kernels`."""
        super().write_kv(k, v, cache, plan.paged)

    def attend(self, q: Tensor, spec: AttentionSpec, cache: tuple[Tensor, Tensor], plan: Any) -> Tensor:
        """See `Kernels`."""
        return super().attend(q, spec, cache, plan.paged)


def _takes(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and 0 < x.shape[0] <= MOST_ROWS and x.stride(-1) == 1


def _norms(weight: Tensor) -> bool:
    return weight.dtype == torch.bfloat16 and weight.shape[0] % 16 == 0


def _attends(spec: AttentionSpec, rotation: Rotation | None) -> bool:
    group = spec.num_heads // spec.num_kv_heads
    return (
        not spec.soft_cap
        and spec.head_dim % 32 == 0
        and group <= cpu_attention.MOST_GROUP
        and group * spec.head_dim <= cpu_attention.MOST_WIDTH
        and (rotation is None or (rotation.rotated % 32 == 0 and rotation.cos.dtype == torch.bfloat16))
        and (spec.q_norm is None or (_norms(spec.q_norm) and spec.k_norm is not None and _norms(spec.k_norm)))
    )


def _bits(value: float) -> int:
    """A float32's bits."""
    return struct.unpack("<i", struct.pack("<f", value))[0]
