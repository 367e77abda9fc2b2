"""A better default model than the starter for this hardware: named once, if the hub answers; never fetched."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from nanochat.modelhub.reach import HubCheck, offline
from nanochat.settings import Paths, Settings, private_folder

_MARK = "suggestion-shown"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model and what it takes: `size` bytes to fetch, `memory` bytes free to run well."""

    name: str
    size: int
    memory: int

    def __str__(self) -> str:
        return f"{self.name} ({self.size / 1e9:.1f} GB, `nanochat models pull {self.name}`)"


# Weights in bfloat16, a KV cache of a few thousand tokens, and room to work.
_ON_GPU = (
    Candidate("Qwen/Qwen3-8B", 16_400_000_000, 22_000_000_000),
    Candidate("Qwen/Qwen3-4B", 8_100_000_000, 12_000_000_000),
    Candidate("Qwen/Qwen3-1.7B", 4_100_000_000, 6_500_000_000),
    Candidate("Qwen/Qwen3-0.6B", 1_500_000_000, 3_000_000_000),
)
# A CPU reads every weight for every token: beyond this, memory would do but waiting would not.
_ON_CPU = (
    Candidate("Qwen/Qwen3-1.7B", 4_100_000_000, 10_000_000_000),
    Candidate("Qwen/Qwen3-0.6B", 1_500_000_000, 4_000_000_000),
)
_CORES_FOR_THE_LARGER = 8


def candidate() -> Candidate | None:
    """The largest model that runs well in the memory that is free now."""
    free = _gpu_memory_free()
    if free is not None:
        return next((model for model in _ON_GPU if model.memory <= free), None)
    from nanochat.engine.memory import host_memory_free

    free, cores = host_memory_free(), os.cpu_count() or 1
    models = _ON_CPU if cores >= _CORES_FOR_THE_LARGER else _ON_CPU[1:]
    return next((model for model in models if model.memory <= free), None)


def _gpu_memory_free() -> int | None:
    """Free bytes of the GPU that has most; None without a GPU."""
    import pynvml

    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        return max((int(pynvml.nvmlDeviceGetMemoryInfo(handle).free) for handle in handles), default=None)
    except pynvml.NVMLError:
        return None


class Suggestion:
    """The hint for one run: the hub is asked in the background, and only when the hint could be shown."""

    def __init__(self, *, chosen: bool, settings: Settings, paths: Paths) -> None:
        """`chosen`: the user named a model, so there is nothing to suggest."""
        self._mark = paths.data / _MARK
        silent = chosen or settings.default_model or not settings.suggest_models or offline()
        self.check = None if silent or not sys.stderr.isatty() or self._mark.exists() else HubCheck()

    def line(self) -> str | None:
        """The hint, if the hub has answered by now; at most once on this machine. Never waits."""
        if self.check is None or not self.check.reach.answers:
            return None
        model = candidate()
        if model is None:
            return None
        try:
            private_folder(self._mark.parent)
            self._mark.touch()
        except OSError:
            return None  # it could never be known that it was said
        return f"tip: a far better model than the starter fits this machine: {model}"
