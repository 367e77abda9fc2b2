"""Matrices that were quantized once, and what `cpu_quantized` makes of a matrix, by its definition."""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 32


def on_grid(weight: Tensor, bits: int) -> Tensor:
    """A matrix [out, in] as its Q4_1 or Q8_0 has it, in float32: for every 32 inputs a step and, of 4 bits, a least number."""
    groups = weight.float().unflatten(-1, (-1, GROUP))
    if bits == 4:
        low, high = groups.amin(-1, True), groups.amax(-1, True)
        step, least = ((high - low) / 15).half().float(), low.half().float()
        steps = ((groups - least) / step.clamp_min(1e-30)).round().clamp(0, 15)
        return (steps * step + least).flatten(-2)
    step = (groups.abs().amax(-1, True) / 127).half().float()
    steps = (groups / step.clamp_min(1e-30)).round().clamp(-127, 127)
    return (steps * step).flatten(-2)


def unpacked(quantized: Tensor, rows: int, width: int, planes: int) -> Tensor:
    """What `cpu_quantized` holds, float32 [rows, width]: a unit of 16 rows after the other, each group by group."""
    groups = quantized.view(rows // 16, width // GROUP, 64 + 256 * planes)
    grid = groups[..., :64].contiguous().view(torch.float16).float().unflatten(-1, (2, 16))
    step, least = grid[..., 0, :], grid[..., 1, :]
    bits = groups[..., 64:].contiguous().view(torch.int32).unflatten(-1, (planes, 4, 16)).long()
    found = torch.zeros(*step.shape, GROUP, dtype=torch.long)
    for plane in range(planes):
        for line in range(4):
            for j in range(4):
                for odd in range(2):
                    nibble = (bits[..., plane, line, :] >> (4 * j + 16 * odd)) & 15
                    found[..., 8 * line + 2 * j + odd] += nibble << (4 * plane)
    numbers = found * step[..., None] + least[..., None]  # [units, groups, lanes, GROUP]
    return numbers.transpose(1, 2).reshape(rows, width)
