"""The decoder's operations on an x86-64 CPU: machine code of our own, but for products of many rows, which are torch's.

Decoding on a CPU waits for two things: the weights to arrive from memory, and the calls. An operation of torch costs
some 3 us and a waking thread more, of which a layer needs twenty; here it is five jobs, each of which keeps all threads
busy, and of a dense decoder all layers' jobs are one call (`cpu_stack`). From 17 rows on arithmetic is what costs, and the
libraries under torch multiply matrices of bfloat16 best: in float32 where the processor does not multiply 16 bits. What was
quantized once machine code multiplies whatever the rows (`cpu_quantized`), and their attention is two to four times slower
than ours.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from ctypes import Array, addressof, c_int32, c_int64
from functools import cached_property
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor

from nanochat.kernels import cpu_attention, cpu_prompts, cpu_steps
from nanochat.kernels.bundle import AttentionSpec, DenseLayer, Reduce, Stack
from nanochat.kernels.cpu_arguments import (
    attends,
    attention_arguments,
    norm_arguments,
    norms,
    product_arguments,
    turns,
)
from nanochat.kernels.cpu_matmul import ADDED, GELU, MOST_ROWS, PLAIN, SILU
from nanochat.kernels.cpu_matrix import Matrix, Quantizer
from nanochat.kernels.headway import in_its_time
from nanochat.kernels.layout import AttentionLayout
from nanochat.kernels.native import NativeCode, Team
from nanochat.kernels.paged_attention import PagedPlan
from nanochat.kernels.reference import ReferenceKernels, Rotation

_PART = 32  # positions: what a part of a context has at least
_TICKETS_EACH = 4  # of attention, for a thread


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

    def parts(self, threads: int) -> int:
        """Into how many a row's context is cut, so that there is something for every thread."""
        wanted = -(-_TICKETS_EACH * threads // self.rows)
        return max(1, min(wanted, max(self.layout.contexts) // _PART))

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
        self.threads = threads or torch.get_num_threads()
        self._team = Team(code, self.threads)
        self._scratch = torch.empty(0)
        self._quantizer = Quantizer(code, self._team, self.threads)
        self._planes = set[int]()  # of the matrices that are quantized
        self._read = self._numbers = 0  # by products of one row with each matrix

    def describe(self, dtype: torch.dtype) -> str:
        """See `Kernels`."""
        if dtype != torch.bfloat16:
            return super().describe(dtype)
        dots = "bfloat16 products" if self._code.dots else "float32 products of bfloat16"
        above = "torch in float32" if dtype in self.multiply.dtypes else "torch with oneDNN"
        ours = f"up to {MOST_ROWS} rows" + (" and for attention" if self._prompts else "")
        bits = " and ".join(str(4 * planes) for planes in sorted(self._planes))
        kept = f", kept in {bits} bits where they hold no more" if bits else ""
        return f"machine code by LLVM {ours} ({dots}), {above} above, bfloat16 matrices{kept}"

    def pack(self, weight: Tensor, bias: Tensor | None = None, *, kept: bool = False) -> Any:
        """See `Kernels`."""
        fits = weight.dtype == torch.bfloat16 and weight.shape[0] % 16 == 0 and weight.shape[1] % 32 == 0
        if not fits or not weight.is_contiguous():
            return super().pack(weight, bias, kept=kept)
        shape = weight.shape[0], weight.shape[1]
        self._numbers += weight.numel()
        for planes in (1, 2):
            quantized = self._quantizer.quantized(weight, planes)
            if quantized is not None:
                self._planes.add(planes)
                self._read += quantized.nbytes
                whole, most_rows = weight if kept else None, self._quantizer.most_rows(planes)
                return Matrix(
                    shape, whole, bias, self.multiply, self._quantizer, quantized, planes, most_rows
                )
        self._read += weight.nbytes
        return Matrix(shape, weight, bias, self.multiply, self._quantizer)

    @property
    def weight_itemsize(self) -> float | None:
        """Bytes of a matrix's number as one row's products read it; None where none are quantized."""
        return self._read / self._numbers if self._planes else None

    def plan(self, layout: AttentionLayout) -> Any:
        """See `Kernels`."""
        return CpuPlan(layout)

    def linear(self, x: Tensor, weight: Any) -> Tensor:
        """See `Kernels`."""
        if not _multiplies(x, weight):
            return super().linear(x, weight)
        out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype)
        self._multiply(x, weight, out, PLAIN)
        return out

    def gated(self, x: Tensor, weight: Any, activation: str) -> Tensor:
        """See `Kernels`."""
        if not _multiplies(x, weight) or weight.shape[0] % 32:
            return super().gated(x, weight, activation)
        out = torch.empty((x.shape[0], weight.shape[0] // 2), dtype=x.dtype)
        self._multiply(x, weight, out, SILU if activation == "silu" else GELU)
        return out

    def project_add_norm(
        self, y: Tensor, weight: Any, x: Tensor, norm: Tensor, eps: float, reduce: Reduce | None
    ) -> tuple[Tensor, Tensor]:
        """See `Kernels`."""
        fits = reduce is None and norms(norm) and x.dtype == torch.bfloat16 and x.is_contiguous()
        if not fits or not _multiplies(y, weight):
            return super().project_add_norm(y, weight, x, norm, eps, reduce)
        normed = torch.empty_like(x)
        self._multiply(y, weight, x, ADDED, norm, eps, normed)
        return normed, x

    def _multiply(
        self, x: Tensor, matrix: Matrix, out: Tensor, mode: int,
        norm: Tensor | None = None, eps: float = 0.0, normed: Tensor | None = None,
    ) -> None:  # fmt: skip
        """See `product_arguments`; as many rows at once as machine code takes."""
        most = matrix.most_rows_at_once
        for first in range(0, x.shape[0], most):
            rows = min(most, x.shape[0] - first)
            parts = (
                (x, out, normed)
                if first == 0
                else (x[first:], out[first:], None if normed is None else normed[first:])
            )
            args = product_arguments(
                self.threads, parts[0], rows, matrix, parts[1], mode, norm, eps, parts[2]
            )
            in_its_time(
                rows * math.prod(matrix.shape),
                lambda args=args: self._code.multiply(self._team.address, args),
            )

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Kernels`."""
        if x.dim() != 2 or not _takes(x) or not norms(weight):
            return super().rms_norm(x, weight, eps)
        out = torch.empty(x.shape, dtype=x.dtype)
        args = norm_arguments(x, x.shape[0], weight, eps, out)
        self._code.normalize(self._team.address, args)
        return out

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
        fits = qkv.dtype == torch.bfloat16 and qkv.is_contiguous() and attends(spec) and turns(rotation)
        if not fits or not (many or plan.few):
            return super().attention(qkv, spec, rotation, cache, plan.paged)
        out = torch.empty((plan.rows, spec.num_heads * spec.head_dim), dtype=qkv.dtype)
        half = 0 if rotation is None else rotation.rotated // 2
        args = attention_arguments(qkv, spec, half, cache, plan.rows, out)
        args[cpu_attention.COS : cpu_attention.SPANS] = self.places(plan, rotation, spec)
        if many:
            args[cpu_attention.SPANS] = addressof(plan.spans)
            args[cpu_attention.SPANS + 1] = len(plan.spans) // 2
            products = 2 * plan.pairs * spec.num_heads * spec.head_dim
            in_its_time(products, lambda: self._code.attend_prompts(self._team.address, args))
        else:
            self._code.attend(self._team.address, args)
        return out

    def places(self, plan: CpuPlan, rotation: Rotation | None, spec: AttentionSpec) -> list[int]:
        """What `attend` takes of a step, from `COS` on; the plan and the rotation must outlive the call."""
        parts = plan.parts(self.threads) if plan.few else 1
        if parts > 1:
            needed = plan.rows * parts * cpu_attention.part_size(spec.num_heads, spec.head_dim)
            if len(self._scratch) < needed:
                self._scratch = torch.empty(needed)
        return [
            0 if rotation is None else rotation.cos.data_ptr(),
            0 if rotation is None else rotation.sin.data_ptr(),
            plan.slots.data_ptr(), plan.tables.data_ptr(), plan.tables.stride(0),
            addressof(plan.owners), addressof(plan.contexts),
            parts, self._scratch.data_ptr(),
        ]  # fmt: skip

    def perform(self, calls: Array[c_int64]) -> None:
        """Calls one after the other (see `cpu_steps`)."""
        self._code.perform(self._team.address, calls, len(calls) // cpu_steps.PLACES)

    def stack(
        self, layers: Sequence[DenseLayer], final_norm: Tensor, eps: float, activation: str
    ) -> Stack | None:
        """See `Kernels`."""
        from nanochat.kernels.cpu_stack import CpuStack

        return CpuStack.of(self, layers, final_norm, eps, activation)

    def write_kv(self, k: Tensor, v: Tensor, cache: tuple[Tensor, Tensor], plan: Any) -> None:
        """See `Kernels`."""
        super().write_kv(k, v, cache, plan.paged)

    def attend(self, q: Tensor, spec: AttentionSpec, cache: tuple[Tensor, Tensor], plan: Any) -> Tensor:
        """See `Kernels`."""
        return super().attend(q, spec, cache, plan.paged)


def _takes(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and 0 < x.shape[0] <= MOST_ROWS and x.stride(-1) == 1


def _multiplies(x: Tensor, weight: Any) -> bool:
    """Whether machine code multiplies: few rows, or a matrix that is kept in no other way."""
    if not isinstance(weight, Matrix) or x.dtype != torch.bfloat16 or x.stride(-1) != 1:
        return False
    return weight.weight is None or 0 < x.shape[0] <= MOST_ROWS
