"""Plain torch whose every row has the same bits, whatever rows are beside it: the deterministic mode on a CPU.

A library picks another algorithm for another number of rows, and with it another order of adding up. So products are
always made of the same number of rows, norms of more than one, and each query attends by itself.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.kernels.bundle import AttentionSpec, Reduce
from nanochat.kernels.headway import made
from nanochat.kernels.paged_attention import PagedPlan, attend_row_by_row, write_kv
from nanochat.kernels.reference import ReferenceKernels, Rotation, Weight
from nanochat.kernels.routing import run_experts

_BLOCK = 16


class InvariantKernels(ReferenceKernels):
    """See `Kernels`. A row's bits depend on nothing but its own sequence: not on the batch, not on what was cached."""

    def __init__(self, device: torch.device, *, widened: Collection[torch.dtype] | None = None) -> None:
        super().__init__(device, widened=widened)
        self._block = _BLOCK  # rows of every product
        self._tried: set[tuple[int, ...]] = set()

    def describe(self, dtype: torch.dtype) -> str:
        """See `Kernels`."""
        rows = f"products of {self._block} rows" if self._block > 1 else "products of single rows"
        return f"{super().describe(dtype)}, batch-invariant ({rows})"

    def pack(self, weight: Tensor, bias: Tensor | None = None, *, kept: bool = False) -> Weight:
        """See `Kernels`. Finds out whether this machine computes all rows of a block alike; if not, blocks are single rows."""
        shape, dtype = tuple(weight.shape), weight.dtype
        packed = super().pack(weight, bias)
        if shape not in self._tried and self._block > 1:
            self._tried.add(shape)
            row = torch.randn(1, shape[1], generator=torch.Generator().manual_seed(0)).to(dtype)
            rows = super().linear(row.to(self.device).repeat(_BLOCK, 1), packed)
            self._block = _BLOCK if torch.equal(rows, rows[:1].expand_as(rows)) else 1
        return packed

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Kernels`."""
        rows = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        if rows.shape[0] == 1:  # torch adds up a single wide row in parts, on several threads
            rows = rows.repeat(2, 1)
        normed = F.rms_norm(rows, weight.shape, weight, eps).to(x.dtype)
        return normed[: x.numel() // x.shape[-1]].view(x.shape)

    def add_rms_norm(self, delta: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """See `Kernels`."""
        x = x + delta
        return self.rms_norm(x, weight, eps), x

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        """See `Kernels`."""
        count, padding = x.shape[0], -x.shape[0] % self._block
        whole = F.pad(x, (0, 0, 0, padding)) if padding else x.contiguous()
        parts = [super(InvariantKernels, self).linear(part, weight) for part in whole.split(self._block)]
        return torch.cat(parts)[:count] if len(parts) > 1 else parts[0][:count]

    def gated(self, x: Tensor, weight: Weight, activation: str) -> Tensor:
        """See `Kernels`."""
        gate, up = (half.contiguous() for half in self.linear(x, weight).chunk(2, dim=-1))
        return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")) * up

    def project_add_norm(
        self, y: Tensor, weight: Weight, x: Tensor, norm: Tensor, eps: float, reduce: Reduce | None
    ) -> tuple[Tensor, Tensor]:
        """See `Kernels`."""
        delta = self.linear(y, weight)
        return self.add_rms_norm(delta if reduce is None else reduce(delta), x, norm, eps)

    def attention(
        self,
        qkv: Tensor,
        spec: AttentionSpec,
        rotation: Rotation | None,
        cache: tuple[Tensor, Tensor],
        plan: PagedPlan,
    ) -> Tensor:
        """See `Kernels`."""
        tokens, heads, kv_heads = qkv.shape[0], spec.num_heads, spec.num_kv_heads
        q, k, v = qkv.view(tokens, -1, spec.head_dim).split((heads, kv_heads, kv_heads), dim=1)
        if spec.q_norm is not None and spec.k_norm is not None:
            q = self.rms_norm(q, spec.q_norm, spec.norm_eps)
            k = self.rms_norm(k, spec.k_norm, spec.norm_eps)
        if rotation is not None:
            q, k = rotation(q.contiguous()), rotation(k.contiguous())
        write_kv(k, v, cache, plan)
        return self.attend(q, spec, cache, plan).reshape(tokens, heads * spec.head_dim)

    def attend(self, q: Tensor, spec: AttentionSpec, cache: tuple[Tensor, Tensor], plan: PagedPlan) -> Tensor:
        """See `Kernels`."""
        return attend_row_by_row(q, spec, cache, plan)

    def experts(
        self,
        x: Tensor,
        router: Tensor,
        gate_up: Tensor,
        down: Tensor,
        per_token: int,
        normalized: bool,
        activation: str,
    ) -> Tensor:
        """See `Kernels`. Token by token: which others chose the same expert must not matter."""
        rows: list[Tensor] = []
        for row in x.split(1):
            rows.append(
                run_experts(row.contiguous(), router, gate_up, down, per_token, normalized, activation)
            )
            made()
        return torch.cat(rows)
