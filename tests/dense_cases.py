"""Products with what surrounds them, and their answers in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Product:
    """`residual + f(rms_norm(x, norm) @ weight.T + bias)`; x has a row stride wider than its rows."""

    x: Tensor
    weight: Tensor
    norm: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    activation: str
    eps: float = 1e-5

    @property
    def outputs(self) -> int:
        return self.weight.shape[0] // 2 if self.activation else self.weight.shape[0]

    def poisoned(self) -> Tensor:
        return torch.full(
            (self.x.shape[0], self.outputs), float("nan"), dtype=self.x.dtype, device=self.x.device
        )

    def expected(self) -> Tensor:
        h = self.x.double()
        if self.norm is not None:
            h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps) * self.norm.double()
        y = h @ self.weight.double().T
        if self.bias is not None:
            y = y + self.bias.double()
        if self.activation:
            y = gated(y, self.activation)
        return y if self.residual is None else y + self.residual.double()


def gated(y: Tensor, activation: str) -> Tensor:
    """activation(first half) * second half."""
    gate, up = y.chunk(2, -1)
    return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")) * up


def make_product(
    rows: int, n: int, k: int, *, activation: str = "", norm: bool = False, bias: bool = False, residual: bool = False,
    dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0,
) -> Product:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).to(device)

    out = 2 * n if activation else n
    return Product(
        x=random(rows, k + 16)[:, :k],
        weight=random(out, k),
        norm=random(k) if norm else None,
        bias=random(out) * 5 if bias else None,
        residual=random(rows, n) * 5 if residual else None,
        activation=activation,
    )
