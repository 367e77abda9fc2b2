"""The memory that a model would have, read without importing torch: that takes longer than everything else here."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nanochat.engine.memory import host_memory_free


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of the device that a model would run on. Bytes."""

    kind: str
    """"cuda" or "cpu"."""
    name: str
    free: int
    total: int
    usable: int
    """What of the free memory the engine takes, by `gpu_memory_utilization`."""
    returned: int = 0
    """What the model that is loaded now gives back when it makes room; counted in `free` and `usable`."""
    devices: int = 1
    """GPUs from this one on, over which a model can be split; each is taken to be as free as this one."""

    def with_returned(self, held: int) -> Memory:
        """The memory that a model has which takes the place of one that holds `held` bytes."""
        return replace(self, free=self.free + held, usable=self.usable + held, returned=held)


def free_memory(device: str = "auto", utilization: float = 0.9) -> Memory:
    """The memory of the device that "auto", "cpu", "cuda" or "cuda:N" means, without importing torch."""
    first = 0 if ":" not in device else int(device.partition(":")[2])
    gpu = None if device == "cpu" else _gpu(first)
    if gpu is not None:
        name, free, total, devices = gpu
        usable = max(int(free - (1 - utilization) * total), 0)
        return Memory("cuda", name, free, total, usable, devices=devices)
    import psutil

    free = host_memory_free()
    return Memory("cpu", "RAM", free, psutil.virtual_memory().total, free)


def _gpu(index: int) -> tuple[str, int, int, int] | None:
    """Name, free and total bytes of a GPU, as the driver tells, and how many there are from it on.

    None when there is none that torch can use.
    """
    if not _torch_has_cuda():
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handle = gpu_handle(pynvml, index, os.environ)
        if handle is None:
            return None
        memory: Any = pynvml.nvmlDeviceGetMemoryInfo(handle)
        name: Any = pynvml.nvmlDeviceGetName(handle)
        name = name if isinstance(name, str) else name.decode()
        return name, int(memory.free), int(memory.total), device_count(pynvml, os.environ) - index
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def device_count(nvml: Any, environment: Mapping[str, str]) -> int:
    """CUDA devices that programs see."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return int(nvml.nvmlDeviceGetCount())
    return len([name for name in visible.partition("-1")[0].split(",") if name.strip()])


def _torch_has_cuda() -> bool:
    """Without importing torch: that takes longer than everything else here."""
    if "torch" in sys.modules:
        return bool(sys.modules["torch"].cuda.is_available())
    from importlib.metadata import PackageNotFoundError, version

    try:
        return "+cpu" not in version("torch")
    except PackageNotFoundError:
        return False


def gpu_handle(nvml: Any, index: int, environment: Mapping[str, str]) -> Any:
    """The driver's handle of CUDA device `index`: CUDA_VISIBLE_DEVICES renumbers what programs see."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return nvml.nvmlDeviceGetHandleByIndex(index) if index < nvml.nvmlDeviceGetCount() else None
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if index >= len(names) or names[index] == "-1":
        return None
    if names[index].isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(names[index]))
    return nvml.nvmlDeviceGetHandleByUUID(names[index])
