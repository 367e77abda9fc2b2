"""Whether the ways that sums over GPUs can go come out right: each is tried beside NCCL before it is used.

All ranks do the same here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from nanochat.engine.parallel.collectives import Collectives
    from nanochat.kernels.triton_one_shot import OneShot
    from nanochat.kernels.triton_wide_sum import WideSum

ALL = 1 << 30  # rows
_TRIAL_LOOKS = 1 << 24  # some ten seconds: while a rank compiles, the others wait for it on the device
_INPUTS, _TRIES = 256, 4  # of a product that is tried


def sound(
    collectives: Collectives, end: OneShot | WideSum, device: torch.device, width: int, dtype: torch.dtype,
    most: int = 0,
) -> bool:  # fmt: skip
    """Whether a few sums come out as NCCL's do, in time. `most`: rows in a launch; the end's, if not given."""
    most = most or end.rows
    if not end.takes(torch.empty(most, width, dtype=dtype, device=device)):
        return False
    draw = torch.Generator(device).manual_seed(collectives.rank)
    well = True
    with _trial(end) as failed:
        sizes = [1, 1, most, most, 3, 3]  # twice: an inbox has two halves
        if end.takes(torch.empty(most + 2, width, dtype=dtype, device=device)):
            sizes.append(most + 2)
        for rows in sizes:
            x = torch.randn(rows, width, generator=draw, device=device).to(dtype)
            whole = collectives.reduce(x.to(torch.float32, copy=True))
            well &= torch.allclose(end.sum(x).float(), whole, rtol=2**-6, atol=2**-6)
        return well and not failed()


def sound_in_two_shots(
    collectives: Collectives, end: WideSum, device: torch.device, width: int, dtype: torch.dtype
) -> bool:
    """Whether a few wide sums in two shots come out as NCCL's do, in time."""
    with going(end, two_shots=1):
        return sound(collectives, end, device, width, dtype)


def sound_flagless(
    collectives: Collectives, end: WideSum, device: torch.device, width: int, dtype: torch.dtype
) -> bool:
    """Whether a few wide sums without flags come out as NCCL's do, in time."""
    from nanochat.kernels.triton_flagless_rows import ROWS

    with going(end, flagless=ALL):
        return sound(collectives, end, device, width, dtype, ROWS)


@contextmanager
def going(end: WideSum, *, two_shots: int = 0, flagless: int = 0) -> Generator[None]:
    """Inside it wide sums go another way."""
    before = end.two_shots, end.flagless
    end.two_shots, end.flagless = two_shots, flagless
    try:
        yield
    finally:
        end.two_shots, end.flagless = before


def sound_products(
    collectives: Collectives, end: OneShot, device: torch.device, width: int, dtype: torch.dtype
) -> bool:
    """Whether what products send by themselves adds up to NCCL's sum."""
    from nanochat.kernels.triton_gemv import gemv

    draw = torch.Generator(device).manual_seed(collectives.rank)
    weight = torch.randn(width, _INPUTS, generator=draw, device=device).to(dtype)
    inputs = (torch.randn(_TRIES, 1, _INPUTS, generator=draw, device=device) / _INPUTS**0.5).to(dtype)
    wholes = [collectives.reduce(torch.nn.functional.linear(y, weight).float()) for y in inputs]
    x, pdl = torch.ones(1, width, dtype=dtype, device=device), launches_dependently(device)
    outlet, well = end.outlet(x), True
    if outlet is None:
        return False
    with _trial(end) as failed:
        for y, whole in zip(inputs, wholes, strict=True):
            gemv(y, weight, pdl=pdl, late=True, to=outlet)
            found = end.collect(x, pdl=pdl).float() - 1
            well &= torch.allclose(found, whole, rtol=2**-5, atol=2**-4)
        return well and not failed()


def launches_dependently(device: torch.device) -> bool:
    """Whether the chip has programmatic dependent launches."""
    return torch.cuda.get_device_capability(device) >= (9, 0)


@contextmanager
def _trial(end: OneShot | WideSum) -> Generator[Callable[[], bool]]:
    """Peers are not waited for as long as usual inside it; what fails then is no reason to refuse what is right."""
    looks, end.looks = end.looks, _TRIAL_LOOKS
    try:
        yield lambda: bool(end.failed.item())
    finally:
        end.looks = looks
    end.failed.zero_()
