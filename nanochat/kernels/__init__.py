"""Attention and fused operations: plain torch here, Triton beside it, behind one door."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from nanochat.kernels.bundle import Kernels


def pick(
    device: torch.device,
    *,
    dtype: torch.dtype | None = None,
    deterministic: bool = False,
) -> Kernels:
    """The fastest kernels for a device.

    Args:
        dtype: of the matrices, for which a GPU's kernels are measured; bfloat16 if not given.
        deterministic: a row's bits depend on nothing but its own sequence: not on the batch, not on what was cached.
    """
    if device.type == "cuda":
        import torch

        if torch.cuda.get_device_capability(device) >= (8, 0):
            from nanochat.kernels.cuda import CudaKernels

            return CudaKernels(
                device,
                deterministic=deterministic,
                tuning=_cache() / "kernels.json",
                dtype=dtype or torch.bfloat16,
            )
    if deterministic:
        from nanochat.kernels.invariant import InvariantKernels

        return InvariantKernels(device)
    from nanochat.kernels import native
    from nanochat.kernels.reference import ReferenceKernels

    if device.type == "cpu" and native.available():
        from nanochat.kernels.cpu import CpuKernels

        return CpuKernels(device, native.NativeCode(_cache() / "cpu"))
    return ReferenceKernels(device)


def _cache() -> Path:
    import os
    from pathlib import Path

    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanochat"
