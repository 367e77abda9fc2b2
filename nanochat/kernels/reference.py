"""The decoder's operations in plain torch: what a CPU runs, and the oracle for every other bundle."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.kernels.bundle import AttentionSpec, DenseLayer, Reduce, Stack
from nanochat.kernels.layout import AttentionLayout
from nanochat.kernels.packed import PackedLinear, can_pack
from nanochat.kernels.paged_attention import PagedPlan, attend, write_kv
from nanochat.kernels.routing import run_experts
from nanochat.kernels.widened import FEW, Widened, emulated

Weight = Callable[[Tensor], Tensor] | tuple[Tensor, Tensor | None]


class ReferenceKernels:
    """See `Kernels`. Correct on every device; made to be fast on the CPU, where fewer and larger calls count.

    Args:
        widened: the dtypes that are multiplied in float32; those that the CPU does not multiply itself, if not given.
    """

    def __init__(self, device: torch.device, *, widened: Collection[torch.dtype] | None = None) -> None:
        self.device = device
        if widened is None:
            widened = emulated() if device.type == "cpu" else ()
        self.multiply = Widened(widened)

    def describe(self, dtype: torch.dtype) -> str:
        """See `Kernels`."""
        name = str(dtype).removeprefix("torch.")
        if self.device.type != "cpu":
            return f"plain torch, {name} matrices"
        if dtype in self.multiply.dtypes:
            return f"torch on the CPU, {name} matrices, multiplied in float32 from {FEW} rows on"
        packed = can_pack(torch.empty(1, 1, dtype=dtype))
        return f"torch on the CPU, {name} matrices" + (" packed by oneDNN" if packed else "")

    def pack(self, weight: Tensor, bias: Tensor | None = None, *, kept: bool = False) -> Weight:
        """See `Kernels`."""
        packs = weight.dtype not in self.multiply.dtypes and can_pack(weight)
        return PackedLinear(weight, bias) if packs else (weight, bias)

    def plan(self, layout: AttentionLayout) -> PagedPlan:
        """See `Kernels`."""
        return PagedPlan(layout)

    def rotation(self, cos: Tensor, sin: Tensor, like: Tensor) -> Rotation:
        """See `Kernels`."""
        return Rotation(cos, sin, like)

    def stack(
        self, layers: Sequence[DenseLayer], final_norm: Tensor, eps: float, activation: str
    ) -> Stack | None:
        """See `Kernels`."""
        return None

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Kernels`."""
        if x.shape[0] == 1 and x.dim() == 2 and x.device.type == "cpu":
            return _norm_one_row(x, weight, eps)
        if weight.dtype != x.dtype:
            return F.rms_norm(x.to(weight.dtype), weight.shape, weight, eps).to(x.dtype)
        return F.rms_norm(x, weight.shape, weight, eps)

    def add_rms_norm(self, delta: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """See `Kernels`."""
        x = x.add_(delta)
        return self.rms_norm(x, weight, eps), x

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        """See `Kernels`."""
        return self.multiply(x, weight[0], weight[1]) if isinstance(weight, tuple) else weight(x)

    def gated(self, x: Tensor, weight: Weight, activation: str) -> Tensor:
        """See `Kernels`."""
        gate, up = self.linear(x, weight).chunk(2, dim=-1)
        gate = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
        return gate.mul_(up)

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
        return run_experts(x, router, gate_up, down, per_token, normalized, activation, self.multiply)


def _norm_one_row(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm of x [1, n] in three calls instead of the ten that torch makes of it on a CPU; rounded once."""
    norm: float = torch.linalg.vector_norm(x, dtype=torch.float32).item()
    inverse = (norm * norm / x.shape[1] + eps) ** -0.5
    if weight.dtype != x.dtype:
        return (x * (weight * inverse)).to(x.dtype)
    return torch.addcmul(torch.zeros_like(x), x, weight, value=inverse)


class Rotation:
    """Turns the pairs (i, i + rotated / 2) of each head by its token's angles."""

    def __init__(self, cos: Tensor, sin: Tensor, like: Tensor) -> None:
        self.rotated = 2 * cos.shape[-1]
        self.cos = torch.cat((cos, cos), dim=-1).to(like.dtype)[:, None]
        self.sin = torch.cat((-sin, sin), dim=-1).to(like.dtype)[:, None]

    def __call__(self, x: Tensor) -> Tensor:
        """[T, heads, head_dim] -> the same, in new memory."""
        if self.rotated == x.shape[-1]:
            return torch.addcmul(x * self.cos, x.roll(self.rotated // 2, -1), self.sin)
        turned, rest = x[..., : self.rotated], x[..., self.rotated :]
        turned = torch.addcmul(turned * self.cos, turned.roll(self.rotated // 2, -1), self.sin)
        return torch.cat((turned, rest), dim=-1)
