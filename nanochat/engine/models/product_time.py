"""Time for the products of a model of Transformers': whoever watches a rank learns how long each may take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nanochat.kernels.headway import in_its_time


def give_time(causal: nn.Module) -> None:
    """Every matrix is given its time, and so are experts, whose matrices are one parameter: [experts, ., .]."""
    for module in causal.modules():
        experts = [p for p in module.parameters(recurse=False) if p.dim() == 3]
        if isinstance(module, nn.Linear):
            _give_a_matrix(module)
        elif experts:
            _give_experts(module, len(experts[0]), sum(p.numel() for p in experts))


def _give_a_matrix(module: nn.Linear) -> None:
    forward, numbers = module.forward, module.weight.numel()
    module.forward = lambda input: in_its_time(
        input.numel() // input.shape[-1] * numbers, lambda: forward(input)
    )


def _give_experts(module: nn.Module, count: int, numbers: int) -> None:
    forward = module.forward

    def timed(*args: Any, **options: Any) -> Any:
        products = _asked([*args, *options.values()], count) * numbers // count
        return in_its_time(products, lambda: forward(*args, **options))

    module.forward = timed


def _asked(given: Sequence[Any], experts: int) -> int:
    """How often an expert is asked, in all rows. Where no choice for each row is seen, each row may ask all."""
    hidden, *others = [each for each in given if isinstance(each, Tensor)]
    rows = hidden.numel() // hidden.shape[-1]
    for each in others:
        if each.dim() == 2 and len(each) == rows and not each.is_floating_point():
            return each.numel()
    return rows * experts
