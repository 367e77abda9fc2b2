"""Mixtures of experts with what surrounds them, and their answers in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from dense_cases import gated
from torch import Tensor


@dataclass
class Mixture:
    """Rows, a router that has no close calls, and experts; x has a row stride wider than its rows."""

    x: Tensor
    router: Tensor
    gate_up: Tensor
    down: Tensor
    per_token: int
    normalized: bool
    activation: str

    @property
    def logits(self) -> Tensor:
        return self.x.double() @ self.router.double().T

    def choice(self) -> tuple[Tensor, Tensor]:
        """(weights in float64, experts), the likeliest first."""
        weights, chosen = torch.softmax(self.logits, dim=-1).topk(self.per_token, dim=-1)
        return (weights / weights.sum(dim=-1, keepdim=True) if self.normalized else weights), chosen

    def expected(self) -> Tensor:
        out = torch.zeros(self.x.shape, dtype=torch.float64, device=self.x.device)
        for token, (weights, chosen) in enumerate(zip(*self.choice(), strict=True)):
            for weight, expert in zip(weights, chosen, strict=True):
                hidden = gated(self.gate_up[expert].double() @ self.x[token].double(), self.activation)
                out[token] += weight * (self.down[expert].double() @ hidden)
        return out


def make_mixture(
    rows: int, experts: int, per_token: int, *, width: int = 96, inner: int = 40, normalized: bool = True,
    activation: str = "silu", dtype: torch.dtype = torch.float32, device: str = "cpu", favourite: bool = False, seed: int = 0,
) -> Mixture:  # fmt: skip
    """Of each row, logits differ by more than rounding. `favourite`: every row likes the last expert best."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    order = torch.stack([torch.randperm(experts, generator=generator) for _ in range(rows)]).double()
    if favourite:
        order[:, -1] = experts
    router = (random(experts, width) / 8).to(dtype)
    x = random(rows, width).to(dtype)
    # The logits become steps of an eighth, in an order of each row's own: as much of x as the router sees is solved for.
    # Steps are far larger than what rounding x moves them by, and the largest so small that float32 sums them well.
    logits = (order - order.mean(dim=1, keepdim=True)) / 8
    x = x + ((logits - x.double() @ router.double().T) @ torch.linalg.pinv(router.double()).T).to(dtype)
    there = torch.Generator(device).manual_seed(
        seed
    )  # hundreds of millions of numbers: a GPU draws them itself
    gate_up, down = (
        (torch.randn(shape, generator=there, device=device) / 8).to(dtype)
        for shape in ((experts, 2 * inner, width), (experts, width, inner))
    )
    wide = torch.cat([x, torch.zeros(rows, 16, dtype=dtype)], dim=1).to(device)
    return Mixture(
        wide[:, :width], router.to(device), gate_up, down, per_token, normalized, activation
    )  # fmt: skip
