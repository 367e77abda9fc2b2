"""The memory that is left to the work of a step, besides weights and KV cache: measured when a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nanochat.engine.config import EngineConfig
from nanochat.engine.first_step import FirstStep
from nanochat.kernels.shortage import is_out_of_memory

if TYPE_CHECKING:
    from nanochat.engine.models import Model

SLACK = 512 * 2**20
"""Bytes that the allocator and the libraries take on a GPU besides what a step was seen to take."""
_LEAST_TOKENS = 256  # a step of fewer is no step that anybody wants


@dataclass(frozen=True, slots=True)
class Reserve:
    """What the largest step takes.

    Attributes:
        size: bytes, SLACK included; of a step of `tokens`.
        tokens: as many as were asked for, or the most (by halves) that found room; 0 where no step did.
        shortage: what the device said of the step that was asked for, where that found no room.
    """

    size: int
    tokens: int
    shortage: str = ""


def measure_reserve(
    model: Model, config: EngineConfig, device: torch.device, dtype: torch.dtype, *, alone: bool
) -> Reserve:
    """Run the largest step on `device` (CUDA); where memory runs out in it, also smaller ones, until one finds room.

    Args:
        alone: no other rank waits in the step, so another can be run after one that failed.
    """
    asked = min(config.max_num_batched_tokens, model.config.max_position_embeddings)
    tokens, shortage = asked, ""
    while True:
        try:
            return Reserve(
                _taken(model, tokens, config.max_num_seqs, device, dtype) + SLACK, tokens, shortage
            )
        except RuntimeError as error:  # as long as it is handled, it holds what the step had allocated
            if not is_out_of_memory(error):
                raise
            shortage = shortage or str(error).splitlines()[0]
        tokens //= 2
        if not alone or tokens < _LEAST_TOKENS:
            return Reserve(SLACK, 0, shortage)
        torch.cuda.empty_cache()


@torch.inference_mode()
def _taken(model: Model, tokens: int, rows: int, device: torch.device, dtype: torch.dtype) -> int:
    """Bytes that a step of `tokens` takes besides weights and KV cache, measured by running one on `device` (CUDA)."""
    step = FirstStep(model, tokens, device, dtype)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    logits = step.logits(rows)
    torch.softmax(logits, dim=-1)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
