"""The decoder's operations in plain torch: what a CPU runs, and the oracle for every other bundle."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.kernels.bundle import AttentionSpec, Reduce
from nanochat.kernels.layout import AttentionLayout
from nanochat.kernels.packed import PackedGate, PackedLinear, can_pack
from nanochat.kernels.paged_attention import PagedPlan, attend, write_kv
from nanochat.kernels.routing import run_experts

_MATRIX_ROWS = 8  # up to so many tokens are rotated by a matrix each, in one call

Weight = PackedLinear | tuple[Tensor, Tensor | None]
GatedWeight = PackedGate | tuple[Tensor, Tensor | None]


class ReferenceKernels:
    """See `Kernels`. Correct on every device; made to be fast on the CPU, where fewer and larger calls count."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def pack(self, weight: Tensor, bias: Tensor | None = None) -> Weight:
        """See `Kernels`."""
        return PackedLinear(weight, bias) if can_pack(weight) else (weight, bias)

    def pack_gated(self, weight: Tensor, bias: Tensor | None = None) -> GatedWeight:
        """See `Kernels`."""
        return PackedGate(weight, bias) if can_pack(weight) else (weight, bias)

    def plan(self, layout: AttentionLayout) -> PagedPlan:
        """See `Kernels`."""
        return PagedPlan(layout)

    def rotation(self, cos: Tensor, sin: Tensor, like: Tensor) -> Rotation:
        """See `Kernels`."""
        return Rotation(cos, sin, like)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Kernels`."""
        if weight.dtype != x.dtype:
            return F.rms_norm(x.to(weight.dtype), weight.shape, weight, eps).to(x.dtype)
        return F.rms_norm(x, weight.shape, weight, eps)

    def add_rms_norm(self, delta: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """See `Kernels`."""
        x = x.add_(delta)
        return self.rms_norm(x, weight, eps), x

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        """See `Kernels`."""
        return weight(x) if isinstance(weight, PackedLinear) else F.linear(x, *weight)

    def gated(self, x: Tensor, weight: GatedWeight, activation: str) -> Tensor:
        """See `Kernels`."""
        if isinstance(weight, PackedGate):
            return weight(x, activation)
        gate, up = F.linear(x, *weight).chunk(2, dim=-1)
        gate = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
        return gate.mul_(up)

    def project_add_norm(
        self, y: Tensor, weight: Weight, x: Tensor, norm: Tensor, eps: float, reduce: Reduce | None
    ) -> tuple[Tensor, Tensor]:
        """See `Kernels`."""
        if isinstance(weight, PackedLinear) and reduce is None:
            x = weight.add(y, x)
            return self.rms_norm(x, norm, eps), x
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
        heads, kv_heads = spec.num_heads, spec.num_kv_heads
        qkv = qkv.view(qkv.shape[0], heads + 2 * kv_heads, spec.head_dim)
        qk, v = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
        if spec.q_norm is not None and spec.k_norm is not None:
            q = self.rms_norm(qk[:, :heads], spec.q_norm, spec.norm_eps)
            k = self.rms_norm(qk[:, heads:], spec.k_norm, spec.norm_eps)
            qk = torch.cat((q, k), dim=1)
        if rotation is not None:
            qk = rotation(qk)
        write_kv(qk[:, heads:], v, cache, plan)
        return attend(qk[:, :heads], spec, cache, plan).reshape(qkv.shape[0], heads * spec.head_dim)

    def write_kv(self, k: Tensor, v: Tensor, cache: tuple[Tensor, Tensor], plan: PagedPlan) -> None:
        """See `Kernels`."""
        write_kv(k, v, cache, plan)

    def attend(self, q: Tensor, spec: AttentionSpec, cache: tuple[Tensor, Tensor], plan: PagedPlan) -> Tensor:
        """See `Kernels`."""
        return attend(q, spec, cache, plan)

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
        """See `Kernels`."""
        return run_experts(x, router, gate_up, down, per_token, normalized, activation)


class Rotation:
    """Turns the pairs (i, i + rotated / 2) of each head by its token's angles.

    Up to a few tokens, each token's rotation is a matrix [head_dim, head_dim] and turning all its heads is one
    product; its sums are float32, so it is also rounded once less than the usual three operations.
    """

    def __init__(self, cos: Tensor, sin: Tensor, like: Tensor) -> None:
        self.rotated = 2 * cos.shape[-1]
        self.cos = torch.cat((cos, cos), dim=-1).to(like.dtype)[:, None]
        self.sin = torch.cat((-sin, sin), dim=-1).to(like.dtype)[:, None]
        self._matrices: dict[int, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """[T, heads, head_dim] -> the same, in new memory."""
        num_tokens, _, head_dim = x.shape
        if num_tokens <= _MATRIX_ROWS and x.device.type == "cpu":
            if head_dim not in self._matrices:
                self._matrices[head_dim] = self._matrix(head_dim)
            return torch.bmm(x, self._matrices[head_dim])
        half = self.rotated // 2
        turned = x[..., : self.rotated]
        swapped = torch.cat((turned[..., half:], turned[..., :half]), dim=-1)
        turned = torch.addcmul(turned * self.cos, swapped, self.sin)
        return turned if self.rotated == head_dim else torch.cat((turned, x[..., self.rotated :]), dim=-1)

    def _matrix(self, head_dim: int) -> Tensor:
        """[T, head_dim, head_dim]: what rows of heads are multiplied by from the right."""
        half = self.rotated // 2
        matrix = torch.eye(head_dim, dtype=self.cos.dtype, device=self.cos.device).repeat(
            self.cos.shape[0], 1, 1
        )
        at = torch.arange(self.rotated, device=self.cos.device)
        matrix[:, at, at] = self.cos[:, 0]
        matrix[:, (at + half) % self.rotated, at] = self.sin[:, 0]
        return matrix
