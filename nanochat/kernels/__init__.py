"""Attention and fused operations: plain torch here, Triton beside it, behind one door."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from nanochat.kernels.bundle import Kernels


def pick(device: torch.device) -> Kernels:
    """The fastest kernels for a device."""
    from nanochat.kernels.reference import ReferenceKernels

    return ReferenceKernels(device)
