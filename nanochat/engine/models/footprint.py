"""How many bytes a loaded model really holds: what its tensors take, whatever form they were packed into."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


def bytes_held(model: object, device: torch.device) -> int:
    """Bytes of every tensor on `device` that is reachable from the model; one that is shared counts once."""
    total = 0
    waiting: list[Any] = [model]
    seen: set[int] = set()
    kept: list[Any] = []  # what was only made to be looked at must not give its id to the next
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        kept.append(item)
        if isinstance(item, Tensor):
            total += item.numel() * item.element_size() if item.device.type == device.type else 0
        else:
            waiting += _parts(item)
    return total


def _parts(item: Any) -> list[Any]:
    if isinstance(item, torch.nn.Module):
        return [*item.parameters(), *item.buffers()]
    if isinstance(item, dict):
        return list(cast("dict[Any, Any]", item).values())
    if isinstance(item, (list, tuple)):
        return list(cast("list[Any]", item))
    if not type(item).__module__.startswith("nanochat."):
        return []
    slots = (slot for kind in type(item).__mro__ for slot in getattr(kind, "__slots__", ()))
    names = {*getattr(item, "__dict__", {}), *slots}
    return [getattr(item, name) for name in names if hasattr(item, name)]
