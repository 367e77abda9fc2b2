"""A mixture of experts in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Product = Callable[[Tensor, Tensor], Tensor]
"""x [T, K] and a matrix [N, K] -> [T, N]."""


def run_experts(
    x: Tensor,
    router: Tensor,
    gate_up: Tensor,
    down: Tensor,
    per_token: int,
    normalized: bool,
    activation: str,
    product: Product = F.linear,
) -> Tensor:
    """See `Kernels.experts`. Only the chosen experts' weights are read."""
    probabilities = torch.softmax(product(x, router), dim=-1, dtype=torch.float32)
    weights, chosen = torch.topk(probabilities, per_token, dim=-1)  # [T, per_token] each
    if normalized:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    weights = weights.to(x.dtype)
    return one_by_one(x, weights, chosen, gate_up, down, activation, product)


def one_by_one(
    x: Tensor,
    weights: Tensor,
    chosen: Tensor,
    gate_up: Tensor,
    down: Tensor,
    activation: str,
    product: Product = F.linear,
) -> Tensor:
    """Expert by expert, of those that were chosen: the weights of the others are never read.

    A token's experts are added up in the order of their numbers, whatever other tokens chose.
    """
    out = torch.zeros_like(x)
    owners: dict[int, list[tuple[int, int]]] = {}
    for token, row in enumerate(chosen.tolist()):
        for place, expert in enumerate(row):
            owners.setdefault(expert, []).append((token, place))
    for expert, pairs in sorted(owners.items()):
        tokens = torch.tensor([token for token, _ in pairs], device=x.device)
        places = torch.tensor([place for _, place in pairs], device=x.device)
        hidden = _activated(product(x[tokens], gate_up[expert]), activation)
        out.index_add_(0, tokens, product(hidden, down[expert]) * weights[tokens, places, None])
    return out


def _activated(gate_up: Tensor, activation: str) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")) * up
