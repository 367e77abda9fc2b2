"""How a model is loaded beneath the screen: by the user's settings, in steps that keys can come between."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nanochat.engine.config import EngineConfig
from nanochat.modelhub.device_memory import free_memory
from nanochat.settings import Settings

# A step cannot be interrupted: a prompt is read in parts of under 0.2 s, so that Esc and progress come between.
CPU_STEP_TOKENS = 128


def screen_config(folder: Path, settings: Settings, *, overcommit: bool, ranks: int | None) -> EngineConfig:
    """The configuration of a load, over `ranks` devices (None: as few as hold it)."""
    config = EngineConfig(
        model=folder, dtype=settings.dtype, device=settings.device, max_model_len=settings.max_model_len or None,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        kv_cache_bytes=int(settings.kv_cache_gib * 2**30) or None, deterministic=settings.deterministic,
        tensor_parallel_size=ranks, overcommit=overcommit,
    )  # fmt: skip
    if free_memory(settings.device).kind == "cpu":
        return replace(config, max_num_batched_tokens=CPU_STEP_TOKENS)
    return config
