"""Copies between the host and a device that nobody waits for; on the host's own memory they are the tensors themselves."""

from __future__ import annotations

from array import array

import torch
from torch import Tensor

_KINDS = {"q": torch.int64, "i": torch.int32, "f": torch.float32}


def send(values: object, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers to the device."""
    staged = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return staged.to(device, non_blocking=True)


def send_array(numbers: array[int] | array[float], device: torch.device) -> Tensor:
    """To the device: int64 of a "q", int32 of an "i", float32 of an "f". Not empty."""
    return to_device(torch.frombuffer(numbers, dtype=_KINDS[numbers.typecode]), device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device; a host's tensor as it is."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """A copy in pinned memory that is complete once the device gets there; a host tensor as it is."""
    if tensor.device.type != "cuda":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
