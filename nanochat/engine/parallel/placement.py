"""Over how many devices a model goes."""

from __future__ import annotations

import torch

from nanochat.engine.config import EngineConfig
from nanochat.engine.memory import WEIGHTS_SHARE
from nanochat.engine.models.config import ModelConfig
from nanochat.engine.parallel.shares import refuse_unsplittable
from nanochat.errors import UnsupportedModel, UsageError


def choose_ranks(config: EngineConfig, model: ModelConfig, device: torch.device, dtype: torch.dtype) -> int:
    """How many ranks a model gets: as many as were asked for, else as few as hold it.

    Raises:
        UsageError: the model cannot be divided like that, or so many devices are not there.
        UnsupportedModel: Transformers runs it, and has no plan for it that can be followed over so many.
    """
    asked = config.tensor_parallel_size
    there = _devices(device)
    if asked is None:
        ranks = 1 if device.type == "cpu" else _needed(config, model, device, dtype, there)
        return ranks if ranks == 1 or model.native or _has_plan(config, model, ranks) else 1
    if asked < 1:
        raise UsageError(f"tensor_parallel_size must be at least 1, not {asked}")
    refuse_unsplittable(model, asked)
    if there is not None and asked > there:
        raise UsageError(
            f"tensor_parallel_size (--tp) {asked} was asked for, and there are {there} CUDA devices from {device} on"
        )
    if asked > 1 and not model.native:
        _refuse_undividable(config, model, asked)
    return asked


def _refuse_undividable(config: EngineConfig, model: ModelConfig, ranks: int) -> None:
    from nanochat.engine.models.fallback import refuse_undividable

    refuse_undividable(config.model, model, ranks)


def _has_plan(config: EngineConfig, model: ModelConfig, ranks: int) -> bool:
    """Whether Transformers' plan for a model can be followed over `ranks`."""
    try:
        _refuse_undividable(config, model, ranks)
    except UnsupportedModel:
        return False
    return True


def _devices(first: torch.device) -> int | None:
    """GPUs from `first` on; None on a CPU, where every rank is a process on the same cores."""
    if first.type == "cpu":
        return None
    return torch.cuda.device_count() - (first.index or 0)


def _needed(
    config: EngineConfig, model: ModelConfig, device: torch.device, dtype: torch.dtype, there: int | None
) -> int:
    """The fewest GPUs that divide the heads and hold the weights; all that divide them, if none are enough."""
    assert there is not None
    room = torch.cuda.mem_get_info(device)[0] * config.gpu_memory_utilization * WEIGHTS_SHARE
    dividing = [ranks for ranks in range(1, there + 1) if divides(model, ranks)]
    enough = [ranks for ranks in dividing if model.weight_bytes(dtype) / ranks <= room]
    return (enough or dividing[-1:])[0]


def divides(model: ModelConfig, ranks: int) -> bool:
    """Whether every rank gets the same: query heads, key-value heads or copies of them, feed-forward columns."""
    kv = model.num_kv_heads
    even = kv % ranks == 0 or ranks % kv == 0
    return even and model.num_heads % ranks == 0 and model.intermediate_size % ranks == 0
