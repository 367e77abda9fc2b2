"""The model families, and the fallback through Transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nanochat.engine.models.config import ModelConfig
from nanochat.errors import UnsupportedModel, UsageError
from nanochat.kernels import pick

if TYPE_CHECKING:  # so that a config can be read without torch
    import torch
    from torch import Tensor

    from nanochat.kernels.bundle import Gather, Reduce
    from nanochat.kernels.layout import AttentionLayout

__all__ = ["Model", "ModelConfig", "load_model"]


class Model(Protocol):
    """A model that reads and writes the paged KV cache."""

    @property
    def config(self) -> ModelConfig:
        """What the model is."""
        ...

    @property
    def num_bytes(self) -> int:
        """What this rank's weights take."""
        ...

    @property
    def bytes_read(self) -> int:
        """How much of the files this rank read."""
        ...

    @property
    def num_kv_heads(self) -> int:
        """Key-value heads of this rank: how wide its cache is."""
        ...

    def forward(
        self, ids: Tensor, positions: Tensor, layout: AttentionLayout, kv_cache: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """ids, positions int64 [T] -> hidden states after the final norm [T, hidden_size]."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, hidden_size] -> float32 [R, vocab_size]."""
        ...


def load_model(
    folder: Path,
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
    reduce: Reduce | None = None,
    gather: Gather | None = None,
    drawn: bool = False,
    deterministic: bool = False,
) -> Model:
    """Read a model's weights onto a device.

    Args:
        rank, world_size: which share of a tensor-parallel model this is, and of how many.
        progress: called with (bytes read, bytes in all).
        reduce, gather: what the ranks do together; needed when there is more than one.
        drawn: draw random weights instead of reading any; for models that our own decoder runs.
        deterministic: a token's bits depend on nothing but its own sequence.

    Raises:
        InvalidModel: weights are missing, damaged, or do not match the config.
        UnsupportedModel: Transformers cannot run it in the paged cache either, or not deterministically.
        UsageError: deterministic on more than two ranks.
    """
    if deterministic and world_size > 2:
        raise UsageError(
            f"deterministic was asked for on {world_size} devices, and sums over more than two depend on how they are "
            "sent: use tensor_parallel_size 1 or 2 (--tp)"
        )
    if config.native:
        from nanochat.engine.models.loading import load_decoder

        kernels = pick(device, dtype=dtype, deterministic=deterministic)
        return load_decoder(
            folder, config, kernels, dtype, device, rank, world_size, progress, reduce, gather, drawn
        )
    if drawn:
        raise UnsupportedModel(
            f"random weights are drawn only for models of our own decoder, not {config.architecture}"
        )
    if deterministic:
        raise UnsupportedModel(
            f"{config.architecture} runs through Transformers, whose products depend on the batch: "
            "leave deterministic off, or take a model of our own decoder"
        )
    from nanochat.engine.models.fallback import load_fallback

    return load_fallback(folder, config, dtype, device, rank, world_size, progress, reduce, gather)
