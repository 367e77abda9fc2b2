"""The decoder's operations on an x86-64 CPU: machine code of our own, but for products of many rows, which are torch's.

Decoding on a CPU waits for two things: the weights to arrive from memory, and the calls. An operation of torch costs
some 3 us and a waking thread more, of which a layer needs twenty; here it is five calls, each of which keeps all
threads busy. From 17 rows on arithmetic is what costs, and the libraries under torch multiply matrices best: in float32 where
the processor does not multiply 16 bits. Their attention is two to four times slower than ours.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from ctypes import Array, addressof, c_int32, c_int64
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor

from nanochat.kernels import cpu_attention, cpu_matmul, cpu_prompts
from nanochat.kernels.bundle import AttentionSpec, Reduce
from nanochat.kernels.cpu_matmul import ADDED, GELU, MOST_ROWS, PLAIN, SILU
from nanochat.kernels.headway import in_its_time
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
        self.layout = layout
        self.rows = layout.slots.shape[0]
        self.slots = layout.slots
        self.tables = layout.block_tables
        self.few = 0 < self.rows <= MOST_ROWS and sum(layout.query_lens) == self.rows

    @cached_property
    def owners(self) -> Array[c_int32]:
        """Of each row, the number of its sequence."""
        lens = self.layout.query_lens
        return (c_int32 * self.rows)(*chain.from_iterable(repeat(s, count) for s, count in enumerate(lens)))

    @cached_property
    def contexts(self) -> Array[c_int32]:
        """Of each row, the positions that it sees."""
        lengths = zip(self.layout.query_lens, self.layout.contexts, strict=True)
        seen = (range(context - count + 1, context + 1) for count, context in lengths)
        return (c_int32 * self.rows)(*chain.from_iterable(seen))

    @cached_property
    def pairs(self) -> int:
        """Of rows and the positions that they see."""
        return sum(self.contexts)

    @cached_property
    def spans(self) -> Array[c_int32]:
        """(first row, rows) of up to `SPAN` rows of one sequence each. The last ones, which see the most, are begun first."""
        spans, row = list[tuple[int, int]](), 0
        for count in self.layout.query_lens:
            spans += [(row + r, min(cpu_prompts.SPAN, count - r)) for r in range(0, count, cpu_prompts.SPAN)]
            row += count
        return (c_int32 * (2 * len(spans)))(*chain.from_iterable(spans))

    @cached_property
    def paged(self) -> PagedPlan:
        """For plain torch."""
        return PagedPlan(self.layout)


class CpuKernels(ReferenceKernels):
    """See `Kernels`. What machine code does not know is left to plain torch.

    Args:
        threads: as many as torch uses, if not given.
        widened: see `ReferenceKernels`.
        prompts: whether many rows attend in machine code too; where 16 lanes are one register, if not given.
    """

    def __init__(
        self,
        device: torch.device,
        code: NativeCode,
        *,
        threads: int | None = None,
        widened: Collection[torch.dtype] | None = None,
        prompts: bool | None = None,
    ) -> None:
        super().__init__(device, widened=widened)
        self._code = code
        self._prompts = code.wide if prompts is None else prompts
        self._team = Team(code, threads or torch.get_num_threads())

    def describe(self, dtype: torch.dtype) -> str:
        """See `Kernels`."""
        if dtype != torch.bfloat16:
            return super().describe(dtype)
        dots = "bfloat16 products" if self._code.dots else "float32 products of bfloat16"
        above = "torch in float32" if dtype in self.multiply.dtypes else "torch with oneDNN"
        ours = f"up to {MOST_ROWS} rows" + (" and for attention" if self._prompts else "")
        return f"machine code by LLVM {ours} ({dots}), {above} above, bfloat16 matrices"

    def pack(self, weight: Tensor, bias: Tensor | None = None) -> Any:
        """See `Kernels`."""
        fits = weight.dtype == torch.bfloat16 and weight.shape[0] % 16 == 0 and weight.shape[1] % 32 == 0
        if not fits or not weight.is_contiguous():
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
        many = self._prompts and plan.rows > MOST_ROWS and plan.rows == sum(plan.layout.query_lens)
        fits = qkv.dtype == torch.bfloat16 and qkv.is_contiguous() and _attends(spec, rotation)
        if not fits or not (many or plan.few):
            return super().attention(qkv, spec, rotation, cache, plan.paged)
        out = torch.empty((plan.rows, spec.num_heads * spec.head_dim), dtype=qkv.dtype)
        args = _arguments(qkv, spec, rotation, cache, plan, out)
        if many:
            args[cpu_attention.SPANS] = addressof(plan.spans)
            args[cpu_attention.SPANS + 1] = len(plan.spans) // 2
            products = 2 * plan.pairs * spec.num_heads * spec.head_dim
            in_its_time(products, lambda: self._code.attend_prompts(self._team.address, args))
        else:
            self._code.attend(self._team.address, args)
        return out

    def write_kv(self, k: Tensor, v: Tensor, cache: tuple[Tensor, Tensor], plan: Any) -> None:
        """See `Kernels`."""
        super().write_kv(k, v, cache, plan.paged)

    def attend(self, q: Tensor, spec: AttentionSpec, cache: tuple[Tensor, Tensor], plan: Any) -> Tensor:
        """See `Kernels`."""
        return super().attend(q, spec, cache, plan.paged)


def _arguments(
    qkv: Tensor, spec: AttentionSpec, rotation: Rotation | None, cache: tuple[Tensor, Tensor], plan: CpuPlan, out: Tensor
) -> Array[c_int64]:  # fmt: skip
    """What `attend` takes, by its places; the tensors must outlive the call."""
    q_norm, k_norm = spec.q_norm, spec.k_norm
    return _Attention(
        qkv.data_ptr(), plan.rows, spec.num_heads, spec.num_kv_heads, spec.head_dim,
        0 if rotation is None else rotation.rotated // 2,
        0 if rotation is None else rotation.cos.data_ptr(),
        0 if rotation is None else rotation.sin.data_ptr(),
        cache[0].data_ptr(), cache[1].data_ptr(),
        plan.slots.data_ptr(), plan.tables.data_ptr(), plan.tables.stride(0),
        addressof(plan.owners), addressof(plan.contexts),
        spec.window, _bits(spec.scale), out.data_ptr(),
        int(q_norm is not None),
        0 if q_norm is None else q_norm.data_ptr(),
        0 if k_norm is None else k_norm.data_ptr(),
        _bits(spec.norm_eps),
    )  # fmt: skip


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
        and spec.head_dim <= cpu_prompts.MOST_HEAD
        and group * spec.head_dim <= cpu_attention.MOST_WIDTH
        and (rotation is None or (rotation.rotated % 32 == 0 and rotation.cos.dtype == torch.bfloat16))
        and (spec.q_norm is None or (_norms(spec.q_norm) and spec.k_norm is not None and _norms(spec.k_norm)))
    )


def _bits(value: float) -> int:
    """A float32's bits."""
    return struct.unpack("<i", struct.pack("<f", value))[0]
